"""The user encoder with the full softmax and with the sampled one, on the same events.

`python -m tests.benchmarks.quality.softmaxes EVENTS ITEMS [--json FILE]`, in .venv-train. Fitted on the first 60% of
the events, validated on the next 20% with frozen weights (P1); the last 20% are not looked at.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.log import TrainingLog
from models.learning.places import hit_rate, mean_ndcg, places
from tests.benchmarks.quality.past import open_past, tell

FITTED, VALIDATED = 0.6, 0.8
# The last one is the product's; drawn with replacement and by popularity, it holds 880 of the 1,511 films there.
NEGATIVES = (128, 512, 2_048)


def configs() -> dict[str, EncoderConfig]:
    """The full softmax whatever the size of the catalogue, and the sampled one likewise."""
    sampled = {f"sampled, {count:,}": EncoderConfig(full_softmax_items=0, negatives=count) for count in NEGATIVES}
    return {"full": replace(EncoderConfig(), full_softmax_items=2**31)} | sampled


def measure(log: TrainingLog, config: EncoderConfig, *, epochs: int, seed: int) -> dict[str, Any]:
    end, until = int(FITTED * len(log)), int(VALIDATED * len(log))
    trainer = EncoderTrainer(
        config, items=log.items, kinds=len(log.kinds), text_dimension=log.item_text.shape[1], seed=seed
    )
    started = time.process_time()
    trainer.fit(log, end, epochs=epochs)
    seconds = time.process_time() - started
    # What `EncoderTrainer.ndcg` does, of which the places are wanted too.
    users = trainer.users_before(log, end, until)
    found = places(users, trainer.served().item_vectors(log.item_text), log, end, until)
    return {"ndcg_at_10": mean_ndcg(found), "hr_at_10": hit_rate(found), "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality.softmaxes", description=__doc__)
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    past = open_past(arguments.events, arguments.items, arguments.seed)
    log = past.training.builder.until(len(past.events))
    tell(f"{len(log):,} events, {log.items:,} items")
    rows: dict[str, dict[str, Any]] = {}
    print("| softmax | nDCG@10 | HR@10 | CPU s |\n|---|---|---|---|", flush=True)
    for name, config in configs().items():
        row = rows[name] = measure(log, config, epochs=arguments.epochs, seed=arguments.seed)
        print(f"| {name} | {row['ndcg_at_10']:.4f} | {row['hr_at_10']:.4f} | {row['cpu_seconds']:.0f} |", flush=True)
    if arguments.json is not None:
        found = {"events": len(log), "items": log.items, "epochs": arguments.epochs, "seed": arguments.seed}
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode({**found, "rows": rows}), indent=2) + b"\n")


if __name__ == "__main__":
    main()
