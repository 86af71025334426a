"""All runs as one PNG: a panel a stream, a bar a system under p2, marks for the other protocols, 95% by user."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from tests.benchmarks.quality.results import Results
from tests.benchmarks.quality.table import Row, collect

OURS, PEER = "#1f6f8b", "#b8b8b8"
MARKS = {"p1": ("o", "frozen (p1)"), "p1-strict": ("x", "strictly earlier stamps (p1-strict)")}


def write_plot(results: Results, out: Path) -> None:
    rows = collect(results.all())
    names = list(dict.fromkeys(row.stream for row in rows))
    most = max(len({row.system for row in rows if row.stream == name}) for name in names)
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.2 * len(names), 1.2 + 0.36 * most), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        of = [row for row in rows if row.stream == name]
        _panel(axis, name, of)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=len(handles), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def _panel(axis: pyplot.Axes, name: str, rows: list[Row]) -> None:
    best: dict[str, float] = {}
    for row in rows:
        best[row.system] = max(best.get(row.system, 0.0), row.mean("ndcg_at_10") or 0.0)
    order = sorted(best, key=lambda system: best[system])
    for row in rows:
        at, value = order.index(row.system), row.mean("ndcg_at_10") or 0.0
        if row.protocol == "p2":
            low = min(run["ndcg_at_10_interval"][0] for run in row.runs)
            high = max(run["ndcg_at_10_interval"][1] for run in row.runs)
            colour = OURS if row.is_ours else PEER
            axis.barh(at, value, color=colour, label="ours, online (p2)" if row.is_ours else "peer, online (p2)")
            axis.errorbar(value, at, xerr=[[value - low], [high - value]], color="black", linewidth=0.8, capsize=2)
        else:
            mark, label = MARKS[row.protocol]
            axis.plot(value, at, mark, color="black", markersize=4, label=label)
    axis.set_yticks(range(len(order)), order, fontsize=8)
    axis.set_title(name)
    axis.set_xlabel("nDCG@10")
    axis.spines[["top", "right"]].set_visible(False)
