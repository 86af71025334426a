"""Online learning without Kafka: a log through the worker's pipeline, its feedback through the trainer, and back.

    python -m tests.benchmarks.online_simulation EVENTS.jsonl ITEMS.jsonl --bundle BUNDLE [--window 500] [--frozen] ...

BUNDLE is what `streamrec train` made of the first 40% (`--trained`). The rest is played: every interaction's list is
asked before it, the trainer is told what a worker would write to the topic `feedback`, and a promoted model serves from
the next batch on. Prints prequential nDCG@10 and HR@10 of every tenth of the log; `--json` writes them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from export.learned import TRAINING, open_towers
from models.domain.batch import BatchResult, Incoming
from models.domain.evaluation import hit, interval_by_user, ndcg
from models.domain.events import Event, EventContract, Interaction
from models.domain.feedback import Feedback, decode_feedback, encode_feedback
from models.domain.state import UserState
from models.learning.gate import GateRule
from models.learning.online import OnlineTrainer, Round
from models.learning.online_config import OnlineConfig
from models.learning.training_state import TrainingState
from models.learning.whole_fit import Fits
from streams.cli.common import use_one_blas_thread
from streams.cli.lines import BadLines
from streams.cli.replaying import Prepared, prepare, read_events, read_items
from streams.cli.training import serving
from streams.settings import Settings
from tests.services.shuffled import ShuffledTrainer
from tests.services.slow_fits import SlowFits

# Events a call of the pipeline: a round can come after each.
BATCH = 50


class Stream:
    """A log on its way through the pipeline, with a dictionary for a store."""

    def __init__(self, prepared: Prepared, events: Sequence[Event]) -> None:
        self.prepared, self.events, self.pipeline = prepared, events, prepared.pipeline
        self.states: dict[str, UserState] = {}
        self.played = 0
        self.gain, self.hit = np.full(len(events), np.nan), np.full(len(events), np.nan)
        """Of the list asked before each event."""
        self.options = self.pipeline.options._replace(asked_share=1.0)

    def serve(self, version: str, state: TrainingState) -> None:
        """Switch between two batches, as a worker does."""
        user, item = open_towers(state.encoder, state.item_ids, state.kinds)
        ranker = serving().ranker(state.ranker_weights(), state.candidates, state.worth())
        catalogue = self.pipeline.catalogue
        self.pipeline.use(user, ranker, version, self.pipeline.reader)
        text = np.zeros((len(catalogue), self.prepared.item_text.shape[1]), np.float32)
        text[: len(self.prepared.item_text)] = self.prepared.item_text
        catalogue.served.placeholder = item.placeholder
        catalogue.set_vectors(np.arange(len(catalogue), dtype=np.int32), item.encode_many(catalogue.ids, text))

    def play(self, end: int, **changes: Any) -> Iterator[list[Feedback]]:
        """Play up to event `end`, batch by batch; yields what was told of each."""
        options = self.options._replace(**changes)
        while self.played < end:
            start, self.played = self.played, min(self.played + BATCH, end)
            incoming = [Incoming(event, "log", at) for at, event in enumerate(self.events[start : self.played], start)]
            result: BatchResult = self.pipeline.run(
                incoming, self.states, generated_at_ms=lambda now: now, texts=self.prepared.texts, options=options
            )
            self.states.update(result.states)
            for at, asked in result.asked.items():
                event = self.events[start + at]
                assert isinstance(event, Interaction)
                item_id = str(event.item_id)
                place = asked.index(item_id) + 1 if item_id in asked else 0
                self.gain[start + at], self.hit[start + at] = ndcg(place), hit(place)
            told = [decode_feedback(encode_feedback(one.record)) for one in result.feedback]
            yield [record for record in told if isinstance(record, Feedback)]

    def figures(self, begin: int, end: int) -> dict[str, Any]:
        rows = np.flatnonzero(~np.isnan(self.gain[begin:end])) + begin
        users = [str(self.events[at].user_id) for at in rows]
        gain, hits = self.gain[rows], self.hit[rows]
        return {
            "events": len(rows),
            "ndcg_at_10": float(gain.mean()),
            "hr_at_10": float(hits.mean()),
            "ndcg_at_10_interval": interval_by_user(gain.tolist(), users),
        }


def learn(
    stream: Stream,
    trainer: OnlineTrainer,
    end: int,
    *,
    change: Callable[[list[Feedback], int], list[Feedback]] = lambda records, _: records,
    report: Callable[[Round, int], None] = lambda *_: None,
) -> Iterator[Round]:
    """Play up to `end` with the trainer beside it.

    Args:
        change: what becomes of a batch of records on the way, given how many events were played.
    """
    for records in stream.play(end, feedback=True):
        trainer.observe(change(records, stream.played), stream.prepared.texts)
        if trainer.due:
            found = trainer.round()
            if found.action == "promote":
                assert found.model is not None
                version = f"online-{found.number}"
                trainer.promoted(version)
                stream.serve(version, found.model)
            elif found.action == "rollback":
                trainer.rolled_back()
                champion = trainer.champion
                assert champion.state is not None
                stream.serve(champion.version, champion.state)
            report(found, stream.played)
            yield found


def swapped(events: Sequence[Event], at: int, seed: int) -> list[Event]:
    """From event `at` on, half of the users like other items than they would have: each item stands for another one."""
    rng = np.random.default_rng(seed)
    users = sorted({str(event.user_id) for event in events})
    changed = {user for user, chosen in zip(users, rng.random(len(users)) < 0.5, strict=True) if chosen}
    items = sorted({str(event.item_id) for event in events if isinstance(event, Interaction)})
    other = dict(zip(items, [items[k] for k in rng.permutation(len(items))], strict=True))
    return [
        msgspec.structs.replace(event, item_id=other[str(event.item_id)])
        if place >= at and isinstance(event, Interaction) and str(event.user_id) in changed
        else event
        for place, event in enumerate(events)
    ]


def fakes(count: int, like: Feedback) -> list[Feedback]:
    """Clicks of one user on one item, at the time of another one's record."""
    return [
        msgspec.structs.replace(
            like,
            event_id=f"fake-{n}",
            user_id="robot",
            item_id=like.item_id,
            event_time_ms=like.event_time_ms + n,
            first=n == 0,
            history=(),
            shown=None,
            candidates=None,
        )
        for n in range(count)
    ]


