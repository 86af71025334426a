"""The user encoder alone, frozen and learning on: what its scores are worth over the last fifth of a log.

    python -m tests.benchmarks.encoder_online EVENTS.jsonl ITEMS.jsonl --bundle BUNDLE [--trained 0.4] [--json FILE]

BUNDLE is what `streamrec train` made of the first `--trained`. From there on the encoder learns as the trainer's does
with no gate: windows of `OnlineConfig.window` events, a whole fit each time the log grew by `refit_growth`. Before each
window of the last fifth all items are ranked by the scores alone; states are up to date in both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from export.learned import TRAINING
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.log import LogBuilder, TrainingLog
from models.learning.online_config import OnlineConfig
from models.learning.places import hit_rate, mean_ndcg, places
from models.learning.training import use_threads
from models.learning.training_state import TrainingState
from streams.cli.common import use_one_blas_thread
from tests.benchmarks.online_simulation import read_log

SCORED = 0.8


def asked(encoders: EncoderTrainer, log: TrainingLog, start: int, end: int) -> list[float]:
    """1-based places of the targets among events [start, end)."""
    vectors = encoders.served().item_vectors(log.item_text)
    found: list[float] = places(encoders.users_before(log, start, end), vectors, log, start, end).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trained", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, default=Path("/tmp/streamrec-online"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_one_blas_thread()
    use_threads(1)
    config = OnlineConfig()
    prepared, events = read_log(given.events, given.items, given.bundle, given.data_dir)
    state = TrainingState.decode((given.bundle / TRAINING).read_bytes())
    builder = LogBuilder(
        events,
        prepared.pipeline.catalogue.ids[: len(prepared.item_text)],
        prepared.item_text,
        prepared.texts,
        state.kinds,
        prepared.options,
    )
    whole = builder.until(len(events))
    state = state.renumbered(builder.item_ids[: whole.items])
    frozen, learning = (state.encoders(config.encoder, given.seed) for _ in range(2))
    begin, scored = int(given.trained * len(events)), int(SCORED * len(events))
    fitted = begin
    found: dict[str, list[float]] = {"frozen": asked(frozen, whole, scored, len(events)), "learning": []}
    for start in range(begin, len(events), config.window):
        end = min(start + config.window, len(events))
        if start >= scored:
            found["learning"] += asked(learning, whole, start, end)
        learning.update(whole.until(end), start, end)
        if end >= (1.0 + config.refit_growth) * fitted:
            learning = learning.anew(given.seed)
            report = learning.fit(whole.until(end), end, epochs=config.encoder.passes, looks=True)
            print(f"{end:,} events: fitted anew in {report.seconds:.0f} s", flush=True)
            fitted = end
    figures: dict[str, float] = {}
    for name, each in found.items():
        figures |= {f"{name}_ndcg_at_10": mean_ndcg(np.array(each)), f"{name}_hr_at_10": hit_rate(np.array(each))}
    figures["gain"] = figures["learning_ndcg_at_10"] / figures["frozen_ndcg_at_10"] - 1.0
    print(json.dumps(figures, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
