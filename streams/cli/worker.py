"""`streamrec worker`: one worker process from the settings to a clean stop. What a worker does is `streams.app`'s."""

from __future__ import annotations

import gc
from pathlib import Path

import typer

from streams.cli.common import resolve_bundle, use_one_blas_thread, with_settings
from streams.cli.service import STOP_SECONDS, run_service, run_until_stopped, stop_event
from streams.settings import Settings

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
    from streams.container import WorkerError
    from streams.kafka.broadcast import BroadcastError
    from streams.kafka.faust_app import WorkerCrashedError
    from streams.kafka.publisher import PublishError

    broken = WorkerError, WorkerCrashedError, BroadcastError, PublishError
    try:
        run_service(settings, lambda: _serve(settings, resolve_bundle(settings)), *broken)
    finally:
        # A last collection would look at 200,000 objects that go with the process: a fifth of a second of its end.
        gc.freeze()


async def _serve(settings: Settings, bundle: Path) -> None:
    from streams.app import Worker

    stop = stop_event()
    worker = Worker(settings, bundle, stop)
    # What is not consuming yet waits for Kafka, for the store or for a long topic, and looks at no event: it is cut
    # short.
    await run_until_stopped(worker.run(), stop, "worker", lambda: STOP_SECONDS if worker.app is not None else 0)
