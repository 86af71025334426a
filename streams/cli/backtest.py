"""`streamrec backtest`: a file through the worker's own pipeline, without Kafka."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from models.domain.events import Event, EventContract, Item
from streams.cli.common import use_one_blas_thread, with_settings
from streams.cli.follow import print_table
from streams.cli.lines import BadLines, FileError, check_writable, new_file, progress_bar, write_figures
from streams.cli.replaying import prepare, read_events, read_items
from streams.cli.training import make_training
from streams.settings import Settings

if TYPE_CHECKING:
    from models.domain.protocol import ScoredEvent

# Of the bootstrap intervals; everything else is deterministic.
SEED = 0

app = typer.Typer()


class ProtocolName(StrEnum):
    p1 = "p1"
    p1_strict = "p1-strict"
    p2 = "p2"


@app.command()
@with_settings("Model", "Recommending")
def backtest(
    settings: Settings,
    events: Annotated[Path, typer.Argument(metavar="EVENTS.jsonl", help="Events, plain or .gz.")],
    items: Annotated[Path | None, typer.Option(metavar="ITEMS.jsonl", help="The catalogue, plain or .gz.")] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="p2: ask before every event, then learn from it; p1: weights and statistics frozen at 80%; "
            "p1-strict: besides, only strictly earlier events of the user."
        ),
    ] = ProtocolName.p2,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train encoder and ranker on the first 80%, and under p2 on each 250 events after they were "
            "scored; needs the extra `train`.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides the training's draws.")] = 0,
    lists: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="Write the lists of every scored event.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT.json", help="Write the figures.")] = None,
) -> None:
    """Replay a file in time order and print nDCG@10 and HR@10 of its last 20%: full catalogue, no sampled negatives.

    "asked" is the list at that moment, "last published" the one that stood before the event. The same settings as the
    worker's give the same figures as its own counters. Bad lines are reported and left out.
    """
    use_one_blas_thread()
    check_writable(lists, json_out)
    contract = EventContract(settings.interaction_strengths)
    bad = BadLines(events)
    played = read_events(events, contract, bad)
    if not played:
        raise FileError(f"{events}: no valid event in it")
    catalogue_items, bad_items = read_items(items, contract)
    figures = _run(settings, contract, played, catalogue_items, protocol.value, lists, seed if train else None)
    figures |= {"bad_lines": bad.count, "bad_item_lines": bad_items}
    if json_out is not None:
        write_figures(json_out, figures)
    _print(figures)


def _run(
    settings: Settings,
    contract: EventContract,
    events: list[Event],
    items: list[Item],
    protocol: str,
    lists: Path | None,
    train_seed: int | None = None,
) -> dict[str, Any]:
    """
    Args:
        train_seed: train as the log is played, with this seed; None = serve the settings' bundle throughout.
    """
    from models.domain.protocol import Learner, replay, summary
    from streams.container import warm_up

    prepared = prepare(settings, contract, events, items)
    pipeline, texts = prepared.pipeline, prepared.texts
    warm_up(prepared.bundle, prepared.options)
    learner: Learner | None = None
    if train_seed is not None:
        learner = make_training(events, prepared, seed=train_seed, report=lambda line: typer.echo(line, err=True))
    scored: list[ScoredEvent] = []
    started = time.perf_counter()
    with progress_bar(f"replaying {protocol}", len(events), "events") as progress:
        for each in replay(pipeline, events, protocol, texts=texts, learner=learner, progress=progress):
            scored.append(each)
    seconds = time.perf_counter() - started
    if lists is not None:
        _write_lists(lists, scored)
    figures: dict[str, Any] = _finite(summary(scored, len(pipeline.catalogue)))
    return figures | {
        "protocol": protocol,
        "events": len(events),
        "items": len(pipeline.catalogue),
        "seconds": seconds,
        "events_per_second": len(events) / seconds,
        "model_version": prepared.bundle.version if train_seed is None else "trained",
        "seed": SEED if train_seed is None else train_seed,
    }


def _write_lists(path: Path, scored: Iterable[ScoredEvent]) -> None:
    with new_file(path) as out:
        for each in scored:
            line = {"event_id": each.event.event_id, "items": each.asked, "items_last_published": each.last_published}
            out.write(msgspec.json.encode(line) + b"\n")


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what could not be measured is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in figures.items()}


def _print(figures: Mapping[str, Any]) -> None:
    def shown(name: str) -> list[str]:
        value, interval = figures[name], figures.get(f"{name}_interval")
        text = "-" if value is None else f"{value:.4f}"
        return [text, "" if not interval or interval[0] is None else f"{interval[0]:.4f} to {interval[1]:.4f}"]

    rows = [
        ["asked", "nDCG@10", *shown("ndcg_at_10")],
        ["asked", "HR@10", *shown("hr_at_10")],
        ["last published", "nDCG@10", *shown("last_published_ndcg_at_10")],
        ["last published", "HR@10", *shown("last_published_hr_at_10")],
        [f"asked, cold ({figures['cold_events']})", "nDCG@10", *shown("cold_ndcg_at_10")],
        [f"asked, warm ({figures['warm_events']})", "nDCG@10", *shown("warm_ndcg_at_10")],
    ]
    title = (
        f"{figures['protocol']}: {figures['scored_events']} scored of {figures['events']} events, "
        f"{figures['events_per_second']:,.0f} events/s, model {figures['model_version']}"
    )
    print_table(title, ("list", "figure", "value", "95% by user"), rows)
    typer.echo(
        f"coverage@10 {figures['coverage_at_10']:.3f}; {figures['bad_lines'] + figures['bad_item_lines']} bad lines"
    )
