"""`streamrec train`: from a file of events to a bundle that a worker serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from models.domain.events import EventContract
from streams.cli.common import use_one_blas_thread, with_settings
from streams.cli.lines import BadLines, FileError, check_writable, progress_bar, write_figures
from streams.cli.replaying import prepare, read_events, read_items
from streams.cli.training import make_training, write_learned
from streams.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("Model", "Recommending")
def train(
    settings: Settings,
    events: Annotated[Path, typer.Argument(metavar="EVENTS.jsonl", help="Events, plain or .gz; any declared kinds.")],
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="Directory of the bundle to write.")],
    items: Annotated[Path | None, typer.Option(metavar="ITEMS.jsonl", help="The catalogue, plain or .gz.")] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, order and draws.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="OUT.json", help="Write the figures.")] = None,
) -> None:
    """Train encoder and ranker on a file of events, in time order, and write them as a bundle.

    Nothing has to be chosen: what a stream needs is chosen on its latest tenth, then everything is fitted on the whole.
    The figures are of that tenth, before it was trained on. A worker serves the bundle with STREAMREC_BUNDLE=BUNDLE.
    """
    from models.domain.protocol import Player
    from models.encoders.manifest import read_manifest
    from streams.container import read_bundle

    use_one_blas_thread()
    check_writable(json_out)
    contract = EventContract(settings.interaction_strengths)
    bad = BadLines(events)
    log = read_events(events, contract, bad)
    if not log:
        raise FileError(f"{events}: no valid event in it")
    catalogue_items, bad_items = read_items(items, contract)
    prepared = prepare(settings, contract, log, catalogue_items)
    pipeline = prepared.pipeline
    training = make_training(log, prepared, seed=seed, report=lambda line: typer.echo(line, err=True))
    started = time.perf_counter()
    with progress_bar("training", len(log), "events") as progress:
        training.fit(Player(pipeline, log, prepared.texts, progress), len(log))
    seconds = time.perf_counter() - started
    write_learned(out, training, prepared)
    read_bundle(settings, out)  # as a worker does before it serves it
    manifest = read_manifest(out)
    figures = {
        "bundle": str(out),
        "version": manifest.version,
        "events": len(log),
        "items": len(pipeline.catalogue),
        "seconds": seconds,
        "seed": seed,
        "bad_lines": bad.count,
        "bad_item_lines": bad_items,
        **training.metrics,
    }
    if json_out is not None:
        write_figures(json_out, figures)
    typer.echo(f"{out}  {manifest.version}  trained on {len(log):,} events in {seconds:.0f} s")
    typer.echo(", ".join(f"{name} {value:.4f}" for name, value in training.metrics.items()))
