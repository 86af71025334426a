"""All runs as one Markdown table: a row a system and protocol, seeds averaged, differences to the best peer by user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.quality.intervals import interval_by_user
from tests.benchmarks.quality.loaders import load
from tests.benchmarks.quality.ours import SYSTEM
from tests.benchmarks.quality.protocol import PROTOCOLS, gains
from tests.benchmarks.quality.results import Results, Run
from tests.benchmarks.quality.stream import F64

COLUMNS = (
    ("nDCG@10", "ndcg_at_10", 4),
    ("HR@10", "hr_at_10", 4),
    ("MRR@10", "mrr_at_10", 4),
    ("coverage", "coverage_at_10", 3),
    ("novelty, bits", "novelty_bits", 2),
    ("long tail", "long_tail_share", 3),
    ("HR cold", "cold_hr_at_10", 3),
    ("HR warm", "warm_hr_at_10", 3),
    ("HR new items", "new_item_hr_at_10", 3),
)


class Row(NamedTuple):
    """One system under one protocol on one stream: its runs, one a seed."""

    stream: str
    protocol: str
    system: str
    runs: list[dict[str, Any]]

    def mean(self, name: str) -> float | None:
        values = [run[name] for run in self.runs if run[name] is not None]
        return float(np.mean(values)) if values else None

    @property
    def is_ours(self) -> bool:
        return self.system.startswith(SYSTEM)


def collect(runs: Iterable[dict[str, Any]]) -> list[Row]:
    """Best nDCG@10 first within a stream and protocol."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        found[run["stream"], run["protocol"], run["system"]].append(run)
    rows = [Row(*key, of) for key, of in found.items()]
    return sorted(rows, key=lambda row: (row.stream, -PROTOCOLS.index(row.protocol), -(row.mean("ndcg_at_10") or 0)))


def best_peer(rows: Iterable[Row]) -> Row | None:
    """Of the rows of one stream and protocol."""
    return max((r for r in rows if not r.is_ours), key=lambda row: row.mean("ndcg_at_10") or 0, default=None)


def markdown(results: Results, data: Path) -> str:
    rows = collect(results.all())
    lines: list[str] = []
    for stream_name, protocol in dict.fromkeys((row.stream, row.protocol) for row in rows):
        of = [row for row in rows if (row.stream, row.protocol) == (stream_name, protocol)]
        rival, users = best_peer(of), load(stream_name, data).users
        first = of[0].runs[0]
        lines += [
            f"### {stream_name}, {protocol} ({first['scored_events']:,} events of {first['scored_users']:,} users)",
            "",
            "| system | " + " | ".join(title for title, _, _ in COLUMNS) + " | seeds | trials | to the best peer |",
            "|---|" + "---:|" * (len(COLUMNS) + 2) + "---|",
        ]
        for row in of:
            cells = [_cell(row.mean(name), digits) for _, name, digits in COLUMNS]
            trials = max((run.get("trials") or 0 for run in row.runs), default=0)
            cells += [str(len(row.runs)), str(trials or "-"), _difference(results, row, rival, users)]
            name = f"**{row.system}**" if row.is_ours else row.system
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _difference(results: Results, row: Row, rival: Row | None, users: Any) -> str:
    """nDCG@10 of the row minus the best peer's on the same events, with the 95% interval by user."""
    if rival is None or row is rival:
        return "-"
    positions, own = _mean_gains(results, row)
    other_positions, other = _mean_gains(results, rival)
    if not np.array_equal(positions, other_positions):
        return "other events"
    difference = own - other
    low, high = interval_by_user(difference, users[positions])
    return f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def _mean_gains(results: Results, row: Row) -> tuple[Any, F64]:
    """(positions int64[S], nDCG@10 of each event averaged over seeds float64[S])."""
    answers = [results.answers(Run(row.stream, row.system, row.protocol, run["seed"])) for run in row.runs]
    return answers[0].positions, np.mean([gains(each.ranks) for each in answers], axis=0)
