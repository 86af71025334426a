"""`streamrec trainer`: one trainer process from the settings to a clean stop. What it does is `streams.trainer`'s."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

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

# As the worker's: something broke that a new start may cure.
EXIT_BROKEN = 1
# A round is not cut short: what it wrote is whole, and the next start goes on from the last one that ended.
STOP_SECONDS = 4.5

app = typer.Typer()


@app.command()
@with_settings()
def trainer(settings: Settings) -> None:
    """Learn from what workers write to `feedback`, and release models that are better.

    Every STREAMREC_TRAINER_ROUND_RECORDS records, or STREAMREC_TRAINER_ROUND_SECONDS, challenger and champion are
    compared on the newest records, before anything learns from them. By a written rule the challenger is released, goes
    on learning, or starts anew from the champion; a champion that turns out worse than the one before is rolled back.
    Workers switch to a release without stopping. With the bootstrap bundle, the first release is the first model that
    learned anything.

    \b
      pip install 'streamrec[cpu,train]'
      streamrec trainer          # beside the workers; the same settings
      streamrec models list      # what was released, and what became of it

    One trainer leads; a second one stands by and takes over. It keeps its replay buffer and its state in
    STREAMREC_DATA_DIR/trainer, and needs to read feedback, items and models, to write models and the registry, and to
    use the group <STREAMREC_CONSUMER_GROUP>.trainer.

    Metrics are at http://STREAMREC_METRICS_HOST:STREAMREC_TRAINER_METRICS_PORT/metrics, probes at /readyz and /healthz.
    SIGTERM and Ctrl-C stop it. Exit codes as the worker's: 0 after a clean stop; 1 when a new start may cure it; 2 when
    settings, bundle, topics or services have to be changed first.
    """
    use_one_blas_thread()
    from aiokafka.errors import KafkaError

    from streams.kafka.admin import TopicError
    from streams.kafka.broadcast import BroadcastError
    from streams.kafka.publisher import PublishError
    from streams.trainer import TrainerError

    try:
        try:
            run_async(_serve(settings, resolve_bundle(settings)))
        finally:
            keep_status()
    except (TrainerError, BroadcastError, PublishError) as error:
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except TopicError as error:
        if error.topic:
            raise
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except (KafkaError, OSError) as error:
        fail(f"Kafka at {settings.kafka_bootstrap_servers}: {error!r}")
        raise typer.Exit(EXIT_BROKEN) from error


async def _serve(settings: Settings, bundle: Path) -> None:
    from models.domain.events import EventContract
    from models.learning.online_config import OnlineConfig
    from streams.cli.learning import BundleLearner
    from streams.container import pipeline_options, read_bundle
    from streams.trainer import Trainer

    stop = asyncio.Event()
    stop_on_signals(stop.set)
    learner = BundleLearner(
        settings.data_dir / "trainer",
        pipeline_options(settings, EventContract(settings.interaction_strengths)),
        read_bundle(settings, bundle).text_encoder,
        config=OnlineConfig(window=settings.trainer_round_records),
        replay_bytes=settings.replay_bytes,
    )
    running = asyncio.create_task(Trainer(settings, learner, bundle, stop).run(), name="trainer")
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not running.done():
        await asyncio.wait({running}, timeout=STOP_SECONDS)
    if not running.done():
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled():
        running.result()
