"""Text to embeddings: tokenizer, language model on ONNX Runtime, pooling, and a bounded cache.

Knows no event and no item. Texts are private: nothing here logs one, and the cache holds digests, not texts.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.encoders.session import input_names, run

Pooling = Literal["mean", "cls", "none"]
# Larger batches are no faster on one thread (measured: README) and hold the executor longer.
MAX_BATCH = 32
# Padded tokens in one run: 8 texts of 256. Attention takes 12 heads x T x T floats a text; so a run stays under 50 MB.
MAX_BATCH_TOKENS = 2_048
# Words of one, two and many tokens; see `_is_batch_independent`.
PROBES = ("a", "the quick brown fox", "it was a dark and stormy night, and the rain fell in torrents on the roofs")
TINY = 1e-12


class OnnxTextEncoder:
    """`TextEncoder` on ONNX Runtime; safe to call from several threads (it is meant for an executor's).

    A text has the same bytes whatever texts stand beside it. Float graphs, and graphs with quantised weights alone,
    keep that in batches; graphs that quantise activations do not. A probe at construction finds out, and those
    run one text at a time.

    Args:
        session: graph with `input_ids`, `attention_mask` (`token_type_ids` at will), int64[B, T] -> float32[B, T, E],
            or float32[B, E] where `pooling` is "none".
        tokenizer: contents of a `tokenizer.json`.
        max_tokens: longer texts are cut here, special tokens included.
        cache_size: texts remembered; one costs about 2 kB at E = 384.
    Raises: EncoderError when the tokenizer cannot be read or does not fit the graph.
    """

    def __init__(
        self,
        session: Any,
        tokenizer: bytes,
        *,
        pooling: Pooling = "mean",
        max_tokens: int = 256,
        cache_size: int = 20_000,
    ) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
            self._tokenizer.enable_truncation(max_tokens)
            self._tokenizer.no_padding()
        except Exception as error:
            raise EncoderError(f"text: the tokenizer cannot be read: {error}") from error
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown_id = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self._session = session
        self._inputs = frozenset(input_names(session))
        self._pooling: Pooling = pooling
        self._cache: OrderedDict[bytes, F32] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self.cache_hits = 0
        self.cache_misses = 0
        probes = [self._tokenizer.encode(text) for text in PROBES]
        alone = np.concatenate([self._embed([probe]) for probe in probes])
        self.dimension: int = alone.shape[1]
        self.batch_independent = self._is_batch_independent(probes, alone)

    def encode_many(self, texts: Sequence[str]) -> F32:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        places: dict[bytes, list[int]] = {}
        missing: dict[bytes, str] = {}
        with self._lock:
            for place, text in enumerate(texts):
                key = _key(text)
                cached = self._cache.get(key)
                if cached is not None:
                    self._cache.move_to_end(key)
                    self.cache_hits += 1
                    rows[place] = cached
                elif key in missing:
                    self.cache_hits += 1
                    places[key].append(place)
                else:
                    self.cache_misses += 1
                    missing[key] = text
                    places[key] = [place]
        if missing:
            found = self._encode(list(missing.values()))
            for row, key in zip(found, missing, strict=True):
                rows[places[key]] = row
            self._remember(dict(zip(missing, found, strict=True)))
        return rows

    def remembered(self, texts: Sequence[str]) -> list[F32 | None]:
        found: list[F32 | None] = []
        with self._lock:
            for text in texts:
                key = _key(text)
                cached = self._cache.get(key)
                if cached is not None:
                    self._cache.move_to_end(key)
                    self.cache_hits += 1
                found.append(None if cached is None else cached.copy())
        return found

    def _remember(self, found: dict[bytes, F32]) -> None:
        with self._lock:
            for key, row in found.items():
                # A copy: a view would keep the whole batch alive for as long as one of its rows is remembered.
                self._cache[key] = row.copy()
                self._cache.move_to_end(key)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)

    @property
    def cache_entries(self) -> int:
        return len(self._cache)

    def _encode(self, texts: list[str]) -> F32:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        encodings = [self._tokenizer.encode(_well_formed(text)) for text in texts]
        # Neighbours in length share a batch, so that little of it is padding; the order is stable.
        order = sorted(
            (i for i, e in enumerate(encodings) if self._has_content(e)), key=lambda i: len(encodings[i].ids)
        )
        for batch in self._batches(order, encodings):
            rows[batch] = self._embed([encodings[i] for i in batch])
        return rows

    def _batches(self, order: list[int], encodings: list[Encoding]) -> list[list[int]]:
        if not self.batch_independent:
            return [[i] for i in order]
        batches: list[list[int]] = []
        for i in order:
            # The newest is the longest: it sets the padded length of all.
            room = min(MAX_BATCH, MAX_BATCH_TOKENS // len(encodings[i].ids))
            if batches and len(batches[-1]) < room:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _has_content(self, encoding: Encoding) -> bool:
        # Unknown tokens only (an emoji, a script the vocabulary lacks) say nothing: all such texts would be one.
        return any(
            not special and token != self._unknown_id
            for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        )

    def _embed(self, encodings: Sequence[Encoding]) -> F32:
        longest = max(len(e.ids) for e in encodings)
        ids = np.zeros((len(encodings), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        feed: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        hidden: F32 = run(self._session, None, feed)[0]
        return _normalised(self._pool(hidden, mask))

    def _pool(self, hidden: F32, mask: npt.NDArray[np.int64]) -> F32:
        if self._pooling == "none":
            if hidden.ndim != 2:
                raise EncoderError(f"text: pooling 'none' needs an output [B, E], the graph gives {hidden.shape}")
            return hidden
        if hidden.ndim != 3:
            raise EncoderError(
                f"text: pooling {self._pooling!r} needs an output [B, T, E], the graph gives {hidden.shape}"
            )
        if self._pooling == "cls":
            return hidden[:, 0]
        # Row by row over its own tokens: a sum over padding zeros may round differently from the sum without them.
        pooled = [row[:length].sum(axis=0) / length for row, length in zip(hidden, mask.sum(axis=1), strict=True)]
        return np.stack(pooled).astype(np.float32)

    def _is_batch_independent(self, probes: list[Encoding], alone: F32) -> bool:
        """Whether a full batch of unequal lengths gives the very bytes that single runs give."""
        repeats = -(-MAX_BATCH // len(probes))
        together = self._embed((probes * repeats)[:MAX_BATCH])
        return bool(np.array_equal(together, np.concatenate([alone] * repeats)[:MAX_BATCH]))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _normalised(rows: F32) -> F32:
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    normalised: F32 = (rows / np.maximum(norms, TINY)).astype(np.float32)
    return normalised


def _well_formed(text: str) -> str:
    # A lone surrogate is no character: the tokenizer (Rust) refuses the whole string, this replaces it. Pairs join.
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
