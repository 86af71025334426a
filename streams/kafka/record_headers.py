"""Lets aiokafka read records whose header names are not UTF-8: to Kafka a name is bytes, to aiokafka it is text.

One such record, which any producer can send, would otherwise raise out of every fetch of its partition, for good. Knows
nothing of what a header means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


def accept_any_header_name() -> None:
    """From now on consumers of this process show a byte of a name that is no UTF-8 as `\\xff`. May be repeated."""
    # The fetcher takes the class from its module; there is no way to hand it one.
    fetcher.MemoryRecords = _Records


class _EscapingBytes(bytearray):
    """Slices that decode whatever they hold; the parser decodes nothing but header names."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _EscapingBytes(found) if isinstance(place, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self).decode(encoding, "backslashreplace")


class _EscapingBatch(_DefaultRecordBatchPy):
    """aiokafka's own parser in Python, over bytes that decode leniently."""

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _EscapingBytes(self._buffer)


class _Batch:
    """A record batch read by the compiled parser, and by the lenient one where that finds a name it cannot read."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._compiled = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def __next__(self) -> Any:
        return next(self._compiled)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._compiled))
        except UnicodeDecodeError:
            return iter(list(_EscapingBatch(self._data)))


class _Records(_MemoryRecordsPy):
    """The batches of one fetch."""

    def next_batch(self, *args: Any) -> Any:
        data = self._next_slice
        batch = super().next_batch(*args)
        return _Batch(data) if data is not None and isinstance(batch, DefaultRecordBatch) else batch
