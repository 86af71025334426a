"""How the demo shows itself: a live panel on a terminal, plain lines elsewhere. It measures nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from models.domain.events import Recommendation
from streams.demo.watch import Live, Quality

# Drawing costs 5 ms of the processor that broker, worker and this share: twice a second is live enough.
DRAW_SECONDS = 0.5
# A line in a log is read later.
LINE_SECONDS = 5.0
SHOWN_ITEMS = 5


class View:
    """Shows stages and the replay; quiet about everything it is not told."""

    def __init__(self, events: int, titles: Mapping[str, str], followed: str, console: Console | None = None) -> None:
        self.events, self.titles, self.followed = events, titles, followed
        self.console = console or Console(highlight=False)
        self._display: LiveDisplay | None = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._display = LiveDisplay(console=self.console, auto_refresh=False, transient=True)
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def stage(self, line: str) -> None:
        """Something that goes on: shown in place on a terminal."""
        if self._display is not None:
            self._display.update(Text(line), refresh=True)
        elif time.monotonic() - self._shown_at >= LINE_SECONDS:
            self._shown_at = time.monotonic()
            self.say(line)

    def show(self, live: Live) -> None:
        if self._display is not None:
            self._display.update(Group(self._figures(live), Text(), *self._list(live.newest)), refresh=True)
        elif time.monotonic() - self._shown_at >= LINE_SECONDS:
            self._shown_at = time.monotonic()
            self.say(self._line(live))

    @property
    def pause_seconds(self) -> float:
        return DRAW_SECONDS if self._display is not None else LINE_SECONDS / 5

    def _line(self, live: Live) -> str:
        quality = live.quality
        # The worker's counters are asked for every other second: before that there is nothing to compare.
        figures = (
            f"  HR@10 {quality.asked.hr:.4f} (popularity {quality.popularity.hr:.4f})"
            f"  nDCG@10 {quality.asked.ndcg:.4f} ({quality.popularity.ndcg:.4f})"
            if quality.asked.scored
            else ""
        )
        newest = live.newest.items[0].item_id if live.newest and live.newest.items else ""
        first = f"  user {self.followed}: {self.titles.get(newest, newest)}" if newest else ""
        return (
            f"{live.answered:,}/{self.events:,} events  {live.events_per_second:,.0f}/s"
            f"  p50 {live.p50_seconds * 1e3:.0f} ms  p99 {live.p99_seconds * 1e3:.0f} ms"
            f"{figures}{first}"
        )

    def _figures(self, live: Live) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        table.add_row("events answered", f"{live.answered:,}", f"of {self.events:,}")
        table.add_row("events/s", f"{live.events_per_second:,.0f}", f"{live.dead_letters} dead letters")
        table.add_row("event to list, p50", f"{live.p50_seconds * 1e3:.1f} ms", "Kafka timestamp to arrival here")
        table.add_row("event to list, p99", f"{live.p99_seconds * 1e3:.1f} ms", "of the last 5 seconds")
        quality = live.quality
        table.add_row(*_quality_row("list asked at that moment", quality.asked))
        table.add_row(*_quality_row("list last published", quality.last_published))
        table.add_row(*_quality_row("decayed popularity", quality.popularity))
        return table

    def _list(self, newest: Recommendation | None) -> tuple[Text | Table, ...]:
        if newest is None:
            return (Text(f"user {self.followed} has no list yet", style="dim"),)
        return (
            Text(f"user {self.followed}, list {newest.sequence}", style="bold"),
            list_table(newest, self.titles, SHOWN_ITEMS),
        )


def _quality_row(name: str, quality: Quality) -> tuple[str, str, str]:
    return name, f"nDCG@10 {quality.ndcg:.4f}", f"HR@10 {quality.hr:.4f} of {quality.scored:,.0f} events"


def list_table(made: Recommendation, titles: Mapping[str, str], count: int) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(justify="right", style="dim", width=2)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=2)
    table.add_column(style="dim", no_wrap=True, width=12)
    table.add_column(style="dim", overflow="ellipsis", no_wrap=True, ratio=3)
    for item in made.items[:count]:
        title = titles.get(item.item_id, item.item_id)
        table.add_row(str(item.rank), Text(title), item.source, Text(item.reason))
    return table


def summary_table(figures: Mapping[str, Any]) -> Table:
    """The end: what was measured, and over what."""
    table = Table(
        title=f"{figures['events']:,} events in {figures['seconds']:.1f} s with model {figures['model_version']}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column()
    for name in ("nDCG@10", "HR@10", "last fifth: nDCG@10", "HR@10"):
        table.add_column(name, justify="right")
    last = figures["last_fifth"]
    for title, prefix in (
        ("list asked at that moment", ""),
        ("list last published", "last_published_"),
        ("decayed popularity", "popularity_"),
    ):
        cells = [f"{each[prefix + name]:.4f}" for each in (figures, last) for name in ("ndcg_at_10", "hr_at_10")]
        table.add_row(title, *cells)
    return table


def summary_lines(figures: Mapping[str, Any]) -> list[str]:
    rate = f"{figures['rate']:,.0f} asked for" if figures["rate"] else "as fast as answered"
    return [
        f"{figures['events_per_second']:,.0f} events/s ({rate}), {figures['dead_letters']} dead letters",
        f"event to list: p50 {figures['event_to_list_p50_seconds'] * 1e3:.1f} ms,"
        f" p99 {figures['event_to_list_p99_seconds'] * 1e3:.1f} ms",
    ]
