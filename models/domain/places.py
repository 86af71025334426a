"""Places of the entries of a list by their keys, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

# Keys are sorted by their bits, a byte at a time.
_BYTE, _BUCKETS = np.uint32(255), 256
_LEAST = np.int32(-(2**31))


@njit(cache=True)
def places(keys):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Place of each entry by falling key, from 0; equal keys stand in the order of the entries.

    A radix sort, whose time does not hang on the keys: one that compares 300 of them waits for a wrong guess of the
    processor a thousand times, and to count who is ahead of each takes twice as long.

    Args:
        keys: float32[n], contiguous; no NaN.
    Returns: float32[n].
    """
    size = keys.shape[0]
    bits = (keys + np.float32(0.0)).view(np.int32)  # the two zeros are equal
    codes, starts = np.empty(size, np.uint32), np.zeros((_BUCKETS, 4), np.int32)
    for k in range(size):
        # As whole numbers positive keys rise with their bits, negative ones fall; all turned round, the largest first.
        code = np.uint32(~(bits[k] ^ ((bits[k] >> np.int32(31)) | _LEAST)))
        codes[k] = code
        starts[code & _BYTE, 0] += 1
        starts[(code >> np.uint32(8)) & _BYTE, 1] += 1
        starts[(code >> np.uint32(16)) & _BYTE, 2] += 1
        starts[code >> np.uint32(24), 3] += 1
    first, second, third, fourth = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for b in range(_BUCKETS):
        one, two, three, four = starts[b, 0], starts[b, 1], starts[b, 2], starts[b, 3]
        starts[b, 0], starts[b, 1], starts[b, 2], starts[b, 3] = first, second, third, fourth
        first, second, third, fourth = first + one, second + two, third + three, fourth + four
    order, again = np.empty(size, np.uint32), np.empty(size, np.uint32)
    for k in range(size):
        at = starts[codes[k] & _BYTE, 0]
        order[np.uint32(at)] = k
        starts[codes[k] & _BYTE, 0] = at + np.int32(1)
    for byte in range(1, 3):
        shift = np.uint32(8 * byte)
        for k in range(size):
            bucket = (codes[order[k]] >> shift) & _BYTE
            at = starts[bucket, byte]
            again[np.uint32(at)] = order[k]
            starts[bucket, byte] = at + np.int32(1)
        order, again = again, order
    found = np.empty(size, np.float32)
    for k in range(size):
        bucket = codes[order[k]] >> np.uint32(24)
        found[order[k]] = starts[bucket, 3]
        starts[bucket, 3] += np.int32(1)
    return found
