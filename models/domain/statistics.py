"""Item statistics of the stream: decayed counts, life-cycle, co-visitation; the arrays and how one touch changes them.

Everything here is forward-decayed: a count is kept as log2 of sum 2^(t/half-life), so that the order in which touches
arrive (partitions, workers) does not matter and nothing has to be aged. Knows item indices only; ids belong to the
catalogue.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from numba import njit

from models.domain.circumstances import PER_ITEM as CIRCUMSTANCES_PER_ITEM
from models.domain.circumstances import Circumstances, new_circumstances, note_circumstances
from models.domain.errors import StateError
from models.domain.fellows import CHOOSERS, Choosers, first_choosers, new_choosers, note_chooser

MS_PER_HOUR = 3_600_000.0

# What a decayed count counts, and the clock it decays by: events (how many touches the stream has seen) or hours of
# event time. From ten events (what is on everybody's screen right now) to ten thousand (what this catalogue lives on):
# no single half-life serves both news and films (research/ranker-and-protocol.md).
COUNTS: tuple[tuple[str, str, float, str], ...] = (
    ("count_10_events", "events", 10.0, "all"),
    ("count_100_events", "events", 100.0, "all"),
    ("count_10000_events", "events", 10_000.0, "all"),
    ("count_1_hour", "hours", 1.0, "all"),
    ("count_24_hours", "hours", 24.0, "all"),
    ("count_168_hours", "hours", 168.0, "all"),
    ("first_20_events", "events", 20.0, "first"),
    ("first_3_hours", "hours", 3.0, "first"),
    # Read by learned rankers alone.
    ("count_30_events", "events", 30.0, "all"),
    ("count_1000_events", "events", 1_000.0, "all"),
    ("count_6_hours", "hours", 6.0, "all"),
    ("first_24_hours", "hours", 24.0, "first"),
    ("strong_24_hours", "hours", 24.0, "strong"),
)
# The first of them, which every ranker reads.
BASE_COUNTS = 8
COUNT_NAMES = tuple(name for name, *_ in COUNTS)
_BY_EVENTS = np.array([clock == "events" for _, clock, *_ in COUNTS])
_HALF_LIVES = np.array([half_life for _, _, half_life, _ in COUNTS])
_WHAT = np.array([("all", "first", "strong").index(what) for *_, what in COUNTS], np.int64)

# Which orderings are kept as top lists, to propose candidates without a pass over the catalogue. The last one is
# "latest touch".
TOP_LISTS = ("count_10_events", "count_100_events", "count_24_hours", "count_10000_events", "first_20_events")
_TOP_COUNT = np.array([COUNT_NAMES.index(name) for name in TOP_LISTS], np.int64)
TOP_LIST_COUNT = len(TOP_LISTS) + 1
# A user who has seen the whole top of a list needs what is below it: the most active of 943 film raters has seen 737
# items.
TOP_LIST_LENGTH = 1_024

# How many of a user's latest distinct items an event is paired with, and the decay of the pair's weight by distance
# (tuned on validation in research/model-study.md, co-visitation: window 20, decay .9).
PAIR_WINDOW = 12
_PAIR_WEIGHTS = (0.9 ** np.arange(PAIR_WINDOW)).astype(np.float32)
# Directed pairs ("after this, that") look three items back.
FOLLOW_WINDOW = 3
_FOLLOW_WEIGHTS = (0.6 ** np.arange(FOLLOW_WINDOW)).astype(np.float32)
# Two choices of one page, basket or visit have more in common than two of one user: beside its weight a pair keeps how
# near in time it was chosen, which is half for this gap (models/README.md: 5 to 60 s are alike).
NEAR_MS = 20_000.0
# Neighbours kept an item: bounds memory at 12 KiB an item; 1,682 films lose nothing measurable, and a catalogue of a
# million items rarely has an item with a thousand real neighbours.
MAX_NEIGHBOURS = 512
_FIRST_ROW = 8
# A full row gives up the weakest of this many entries spread over it, others each time: the weakest of all would cost a
# pass over the row for every new pair.
_EVICTION_LOOK = 16


class Touches(NamedTuple):
    """One row a counted interaction, in the order they happened."""

    item: npt.NDArray[np.int32]
    """int32[n], item index."""
    event_time_ms: npt.NDArray[np.int64]
    """int64[n]."""
    value: npt.NDArray[np.float32]
    """float32[n], how much the user liked it, 0 to 1 (`models.domain.state.liking`)."""
    first: npt.NDArray[np.bool_]
    """bool[n], the user's first touch of the item."""
    strong: npt.NDArray[np.bool_]
    """bool[n], a kind or rating that says more than a view."""
    recent: npt.NDArray[np.int32]
    """int32[n, PAIR_WINDOW], the user's latest distinct items before this one, latest first, -1 where there is none."""
    recent_gap_ms: npt.NDArray[np.int64]
    """int64[n, PAIR_WINDOW], since the user's latest touch of each of them; NOT_TOLD."""
    tag: npt.NDArray[np.int32]
    """int32[n], the user's (`models.domain.state.UserState.tag`), 0 = not known."""
    chosen: npt.NDArray[np.int32]
    """int32[n], distinct items the user had chosen before."""
    gap_ms: npt.NDArray[np.int64]
    """int64[n], since the user's event before; FIRST_EVENT, NOT_TOLD (`models.domain.circumstances`)."""


