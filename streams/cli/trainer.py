"""`streamrec trainer`: one trainer process from the settings to a clean stop. What it does is `streams.trainer`'s."""

from __future__ import annotations

from pathlib import Path

import typer

from streams.cli.common import resolve_bundle, use_one_blas_thread, with_settings
from streams.cli.service import run_service, run_until_stopped, stop_event
from streams.settings import Settings

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
    from streams.kafka.broadcast import BroadcastError
    from streams.kafka.publisher import PublishError
    from streams.trainer import TrainerError

    broken = TrainerError, BroadcastError, PublishError
    run_service(settings, lambda: _serve(settings, resolve_bundle(settings)), *broken)


async def _serve(settings: Settings, bundle: Path) -> None:
    from models.domain.events import EventContract
    from models.encoders.manifest import read_manifest, text_version
    from models.learning.online_config import OnlineConfig
    from streams.cli.learning import BundleLearner
    from streams.container import pipeline_options, read_bundle
    from streams.trainer import Trainer

    stop = stop_event()
    learner = BundleLearner(
        settings.data_dir / "trainer",
        pipeline_options(settings, EventContract(settings.interaction_strengths)),
        read_bundle(settings, bundle).text_encoder,
        text_version(read_manifest(bundle)),
        config=OnlineConfig(window=settings.trainer_round_records),
        replay_bytes=settings.replay_bytes,
    )
    # A round that is cut short leaves what it wrote whole: the next start goes on from the last one that ended.
    await run_until_stopped(Trainer(settings, learner, bundle, stop).run(), stop, "trainer")
