"""Bounded heaps and inner products over index arrays, compiled: the tools of candidate search and of picking places."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def _before(keys, a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return keys[a] > keys[b] or (keys[a] == keys[b] and a < b)


@njit(cache=True)
def push(keys, item, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Put an item into the heap out[:size], worst kept first, of at most len(out) items; returns the new size."""
    if size < out.shape[0]:
        at = size
        while at > 0:
            parent = (at - 1) // 2
            if _before(keys, item, out[parent]):
                break
            out[at] = out[parent]
            at = parent
        out[at] = item
        return size + 1
    if _before(keys, item, out[0]):
        _sink(keys, item, out, size)
    return size


@njit(cache=True)
def _sink(keys, item, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys, out[child], out[child + 1]):
            child += 1
        if _before(keys, out[child], item):
            break
        out[at] = out[child]
        at = child
    out[at] = item


@njit(cache=True)
def sort_heap(keys, out, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Turn the heap out[:size] into a list, best first."""
    for end in range(size - 1, 0, -1):
        item = out[end]
        out[end] = out[0]
        _sink(keys, item, out, end)


@njit(cache=True)
def top_of(keys, members, count, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The best of members[:count] by keys (ties by index) into `out`, best first; returns how many."""
    size = 0
    for m in range(count):
        size = push(keys, members[m], out, size)
    sort_heap(keys, out, size)
    return size


@njit(cache=True, fastmath={"reassoc", "contract"})
def dot(a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    total = np.float32(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@njit(cache=True, nogil=True)
def products(rows, stored, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """out[r, n] = dot(rows[r], stored[n]): each is summed in the same order wherever it stands, which BLAS does not do.

    Args:
        rows: float32[R, D]; stored: float32[N, D]; out: float32[R, N].
    """
    for n in range(stored.shape[0]):
        for r in range(rows.shape[0]):
            out[r, n] = dot(rows[r], stored[n])
