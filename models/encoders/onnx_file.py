"""Reads the opset off an ONNX file without the `onnx` package, which a worker does not install."""

from __future__ import annotations

from collections.abc import Iterator

from models.domain.errors import EncoderError

# Field numbers of onnx.proto: ModelProto.opset_import, OperatorSetIdProto.domain and .version.
OPSET_IMPORT, DOMAIN, VERSION = 8, 1, 2
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def graph_opset(name: str, data: bytes) -> int:
    """Version of the default operator set that the graph imports.

    Raises: EncoderError when the bytes are no ONNX model.
    """
    try:
        for field, value in _fields(data):
            if field == OPSET_IMPORT and isinstance(value, bytes):
                imported = dict(_fields(value))
                version = imported.get(VERSION)
                if imported.get(DOMAIN, b"") in (b"", b"ai.onnx") and isinstance(version, int):
                    return version
    except (IndexError, ValueError) as error:
        raise EncoderError(f"{name}: not an ONNX file") from error
    raise EncoderError(f"{name}: not an ONNX file, or one without the default operator set")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield field, value
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        elif wire == LENGTH:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field runs past the end")
            yield field, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")
