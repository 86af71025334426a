"""`streamrec worker`: one worker process from the settings to a clean stop. What a worker does is `streams.app`'s."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from models.domain.errors import StoreError
from streams.cli.common import (
    fail,
    keep_status,
    resolve_bundle,
    run_async,
    stop_on_signals,
    use_one_blas_thread,
    with_settings,
)
from streams.settings import Settings

# The chunk in work, the last commit and leaving the group take 2 s; supervisors kill after 5 s at the earliest.
STOP_SECONDS = 4.5
# Something broke that a new start may cure (2 = settings, files or services have to be changed first).
EXIT_BROKEN = 1

app = typer.Typer()


@app.command()
@with_settings()
def worker(settings: Settings) -> None:
    """Consume events, requests and items; publish a ranked list after each event.

    Against a cluster of your own:

    \b
      export STREAMREC_KAFKA_BOOTSTRAP_SERVERS=kafka-1:9092,kafka-2:9092
      export STREAMREC_QDRANT_URL=https://qdrant:6333   # empty = embedded in STREAMREC_DATA_DIR, one worker only
      streamrec doctor          # what is missing, and how to mend it
      streamrec topics create   # once; needs the right to create topics, the worker does not
      streamrec worker

    Start as many as there are partitions; they share the work through STREAMREC_CONSUMER_GROUP. Two deployments in one
    cluster differ in STREAMREC_TOPIC_PREFIX, STREAMREC_COLLECTION_PREFIX and STREAMREC_CONSUMER_GROUP.

    The worker needs to read events, items, requests, item-stats and models, to write recommendations, feedback
    (unless STREAMREC_FEEDBACK=false), item-stats, dead-letters and (forwarded records) events and requests, and to use
    the groups STREAMREC_CONSUMER_GROUP and <item-stats>.snapshots.

    Metrics are at http://STREAMREC_METRICS_HOST:STREAMREC_METRICS_PORT/metrics; /readyz answers 200 once events are
    taken, /healthz answers 503 when the process should be started again. The log says the address at the start.

    SIGTERM and Ctrl-C stop it cleanly within 5 s. Exit code: 0 after a clean stop; 1 when something broke that a new
    start may cure (let a supervisor start it again); 2 when settings, bundle, topics or services have to be changed
    first.
    """
    use_one_blas_thread()
    from aiokafka.errors import KafkaError

    from streams.container import WorkerError
    from streams.kafka.admin import TopicError
    from streams.kafka.broadcast import BroadcastError
    from streams.kafka.faust_app import WorkerCrashedError
    from streams.kafka.publisher import PublishError

    try:
        try:
            run_async(_serve(settings, resolve_bundle(settings)))
        finally:
            keep_status()
    except (WorkerError, WorkerCrashedError, BroadcastError, PublishError) as error:
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except (StoreError, TopicError) as error:
        # An embedded store that another process has, a topic that is missing: nothing that a new start cures.
        if not error.retryable if isinstance(error, StoreError) else error.topic:
            raise
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except (KafkaError, OSError) as error:
        fail(f"Kafka at {settings.kafka_bootstrap_servers}: {error!r}")
        raise typer.Exit(EXIT_BROKEN) from error


async def _serve(settings: Settings, bundle: Path) -> None:
    from streams.app import Worker

    stop = asyncio.Event()
    stop_on_signals(stop.set)
    worker = Worker(settings, bundle, stop)
    running = asyncio.create_task(worker.run(), name="worker")
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    # What is not consuming yet waits for Kafka, for the store or for a long topic, and looks at no event: it is cut
    # short.
    if not running.done():
        await asyncio.wait({running}, timeout=STOP_SECONDS if worker.app is not None else 0)
    if not running.done():
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled():
        running.result()