class Rows(NamedTuple):
    """Sparse rows of pair weights: row i holds size[i] (neighbour, weight) entries from start[i] on in the pool."""

    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    capacity: npt.NDArray[np.int32]
    neighbour: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]
    near: npt.NDArray[np.float32]
    """float32[pool], sum of how near in time the pair was chosen, from 0 to 1 each time (`nearness`); float32[0] of
    directed pairs, of which nobody asks it."""
    used: npt.NDArray[np.int64]
    """int64[1], entries of the pool handed out."""
    total: npt.NDArray[np.float32]
    """float32[N], sum of all pair weights the item ever had."""
    inverse_root: npt.NDArray[np.float32]
    """float32[N], 1 / (1 + sqrt(total)), what co-visitation is normalised by."""
    near_total: npt.NDArray[np.float32]
    near_root: npt.NDArray[np.float32]
    """float32[N], the same two of `near`; float32[0] without it."""


class StatisticsArrays(NamedTuple):
    """What the compiled functions see."""

    log_count: npt.NDArray[np.float64]
    """float64[N, C], log2 of the forward-decayed count; -inf where nothing was counted."""
    touched_at: npt.NDArray[np.float64]
    """float64[N], event clock of the latest touch, -1 before the first."""
    touched_ms: npt.NDArray[np.int64]
    born_ms: npt.NDArray[np.int64]
    """int64[N], event time of the earliest touch; a huge number before it."""
    touches: npt.NDArray[np.float64]
    value_sum: npt.NDArray[np.float64]
    value_all: npt.NDArray[np.float64]
    """float64[2], sum and number of all values."""
    clock: npt.NDArray[np.float64]
    """float64[1], touches counted so far: the clock of half-lives in events."""
    top: npt.NDArray[np.int32]
    """int32[L, TOP_LIST_LENGTH], item indices by falling count; the last list by latest touch."""
    top_size: npt.NDArray[np.int64]
    top_place: npt.NDArray[np.int32]
    """int32[L, N], place in the list or -1."""
    pairs: Rows
    follows: Rows
    choosers: Choosers
    circumstances: Circumstances


_PER_ITEM = ("log_count", "touched_at", "touched_ms", "born_ms", "touches", "value_sum")
_NEVER_MS = np.int64(2**62)


@njit(cache=True)
def _log2_add(a: float, b: float) -> float:  # pragma: no cover - compiled
    if a < b:
        a, b = b, a
    if b == -np.inf:
        return a
    return a + np.log2(1.0 + 2.0 ** (b - a))


