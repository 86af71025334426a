"""The item tower: one ONNX graph over an item's text, and a table of what training learned of single items.

Graph contract: `text` float32[N, E] -> `item` float32[N, D], the vector of an item that no training event named. The
table's row is added to it for an item that one named. Knows no catalogue.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from models.domain.errors import EncoderError
from models.domain.ports import F32
from models.encoders.session import input_names, output_names, run

OUTPUTS = ("item",)


class OnnxItemEncoder:
    """`ItemEncoder` on ONNX Runtime; an item is known before its first event, from its text.

    Args:
        item_ids, table: ids and float32[M, D] of the items that training knows; none for a tower of text alone.
    Raises: EncoderError when the graph has other inputs or outputs than the contract above, or the table does not fit.
    """

    def __init__(self, session: Any, *, dimension: int, item_ids: Sequence[str] = (), table: F32 | None = None) -> None:
        if input_names(session) != ("text",) or output_names(session) != OUTPUTS:
            raise EncoderError(
                f"item: {input_names(session)} -> {output_names(session)}, needed ('text',) -> {OUTPUTS}"
            )
        if table is None:
            table = np.zeros((0, dimension), np.float32)
        if table.shape != (len(item_ids), dimension) or table.dtype != np.float32:
            raise EncoderError(f"item: table {table.dtype}{table.shape}, needed float32{(len(item_ids), dimension)}")
        self.dimension = dimension
        self._text_dimension = int(session.get_inputs()[0].shape[1])
        self._unknown: F32 | None = None
        self._session = session
        self._table = table
        self._rows = {item_id: row for row, item_id in enumerate(item_ids)}
        if len(self._rows) != len(item_ids):
            raise EncoderError("item: the table names an item twice")

    @property
    def known_items(self) -> int:
        """Items of the table."""
        return len(self._rows)

    def encode_many(self, item_ids: Sequence[str], text: F32) -> F32:
        if len(item_ids) != len(text):
            raise EncoderError(f"item: {len(item_ids)} ids and {len(text)} texts")
        items = self._run(text)
        if self._rows:
            rows = np.fromiter((self._rows.get(item_id, -1) for item_id in item_ids), np.int64, len(item_ids))
            known = np.flatnonzero(rows >= 0)
            items[known] += self._table[rows[known]]
        return items

    def _run(self, text: F32) -> F32:
        items: F32 = run(self._session, OUTPUTS, {"text": np.asarray(text, np.float32)})[0]
        return items

    def placeholder(self, item_id: str) -> F32:
        if self._unknown is None:
            self._unknown = self._run(np.zeros((1, self._text_dimension), np.float32))[0]
        row = self._rows.get(item_id)
        return self._unknown if row is None else self._unknown + self._table[row]


def encode_item_ids(item_ids: Sequence[str]) -> bytes:
    return msgspec.msgpack.encode(list(item_ids))


def decode_item_ids(data: bytes) -> list[str]:
    """Raises: EncoderError."""
    try:
        return msgspec.msgpack.decode(data, type=list[str])
    except msgspec.DecodeError as error:
        raise EncoderError(f"item: no list of ids: {error}") from error


def encode_table(table: F32) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(table, np.float32), allow_pickle=False)
    return out.getvalue()


def decode_table(data: bytes) -> F32:
    """Raises: EncoderError; pickled contents are refused."""
    try:
        table: F32 = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise EncoderError(f"item: no table: {error}") from error
    return table
