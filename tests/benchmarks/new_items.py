"""New items: what their text is worth to the user encoder before anybody chose them, and early in their life.

    python -m tests.benchmarks.new_items EVENTS.jsonl ITEMS.jsonl --bundle BUNDLE [--seed 0] [--json FILE]

A tenth of the items is held out: encoders with and without item texts are fitted on the first 80% of the log less all
events on them, with the offset for new items that `train` would choose. Then the last fifth comes, new items and all:
once with frozen weights, once learning from each 250 events after they were asked (P2). BUNDLE lends its text encoder
and its kinds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.learned import TRAINING
from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.log import EventRows, LogBuilder, TrainingLog
from models.learning.places import hit_rate, mean_ndcg, places
from models.learning.training import TrainingConfig, use_threads
from models.learning.training_state import TrainingState
from streams.cli.common import use_one_blas_thread
from tests.benchmarks.new_item_lists import HELD_OUT, LIVES
from tests.benchmarks.online_simulation import read_log

F64 = npt.NDArray[np.float64]
FITTED, FORESEEN = 0.8, 0.6
# Far below any bias: an item that is not among those that are ranked.
ABSENT = -1e6


def without(log: TrainingLog, dropped: npt.NDArray[np.bool_]) -> TrainingLog:
    return replace(log, **{name: getattr(log, name)[~dropped] for name in EventRows.COLUMNS})


def fitted(log: TrainingLog, end: int, seed: int) -> EncoderTrainer:
    """As `train` fits it: the offset of new items from what it costs the others, before the last fit."""
    config = EncoderConfig()
    made = EncoderTrainer(
        config, items=log.items, kinds=len(log.kinds), text_dimension=log.item_text.shape[1], seed=seed
    )
    until = int(FORESEEN / FITTED * end)
    made.fit(log, until, epochs=config.passes)
    made.choose_cold_offset(log, until, end)
    made = made.anew(seed)
    made.fit(log, end, epochs=config.passes)
    return made


def asked(encoders: EncoderTrainer, log: TrainingLog, start: int, end: int, among: npt.NDArray[np.bool_]) -> F64:
    """float64[end - start], places of the targets where only some items are ranked."""
    encoders.grow(log)
    vectors = encoders.served().item_vectors(log.item_text)
    vectors[~among, -1] = ABSENT
    return places(encoders.users_before(log, start, end), vectors, log, start, end)


def figures(found: F64, rows: npt.NDArray[np.bool_]) -> dict[str, float]:
    chosen = found[rows]
    return {
        "events": int((~np.isnan(chosen)).sum()),
        "hr_at_10": hit_rate(chosen),
        "ndcg_at_10": mean_ndcg(chosen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the items that are held out and of the fits")
    parser.add_argument("--data-dir", type=Path, default=Path("/tmp/streamrec-online"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_one_blas_thread()
    use_threads(1)
    prepared, events = read_log(given.events, given.items, given.bundle, given.data_dir)
    declared, kinds = prepared.item_text, TrainingState.decode((given.bundle / TRAINING).read_bytes()).kinds
    ids = prepared.pipeline.catalogue.ids[: len(declared)]
    whole = LogBuilder(events, ids, declared, prepared.texts, kinds, prepared.options).until(len(events))
    held = np.random.default_rng(given.seed).random(whole.items) < HELD_OUT
    on_held = held[whole.item] & (whole.item >= 0)
    log = without(whole, on_held & (np.arange(len(whole)) < int(FITTED * len(whole))))
    start, every = int(FITTED * len(whole)) - (len(whole) - len(log)), np.ones(log.items, np.bool_)
    item = log.item[start:]
    new, life = held[item] & (item >= 0), np.array([(item[:at] == each).sum() for at, each in enumerate(item)])
    out: dict[str, dict[str, dict[str, float]]] = {}
    for name, text in (("text", log.item_text), ("id only", np.zeros_like(log.item_text))):
        log = replace(log, item_text=text)
        encoders = fitted(log, start, given.seed)
        rows = out[name] = {"among new items, frozen": figures(asked(encoders, log, start, len(log), held), new)}
        frozen = asked(encoders, log, start, len(log), every)
        rows |= {"new, frozen": figures(frozen, new), "others, frozen": figures(frozen, ~new)}
        offset, cold = encoders.cold_offset, encoders.network.cold
        cold[-1] -= offset
        rows["others, frozen, no offset"] = figures(asked(encoders, log, start, len(log), every), ~new)
        cold[-1] += offset
        learning = []
        for begin in range(start, len(log), TrainingConfig.block):
            end = min(begin + TrainingConfig.block, len(log))
            learning.append(asked(encoders, log, begin, end, every))
            encoders.update(log.until(end), begin, end)
        online = np.concatenate(learning)
        rows |= {"others, online": figures(online, ~new), "new, online": figures(online, new)}
        for lived, (least, most) in LIVES.items():
            rows[f"new, online, events {lived} of its life"] = figures(online, new & (life >= least) & (life < most))
        print(f"{name}: offset {offset}")
        for row, each in rows.items():
            print(f"  {row:40} {each['events']:6,}  HR@10 {each['hr_at_10']:.4f}  nDCG@10 {each['ndcg_at_10']:.4f}")
    if given.json is not None:
        given.json.write_text(json.dumps({"held_out": int(held.sum()), "seed": given.seed, **out}))


if __name__ == "__main__":
    main()