@njit(cache=True)
def _raise_in_top(keys, members, size, place, item):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Move `item`, whose key grew, to its place in one top list. Counts only grow: no other item has to move in."""
    if keys[item] == -np.inf:
        return size  # counted by others of its counts only
    length = members.shape[0]
    at = place[item]
    if at < 0:
        if size < length:
            at = size
            size += 1
        else:
            at = length - 1
            out = members[at]
            if keys[out] > keys[item] or (keys[out] == keys[item] and out < item):
                return size
            place[out] = -1
    key = keys[item]
    while at > 0:
        above = members[at - 1]
        if keys[above] > key or (keys[above] == key and above < item):
            break
        members[at] = above
        place[above] = at
        at -= 1
    members[at] = item
    place[item] = at
    return size


@njit(cache=True)
def _find(neighbour, start, size, other):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    found, other = np.int32(-1), np.int32(other)
    row = neighbour[start : start + size]
    for k in range(row.shape[0]):  # no early exit: the loop is vectorised, and five times as fast as one that stops
        found = max(found, np.int32(k) if row[k] == other else np.int32(-1))
    return found


@njit(cache=True)
def nearness(gap_ms):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """How near in time two choices of a user are, 1 in the same instant, 0 where the gap is not told."""
    return np.float32(NEAR_MS / (NEAR_MS + gap_ms)) if gap_ms >= 0 else np.float32(0.0)


@njit(cache=True, inline="always")
def _add_pair(rows, item, other, weight, near, clock):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    # In one piece and in its caller: to hand the tuple of arrays over takes longer than much of what is done with it.
    start, size, keeps_near = rows.start[item], rows.size[item], rows.near.shape[0] > 0
    found = _find(rows.neighbour, start, np.int64(size), other)
    entry, is_new = start + found, found < 0
    if is_new and size == rows.capacity[item] and size < MAX_NEIGHBOURS:
        moved, grown = rows.used[0], min(MAX_NEIGHBOURS, max(_FIRST_ROW, 2 * size))
        for k in range(size):
            rows.neighbour[moved + k] = rows.neighbour[start + k]
            rows.weight[moved + k] = rows.weight[start + k]
        for k in range(size if keeps_near else 0):
            rows.near[moved + k] = rows.near[start + k]
        start = moved
        rows.start[item], rows.capacity[item] = moved, grown
        rows.used[0] = moved + grown
    if is_new and size < MAX_NEIGHBOURS:
        entry = start + size
        rows.size[item] = size + 1
    elif is_new:
        first, stride = (np.int64(clock) * 7919) % size, size // _EVICTION_LOOK
        entry = start + first
        for k in range(1, _EVICTION_LOOK):
            at = start + (first + k * stride) % size
            entry = at if rows.weight[at] < rows.weight[entry] else entry
    if is_new:
        rows.neighbour[entry] = other
        rows.weight[entry] = 0.0
    rows.weight[entry] += weight
    if keeps_near:
        rows.near[entry] = near if is_new else rows.near[entry] + near


@njit(cache=True)
def touch_one(arrays, item, event_time_ms, value, first, strong, recent, recent_gap_ms, tag, chosen, gap_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Count one interaction."""
    arrays.clock[0] += 1.0
    clock = arrays.clock[0]
    hours = event_time_ms / MS_PER_HOUR
    for c in range(_HALF_LIVES.shape[0]):
        what = _WHAT[c]
        if what == 0 or (what == 1 and first) or (what == 2 and strong):
            at = clock if _BY_EVENTS[c] else hours
            arrays.log_count[item, c] = _log2_add(arrays.log_count[item, c], at / _HALF_LIVES[c])
    arrays.touched_at[item] = clock
    arrays.touched_ms[item] = max(arrays.touched_ms[item], event_time_ms)
    arrays.born_ms[item] = min(arrays.born_ms[item], event_time_ms)
    arrays.touches[item] += 1.0
    arrays.value_sum[item] += value
    arrays.value_all[0] += value
    arrays.value_all[1] += 1.0
    for t in range(_TOP_COUNT.shape[0]):
        arrays.top_size[t] = _raise_in_top(
            arrays.log_count[:, _TOP_COUNT[t]], arrays.top[t], arrays.top_size[t], arrays.top_place[t], item
        )
    t = _TOP_COUNT.shape[0]
    arrays.top_size[t] = _raise_in_top(arrays.touched_at, arrays.top[t], arrays.top_size[t], arrays.top_place[t], item)
    note_circumstances(arrays.circumstances, item, clock, first, chosen, gap_ms)
    if first:
        note_chooser(arrays.choosers, item, tag, chosen, event_time_ms)
        for age in range(recent.shape[0]):
            other = recent[age]
            if other < 0:
                break
            if other == item:
                continue
            weight, near = _PAIR_WEIGHTS[age], nearness(recent_gap_ms[age])
            _add_pair(arrays.pairs, item, other, weight, near, clock)
            _add_pair(arrays.pairs, other, item, weight, near, clock)
            total, near_total = arrays.pairs.total, arrays.pairs.near_total
            total[item] += weight
            total[other] += weight
            near_total[item] += near
            near_total[other] += near
            arrays.pairs.inverse_root[other] = 1.0 / (1.0 + np.sqrt(total[other]))
            arrays.pairs.near_root[other] = 1.0 / (1.0 + np.sqrt(near_total[other]))
            if age < FOLLOW_WINDOW:
                _add_pair(arrays.follows, other, item, _FOLLOW_WEIGHTS[age], np.float32(0.0), clock)
                arrays.follows.total[other] += _FOLLOW_WEIGHTS[age]
        arrays.pairs.inverse_root[item] = 1.0 / (1.0 + np.sqrt(arrays.pairs.total[item]))
        arrays.pairs.near_root[item] = 1.0 / (1.0 + np.sqrt(arrays.pairs.near_total[item]))