def spoiled(state: TrainingState, seed: int) -> TrainingState:
    """A model that loads, and is of no use: items have each other's vectors, and the ranker puts the last first."""
    rng = np.random.default_rng(seed)
    ranker = {name: -each if name.endswith("last.weight") else each for name, each in state.ranker.items()}
    encoder = replace(state.encoder, item_id=rng.permutation(state.encoder.item_id))
    return replace(state, encoder=encoder, ranker=ranker)


def read_log(events: Path, items: Path, bundle: Path, data: Path) -> tuple[Prepared, list[Event]]:
    settings = Settings(data_dir=data, bundle=str(bundle))
    contract = EventContract(settings.interaction_strengths)
    log = read_events(events, contract, BadLines(events))
    return prepare(settings, contract, log, read_items(items, contract)[0]), log


def trainer_of(
    prepared: Prepared,
    bundle: Path,
    config: OnlineConfig,
    seed: int,
    kind: type[OnlineTrainer] = OnlineTrainer,
    fits: Fits | None = None,
) -> OnlineTrainer:
    state = TrainingState.decode((bundle / TRAINING).read_bytes())
    trainer = kind(
        prepared.bundle.version,
        state,
        kinds=state.kinds,
        text_dimension=prepared.item_text.shape[1],
        options=prepared.options,
        serving=serving(),
        config=config,
        seed=seed,
        fits=fits,
    )
    trainer.declare(prepared.pipeline.catalogue.ids[: len(prepared.item_text)], prepared.item_text)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path)
    parser.add_argument("items", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trained", type=float, default=0.4, help="share of the log that the bundle was trained on")
    parser.add_argument("--until", type=float, default=1.0, help="share of the log to play")
    parser.add_argument("--frozen", action="store_true", help="without a trainer; statistics go on")
    parser.add_argument("--window", type=int, default=OnlineConfig.window)
    parser.add_argument("--promote", type=float, default=GateRule.promote)
    parser.add_argument("--memory", type=int, default=GateRule.memory)
    parser.add_argument(
        "--swap-at", type=float, help="share of the log after which half of the users change their taste"
    )
    parser.add_argument(
        "--flood-at", type=float, help="share of the log where one user sends 10,000 clicks on one item"
    )
    parser.add_argument("--fit-rounds", type=int, default=0, help="rounds that a whole fit goes on for")
    parser.add_argument("--shuffled", action="store_true", help="challengers learn that users chose what others chose")
    parser.add_argument("--spoil-at", type=float, help="share of the log where the champion is made a bad one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, default=Path("/tmp/streamrec-online"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_one_blas_thread()
    prepared, log = read_log(given.events, given.items, given.bundle, given.data_dir)
    if given.swap_at is not None:
        log = swapped(log, int(given.swap_at * len(log)), given.seed)
    stream = Stream(prepared, log)
    begin, end = int(given.trained * len(log)), int(given.until * len(log))
    config = OnlineConfig(window=given.window, gate=GateRule(promote=given.promote, memory=given.memory))
    kind = ShuffledTrainer if given.shuffled else OnlineTrainer
    fits = SlowFits(given.fit_rounds)
    trainer = None if given.frozen else trainer_of(prepared, given.bundle, config, given.seed, kind, fits)
    started = time.perf_counter()
    # What the bundle was trained on goes through the worker too, since statistics and states begin there.
    for records in stream.play(begin, asked_share=0.0, publish=False, feedback=trainer is not None, candidates_share=0):
        if trainer is not None:
            trainer.observe(records, prepared.texts)
    print(f"{begin:,} events played in {time.perf_counter() - started:.0f} s", flush=True)
    rounds: list[Round] = []

    def report(found: Round, at: int) -> None:
        reason = found.decision.reason if found.decision else ""
        print(
            f"{at:7,} {found.action:8} served {found.served_ndcg:.4f} champion {found.champion_ndcg:.4f} challenger "
            f"{found.challenger_ndcg:.4f} rival {found.rival_ndcg:.4f} {found.fit} loss {found.loss:.3f} "
            f"{found.evaluation_seconds:.1f} + {found.training_seconds:.1f} s | {reason}",
            flush=True,
        )

    started = time.perf_counter()
    if trainer is None:
        for _ in stream.play(end):
            pass
    else:
        waiting = {
            name: int(share * len(log)) for name in ("flood", "spoil") if (share := getattr(given, f"{name}_at"))
        }

        def change(records: list[Feedback], played: int) -> list[Feedback]:
            if "flood" in waiting and played >= waiting["flood"]:
                del waiting["flood"]
                records = [*records, *fakes(10_000, records[-1])]
            if "spoil" in waiting and played >= waiting["spoil"]:
                del waiting["spoil"]
                assert trainer is not None
                assert trainer.champion.state is not None
                bad = spoiled(trainer.champion.state, given.seed)
                trainer.adopt("spoiled", bad)
                stream.serve("spoiled", bad)
                print(f"{played:,}: a spoiled model serves", flush=True)
            return records

        rounds = list(learn(stream, trainer, end, change=change, report=report))
    seconds = time.perf_counter() - started
    twentieth = len(log) // 20
    curve = {at: stream.figures(at, at + twentieth)["ndcg_at_10"] for at in range(begin, end, twentieth)}
    tenths = {
        f"{tenth / 10:.1f}": stream.figures(int(tenth / 10 * len(log)), int((tenth + 1) / 10 * len(log)))
        for tenth in range(round(10 * given.trained), round(10 * given.until))
    }
    figures: dict[str, Any] = {
        "tenths": tenths,
        "curve": curve,
        "seconds": seconds,
        "window": given.window,
        "frozen": given.frozen,
    }
    if given.until >= 1.0:
        figures["last_fifth"] = stream.figures(int(0.8 * len(log)), len(log))
    figures["rounds"] = len(rounds)
    figures |= {
        action: sum(found.action == action for found in rounds) for action in ("promote", "discard", "rollback")
    }
    figures["evaluation_seconds"] = sum(found.evaluation_seconds for found in rounds)
    figures["training_seconds"] = sum(found.training_seconds for found in rounds)
    print(json.dumps(figures, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
