"""Hashed terms of a text: what a linear model reads of words without a vocabulary. Knows no value and no model.

Training and serving must count the very same terms; so this file is the only place that makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

# 65,536 rows of a few floats; 90,000 distinct terms in them predicted no worse than in 262,144.
BUCKET_BITS = 16
BUCKETS = 1 << BUCKET_BITS
# What a review says after this moved the error by less than its noise; the cut bounds the time.
MAX_CHARACTERS = 2_000
# People open with the verdict: its characters count once more, four at a time, so that forms of a word are kin. Gain:
# 0.004 of five stars. Opening and closing words gave nothing beside them; grams of the whole text 0.002, at thrice the
# time.
OPENING_CHARACTERS = 64
GRAM = 4
# Texts hashed at once: bounds the arrays of a long log.
CHUNK = 256

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_WORD, _PAIR, _GRAM = (np.uint64(0xD6E8FEB86659FD93 * k % 2**64) for k in range(1, 4))
_SECOND = np.uint64(0xA0761D6478BD642F)

SEPARATOR, LETTER, ALONE = 0, 1, 2
_APOSTROPHE = ord("'")
# Beyond ASCII, first code point of a range and its class. Scripts without spaces between words (Han, kana, Thai, Lao,
# Khmer, Burmese), symbols and emoji are words of one character; the pairs then do the work of words.
_RANGES = (
    (0x80, SEPARATOR), (0xAA, LETTER), (0xAB, SEPARATOR), (0xB5, LETTER), (0xB6, SEPARATOR), (0xC0, LETTER),
    (0xD7, SEPARATOR), (0xD8, LETTER), (0xF7, SEPARATOR), (0xF8, LETTER), (0xE00, ALONE), (0xF00, LETTER),
    (0x1000, ALONE), (0x10A0, LETTER), (0x1780, ALONE), (0x1800, LETTER), (0x2000, SEPARATOR), (0x2070, LETTER),
    (0x20A0, ALONE), (0x2C00, LETTER), (0x2E80, ALONE), (0x3000, SEPARATOR), (0x3005, ALONE), (0x3008, SEPARATOR),
    (0x3021, ALONE), (0xA000, LETTER), (0xF900, ALONE), (0xFB00, LETTER), (0xFE00, SEPARATOR), (0xFE70, LETTER),
    (0xFF00, SEPARATOR), (0xFF10, LETTER), (0xFF1A, SEPARATOR), (0xFF21, LETTER), (0xFF3B, SEPARATOR),
    (0xFF41, LETTER), (0xFF5B, SEPARATOR), (0xFF66, ALONE), (0xFFE0, SEPARATOR), (0x10000, LETTER),
    (0x1F000, ALONE), (0xE0000, SEPARATOR),
)  # fmt: skip
_STARTS = np.array([start for start, _ in _RANGES], np.uint32)
_CLASSES = np.array([kind for _, kind in _RANGES], np.int8)
_ASCII = np.array([LETTER if chr(c).isalnum() else ALONE if chr(c) in "!?" else SEPARATOR for c in range(128)], np.int8)


class Terms(NamedTuple):
    """Distinct terms of B texts; axis M runs over the texts' terms, text by text."""

    ids: I64
    """int64[M], 0 to BUCKETS - 1, rising within a text."""
    counts: F32
    """float32[M], how often the term stands in its text."""
    offsets: I64
    """int64[B + 1], where each text's terms start."""


def hashed_terms(texts: Sequence[str]) -> Terms:
    """Words, pairs of words, and the opening's characters four at a time, as buckets with counts.

    A text's terms do not depend on the texts beside it, nor on the process: the hash is arithmetic, not Python's.
    """
    parts = [_chunk(texts[at : at + CHUNK]) for at in range(0, len(texts), CHUNK)]
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.offsets) for part in parts)])
    return Terms(
        ids=np.concatenate([np.zeros(0, np.int64), *(part.ids for part in parts)]),
        counts=np.concatenate([np.zeros(0, np.float32), *(part.counts for part in parts)]),
        offsets=np.cumsum(lengths),
    )


def _chunk(texts: Sequence[str]) -> Terms:
    lowered = [text[:MAX_CHARACTERS].lower()[:MAX_CHARACTERS] for text in texts]
    sizes = np.array([len(text) for text in lowered], np.int64)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes + 1)])  # one separator closes each text
    joined = "\n".join([*lowered, ""]).replace("\u2019", "'")
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    prefix, inverse = _prefix_hash(codes)
    starts, ends = _words(codes)
    words = (prefix[ends] - prefix[starts]) * inverse[starts]
    row = np.searchsorted(first, starts, side="right") - 1
    pairs = words[:-1] * _SECOND + words[1:]
    paired = row[:-1] == row[1:]

    grams = np.minimum(sizes, OPENING_CHARACTERS) - GRAM + 1
    gram_row = np.repeat(np.arange(len(texts)), np.maximum(grams, 0))
    gram_rank = np.arange(len(gram_row)) - np.searchsorted(gram_row, gram_row)
    at = first[gram_row] + gram_rank
    gram_hash = (prefix[at + GRAM] - prefix[at]) * inverse[at]

    hashes = np.concatenate([words + _WORD, pairs[paired] + _PAIR, gram_hash + _GRAM])
    rows = np.concatenate([row, row[:-1][paired], gram_row])
    keys = np.sort((rows << BUCKET_BITS) | _buckets(hashes))
    new = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), np.bool_), keys[1:] != keys[:-1]]))
    distinct = keys[new]
    return Terms(
        ids=distinct & (BUCKETS - 1),
        counts=np.diff(np.append(new, len(keys))).astype(np.float32),
        offsets=np.searchsorted(distinct, np.arange(len(texts) + 1) << BUCKET_BITS),
    )


def _prefix_hash(codes: npt.NDArray[np.uint32]) -> tuple[U64, U64]:
    """Sums of code times a rising power, and the powers' inverses: the hash of any stretch in two look-ups.

    Source: Karp and Rabin 1987, modulo 2**64.
    """
    powers = np.full(len(codes) + 1, _BASE, np.uint64)
    inverse = np.full(len(codes) + 1, _INVERSE, np.uint64)
    powers[0] = inverse[0] = 1
    np.cumprod(powers, out=powers)
    np.cumprod(inverse, out=inverse)
    prefix = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=prefix[1:])
    return prefix, inverse


def _words(codes: npt.NDArray[np.uint32]) -> tuple[I64, I64]:
    """Where each word starts and ends; an apostrophe between letters belongs to its word."""
    kinds = _ASCII[np.minimum(codes, 127)]
    beyond = np.flatnonzero(codes > 127)
    if len(beyond):
        kinds[beyond] = _CLASSES[np.searchsorted(_STARTS, codes[beyond], side="right") - 1]
    marks = np.flatnonzero(codes[1:-1] == _APOSTROPHE) + 1
    kinds[marks[(kinds[marks - 1] == LETTER) & (kinds[marks + 1] == LETTER)]] = LETTER
    edged = np.zeros(len(kinds) + 2, np.int8)
    edged[1:-1] = kinds
    here, letter, alone = edged[1:-1], edged == LETTER, edged[1:-1] == ALONE
    starts = np.flatnonzero(alone | ((here == LETTER) & ~letter[:-2]))
    ends = np.flatnonzero(alone | ((here == LETTER) & ~letter[2:])) + 1
    return starts, ends


def _buckets(hashes: U64) -> I64:
    """The finaliser of MurmurHash3, then the top bits: sums of powers are weak in their low ones."""
    mixed = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return (mixed >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)