@njit(cache=True)
def _touch_many(arrays, item, event_time_ms, value, first, strong, recent, recent_gap_ms, tag, chosen, gap_ms):  # type: ignore[no-untyped-def]  # pragma: no cover
    for k in range(item.shape[0]):
        touch_one(
            arrays,
            item[k],
            event_time_ms[k],
            value[k],
            first[k],
            strong[k],
            recent[k],
            recent_gap_ms[k],
            tag[k],
            chosen[k],
            gap_ms[k],
        )


# Pool entries one touch can take at the worst: its own row and every partner's row grown to the limit (a row that
# doubles its way up there takes twice the limit in all).
_ENTRIES_PER_TOUCH = 2 * (PAIR_WINDOW + 1) * MAX_NEIGHBOURS


class Statistics:
    """The statistics of all items, grown as the catalogue grows.

    `update` changes them, everything else only reads. The same touches in the same order give the same bits.
    """

    def __init__(self, capacity: int = 1_024) -> None:
        self.arrays = _empty(max(1, capacity))

    @property
    def capacity(self) -> int:
        return int(self.arrays.touches.shape[0])

    @property
    def clock(self) -> int:
        return int(self.arrays.clock[0])

    def reserve(self, items: int, touches: int) -> None:
        """Make room for item indices below `items` and for `touches` more touches: compiled code never allocates."""
        if items > self.capacity:
            self.arrays = _grown(self.arrays, max(items, 2 * self.capacity))
        for rows in ("pairs", "follows"):
            pool: Rows = getattr(self.arrays, rows)
            entries = int(pool.size.sum(dtype=np.int64))
            # A row that gains a entries while it doubles takes at most 4 (size + a), or a first row, from the pool.
            needed = min(touches * _ENTRIES_PER_TOUCH, 4 * entries + 2 * (PAIR_WINDOW + 1) * _FIRST_ROW * touches)
            if pool.neighbour.shape[0] - int(pool.used[0]) < needed:
                self.arrays = _with_rows(self.arrays, rows, _compacted(pool, 2 * needed + entries))

    def update(self, touches: Touches) -> None:
        if len(touches.item):
            self.reserve(int(max(touches.item.max(), touches.recent.max())) + 1, len(touches.item))
            _touch_many(self.arrays, *touches)

    def dump(self) -> dict[str, Any]:
        """Everything as named arrays cut to the items in use, for a snapshot; `load` is the inverse."""
        # An item may stand in pairs without a touch of its own: somebody's earlier one, from before the statistics
        # began.
        in_use = (self.arrays.touches > 0) | (self.arrays.pairs.size > 0) | (self.arrays.follows.size > 0)
        used = int(np.flatnonzero(in_use).max(initial=-1)) + 1
        out: dict[str, Any] = {"items": used}
        for name in _PER_ITEM:
            out[name] = getattr(self.arrays, name)[:used].copy()
        out["value_all"], out["clock"] = self.arrays.value_all.copy(), self.arrays.clock.copy()
        for name in Choosers._fields:
            out[f"chooser_{name}"] = getattr(self.arrays.choosers, name)[:used].copy()
        for name in CIRCUMSTANCES_PER_ITEM:
            out[f"circumstances_{name}"] = getattr(self.arrays.circumstances, name)[:used].copy()
        out["circumstances_everybody"] = self.arrays.circumstances.everybody.copy()
        for rows in ("pairs", "follows"):
            pool = _compacted(getattr(self.arrays, rows), 0)
            for name in ("size", "total", "near_total"):
                out[f"{rows}_{name}"] = getattr(pool, name)[:used].copy()
            for name in ("neighbour", "weight", "near"):
                out[f"{rows}_{name}"] = getattr(pool, name)[: int(pool.used[0])].copy()
        return out

    @classmethod
    def load(cls, dumped: dict[str, Any], index: npt.NDArray[np.int32], items: int) -> Statistics:
        """Restore a dump into another catalogue's numbering.

        Args:
            index: int32[dumped items], the new index of each dumped item.
            items: number of items of the new catalogue.
        Raises: StateError when the dump does not fit this version's counts.
        """
        if dumped["log_count"].shape[1] != len(COUNTS):
            raise StateError("the statistics snapshot was written with other counts")
        self = cls(max(items, 1))
        arrays = self.arrays
        for name in _PER_ITEM:
            getattr(arrays, name)[index] = dumped[name]
        arrays.value_all[:], arrays.clock[:] = dumped["value_all"], dumped["clock"]
        # A former release's snapshot knows no choosers: they are noted from now on.
        if "chooser_tag" in dumped and dumped["chooser_tag"].shape[1] == CHOOSERS:
            told = {"chooser_first": first_choosers(dumped["chooser_tag"], dumped["chooser_total"]), **dumped}
            for name in Choosers._fields:
                getattr(arrays.choosers, name)[index] = told[f"chooser_{name}"]
        if "circumstances_born_at" in dumped:
            for name in CIRCUMSTANCES_PER_ITEM:
                getattr(arrays.circumstances, name)[index] = dumped[f"circumstances_{name}"]
            arrays.circumstances.everybody[:] = dumped["circumstances_everybody"]
        else:
            # A former release's snapshot: its items came before anything that is told from now on.
            arrays.circumstances.born_at[index[np.asarray(dumped["touches"]) > 0]] = 0.0
        for rows in ("pairs", "follows"):
            sizes = dumped[f"{rows}_size"].astype(np.int64)
            starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
            pool = _empty_rows(self.capacity, max(1, int(sizes.sum())), near=rows == "pairs")
            pool.start[index], pool.size[index], pool.capacity[index] = starts, sizes, sizes
            pool.total[index] = dumped[f"{rows}_total"]
            if rows == "pairs" and "pairs_near" in dumped:  # a former release's snapshot does not tell it
                pool.near_total[index] = dumped["pairs_near_total"]
                pool.near[: sizes.sum()] = dumped["pairs_near"]
            # In the precision of the compiled code, so that a restored worker ranks to the bit as the others do.
            pool.inverse_root[:] = 1.0 / (1.0 + np.sqrt(pool.total).astype(np.float64))
            pool.near_root[:] = 1.0 / (1.0 + np.sqrt(pool.near_total).astype(np.float64))
            pool.neighbour[: sizes.sum()] = index[dumped[f"{rows}_neighbour"]]
            pool.weight[: sizes.sum()] = dumped[f"{rows}_weight"]
            pool.used[0] = sizes.sum()
            self.arrays = _with_rows(self.arrays, rows, pool)
        for t in range(TOP_LIST_COUNT):
            keys = self.arrays.touched_at if t == len(TOP_LISTS) else self.arrays.log_count[:, _TOP_COUNT[t]]
            known = np.flatnonzero(keys > (-1.0 if t == len(TOP_LISTS) else -np.inf))
            order = known[np.lexsort((known, -keys[known]))][:TOP_LIST_LENGTH]
            self.arrays.top[t, : len(order)] = order
            self.arrays.top_size[t] = len(order)
            self.arrays.top_place[t, order] = np.arange(len(order))
        return self


