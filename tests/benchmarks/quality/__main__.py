"""`python -m tests.benchmarks.quality`: rows one by one, then the table and the plot. See the folder's README."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import msgspec
from threadpoolctl import threadpool_limits

from tests.benchmarks.quality.intervals import paired
from tests.benchmarks.quality.loaders import DEFAULT_DATA, LOADERS, REPOSITORY, load
from tests.benchmarks.quality.ours import SYSTEM, run_ours, score_file, write_files
from tests.benchmarks.quality.protocol import PROTOCOLS
from tests.benchmarks.quality.results import Results, Run

DEFAULT_RESULTS = REPOSITORY / "benchmark-results" / "quality"
# What `all` runs, cheapest first; a fusion stands after its members.
PEERS = (
    "popularity",
    "first-touch",
    "covisitation",
    "item-knn",
    "ease",
    "als",
    "fusion-counted",
    "sasrec",
    "gru4rec",
    "fusion-sasrec",
    "fusion-best",
)
# Systems that draw random numbers; the others give the same row for every seed.
SEEDED = ("sasrec", "gru4rec", "fusion-sasrec", "fusion-best", SYSTEM)


def main() -> None:
    arguments = _parser().parse_args()
    results = Results(arguments.results)
    {
        "run": _run,
        "all": _all,
        "score": _score,
        "compare": _compare,
        "table": _table,
        "plot": _plot,
        "write": _write,
    }[arguments.command](arguments, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality", description=__doc__)
    parser.add_argument("--results", type=Path, default=DEFAULT_RESULTS, help="folder of all results")
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help="folder of the streams that PyPI does not carry"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one row; what was searched before is not searched again")
    _row(run)
    run.add_argument("--json", type=Path, help="write the row's figures there too")
    every = commands.add_parser("all", help="every row that is not there yet")
    every.add_argument("--streams", nargs="+", choices=LOADERS, default=list(LOADERS))
    every.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["p2", "p1", "p1-strict"])
    every.add_argument("--systems", nargs="+", default=["peers", SYSTEM], help="names; `peers` stands for all of them")
    every.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    score = commands.add_parser("score", help="a row from a file of lists of any system")
    score.add_argument("lists", type=Path)
    _row(score)
    compare = commands.add_parser("compare", help="one row minus another, paired by event, intervals by user")
    compare.add_argument("ours")
    compare.add_argument("theirs")
    compare.add_argument("--stream", choices=LOADERS, required=True)
    compare.add_argument("--protocol", choices=PROTOCOLS, default="p2")
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--their-seed", type=int, default=0)
    table = commands.add_parser("table", help="all rows as Markdown")
    table.add_argument("--out", type=Path)
    plot = commands.add_parser("plot", help="all rows as a PNG")
    plot.add_argument("--out", type=Path)
    write = commands.add_parser("write", help="a stream as events.jsonl and items.jsonl")
    write.add_argument("stream", choices=LOADERS)
    write.add_argument("folder", type=Path)
    return parser


def _row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stream", choices=LOADERS, required=True)
    parser.add_argument("--system", required=True)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="p2")
    parser.add_argument("--seed", type=int, default=0)


def _one(run: Run, arguments: argparse.Namespace, results: Results) -> dict[str, Any]:
    print(f"== {run.name}", file=sys.stderr, flush=True)
    if run.system == SYSTEM:
        return run_ours(run, arguments.data, results)
    import torch  # `score`, `table` and our own rows do without

    from tests.benchmarks.quality.runner import PeerRunner

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return PeerRunner(run.stream, arguments.data, results).run(run)


def _run(arguments: argparse.Namespace, results: Results) -> None:
    run = Run(arguments.stream, arguments.system, arguments.protocol, arguments.seed)
    found = _one(run, arguments, results)
    shown = msgspec.json.format(msgspec.json.encode(found), indent=2)
    print(shown.decode())
    if arguments.json is not None:
        arguments.json.write_bytes(shown + b"\n")


def _all(arguments: argparse.Namespace, results: Results) -> None:
    systems = [name for named in arguments.systems for name in (PEERS if named == "peers" else (named,))]
    for seed in arguments.seeds:
        for protocol in arguments.protocols:
            for stream in arguments.streams:
                for system in systems:
                    run = Run(stream, system, protocol, seed)
                    if seed != arguments.seeds[0] and system not in SEEDED:
                        continue
                    if not results.figures_path(run).exists():
                        found = _one(run, arguments, results)
                        print(f"{run.name} {found['ndcg_at_10']:.4f} / {found['hr_at_10']:.4f}", flush=True)


def _score(arguments: argparse.Namespace, results: Results) -> None:
    run = Run(arguments.stream, arguments.system, arguments.protocol, arguments.seed)
    found = score_file(run, load(run.stream, arguments.data), arguments.lists, results, {})
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


def _compare(arguments: argparse.Namespace, results: Results) -> None:
    stream, protocol = arguments.stream, arguments.protocol
    ours = results.answers(Run(stream, arguments.ours, protocol, arguments.seed))
    theirs = results.answers(Run(stream, arguments.theirs, protocol, arguments.their_seed))
    print(
        msgspec.json.format(msgspec.json.encode(paired(load(stream, arguments.data), ours, theirs)), indent=2).decode()
    )


def _table(arguments: argparse.Namespace, results: Results) -> None:
    from tests.benchmarks.quality.table import markdown

    out = arguments.out or results.folder / "table.md"
    text = markdown(results, arguments.data)
    out.write_text(text)
    print(text)


def _plot(arguments: argparse.Namespace, results: Results) -> None:
    from tests.benchmarks.quality.plot import write_plot

    out = arguments.out or results.folder / "plot.png"
    write_plot(results, out)
    print(out)


def _write(arguments: argparse.Namespace, results: Results) -> None:
    write_files(arguments.stream, arguments.data, arguments.folder)


if __name__ == "__main__":
    main()