def pack_dump(dumped: dict[str, Any]) -> bytes:
    """A dump as bytes (MessagePack of dtype, shape and little-endian data); no pickle."""
    return msgspec.msgpack.encode(
        {k: (v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for k, v in dumped.items()}
    )


def unpack_dump(data: bytes) -> dict[str, Any]:
    """Raises: StateError for bytes that are no dump."""
    try:
        return {
            k: np.frombuffer(v[2], np.dtype(v[0])).reshape(v[1]) if isinstance(v, list) else v
            for k, v in msgspec.msgpack.decode(data).items()
        }
    except (msgspec.DecodeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise StateError(f"unreadable statistics snapshot: {error}") from error


def _empty_rows(items: int, pool: int, *, near: bool) -> Rows:
    return Rows(
        start=np.zeros(items, np.int64),
        size=np.zeros(items, np.int32),
        capacity=np.zeros(items, np.int32),
        neighbour=np.zeros(pool, np.int32),
        weight=np.zeros(pool, np.float32),
        near=np.zeros(pool if near else 0, np.float32),
        used=np.zeros(1, np.int64),
        total=np.zeros(items, np.float32),
        inverse_root=np.ones(items, np.float32),
        near_total=np.zeros(items if near else 0, np.float32),
        near_root=np.ones(items if near else 0, np.float32),
    )


def _empty(items: int) -> StatisticsArrays:
    return StatisticsArrays(
        log_count=np.full((items, len(COUNTS)), -np.inf),
        touched_at=np.full(items, -1.0),
        touched_ms=np.zeros(items, np.int64),
        born_ms=np.full(items, _NEVER_MS, np.int64),
        touches=np.zeros(items),
        value_sum=np.zeros(items),
        value_all=np.zeros(2),
        clock=np.zeros(1),
        top=np.zeros((TOP_LIST_COUNT, TOP_LIST_LENGTH), np.int32),
        top_size=np.zeros(TOP_LIST_COUNT, np.int64),
        top_place=np.full((TOP_LIST_COUNT, items), -1, np.int32),
        pairs=_empty_rows(items, 4_096, near=True),
        follows=_empty_rows(items, 4_096, near=False),
        choosers=new_choosers(items),
        circumstances=new_circumstances(items),
    )


def _with_rows(arrays: StatisticsArrays, name: str, rows: Rows) -> StatisticsArrays:
    return arrays._replace(pairs=rows) if name == "pairs" else arrays._replace(follows=rows)


def _grown(old: StatisticsArrays, items: int) -> StatisticsArrays:
    new, n = _empty(items), old.touches.shape[0]
    for name in _PER_ITEM:
        getattr(new, name)[:n] = getattr(old, name)
    for name in Choosers._fields:
        getattr(new.choosers, name)[:n] = getattr(old.choosers, name)
    for name in CIRCUMSTANCES_PER_ITEM:
        getattr(new.circumstances, name)[:n] = getattr(old.circumstances, name)
    new.circumstances.everybody[:] = old.circumstances.everybody
    new.top_place[:, :n] = old.top_place
    keep = {name: getattr(old, name) for name in ("value_all", "clock", "top", "top_size")}
    for rows in ("pairs", "follows"):
        pool: Rows = getattr(old, rows)
        wide = _empty_rows(items, 1, near=rows == "pairs")
        for name in ("start", "size", "capacity", "total", "inverse_root", "near_total", "near_root"):
            known = getattr(pool, name)
            getattr(wide, name)[: len(known)] = known
        keep[rows] = wide._replace(neighbour=pool.neighbour, weight=pool.weight, near=pool.near, used=pool.used)
    return new._replace(**keep)


def _compacted(rows: Rows, free: int) -> Rows:
    """The same rows without the holes that moved rows left, with `free` entries to hand out."""
    sizes = rows.size.astype(np.int64)
    capacity = rows.capacity.astype(np.int64) if free else sizes
    starts = np.concatenate([[0], np.cumsum(capacity)[:-1]]).astype(np.int64)
    used = int(capacity.sum())
    new = rows._replace(
        start=starts,
        capacity=capacity.astype(np.int32),
        neighbour=np.zeros(used + free, np.int32),
        weight=np.zeros(used + free, np.float32),
        near=np.zeros(used + free if len(rows.near_total) else 0, np.float32),
        used=np.array([used], np.int64),
    )
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    source, target = np.repeat(rows.start, sizes) + within, np.repeat(starts, sizes) + within
    new.neighbour[target] = rows.neighbour[source]
    new.weight[target] = rows.weight[source]
    if len(new.near):
        new.near[target] = rows.near[source]
    return new
