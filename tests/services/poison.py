"""Messages that a stranger may send: from a wrong type to random bytes, and what aiokafka's producer cannot write."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from streams.kafka.connection import KafkaConnection

# Where a record batch keeps its checksum, and from where on it is taken.
_CHECKSUM_AT, _CHECKED_FROM = 17, 21


async def send_with_header_name(
    connection: KafkaConnection, topic: str, partition: int, key: bytes, value: bytes, name: bytes
) -> int:
    """Publish a record with a header whose name is any bytes, as librdkafka would. Returns: its offset."""
    placeholder = b"@" * len(name)
    async with AIOKafkaProducer(**connection.client_options("test-raw")) as producer:
        batch = producer.create_batch()
        batch.append(key=key, value=value, timestamp=None, headers=[(placeholder.decode(), b"x")])
        data = bytearray(bytes(batch._build()).replace(placeholder, name))
        struct.pack_into(">I", data, _CHECKSUM_AT, calc_crc32c(bytes(data[_CHECKED_FROM:])))
        batch._buffer = data
        return int((await (await producer.send_batch(batch, topic, partition=partition))).offset)


class Fuzzer:
    """An endless supply of messages near and far from valid ones. The same seed, the same messages."""

    WRONG: tuple[Any, ...] = (
        None,
        True,
        -1,
        0,
        2**63,
        -(2**70),
        1.5,
        1e308,
        "",
        "x" * 257,
        "\x00",
        "\u202e\U0001f600",
        [],
        {},
        [[]],
        {"a": {"b": []}},
    )
    LITERALS = (
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e400",
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\xff\xfe"',
        b'"\xc3"',
        b'"a\x00b"',
        b'"a\\u0000b"',
        b"9" * 5_000,
        b"0x10",
        b"'u'",
        b"undefined",
        b"nul",
        b"01",
        b"[" * 50 + b"]" * 50,
    )

    def __init__(self, seed: int, valid: list[dict[str, Any]]) -> None:
        self.rng, self.valid = random.Random(seed), valid
        self.makers = (
            self.noise,
            self.truncated,
            self.wrong_type,
            self.literal,
            self.literal,
            self.flipped,
            self.missing,
            self.other_json,
            self.spliced,
        )

    def message(self) -> bytes | None:
        rare = self.rng.random()
        if rare < 0.001:
            return self.huge()
        if rare < 0.003:
            return self.deep()
        if rare < 0.006:
            return None
        return self.rng.choice(self.makers)()

    def key(self) -> bytes | None:
        return self.rng.choice((None, b"", b"u", b"\xff\xfe\x00", self.rng.randbytes(8), b"k" * 300))

    def headers(self) -> list[tuple[str, Any]]:
        if self.rng.random() > 0.05:
            return []
        name = self.rng.choice(("streamrec-origin", "traceparent", "tracestate", "", "streamrec.replays", "\x00", "ä"))
        content = self.rng.choice(
            (None, b"", b"\xff", b"1 2", b"x y z", b"0 -1 a", b"1 99999999999999999999999 l", self.rng.randbytes(30))
        )
        return [(name, content)] * self.rng.randrange(1, 3)

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(0, 200))

    def truncated(self) -> bytes:
        data = self._valid()
        return data[: self.rng.randrange(len(data))]

    def wrong_type(self) -> bytes:
        message = dict(self.rng.choice(self.valid))
        message[self.rng.choice(list(message))] = self.rng.choice(self.WRONG)
        return msgspec.json.encode(message)

    def literal(self) -> bytes:
        """A value replaced by one that is no JSON, or that many readers take for something else."""
        message = dict(self.rng.choice(self.valid))
        message[self.rng.choice(list(message))] = "@@here@@"
        return msgspec.json.encode(message).replace(b'"@@here@@"', self.rng.choice(self.LITERALS))

    def flipped(self) -> bytes:
        data = bytearray(self._valid())
        for _ in range(self.rng.randrange(1, 4)):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return bytes(data)

    def missing(self) -> bytes:
        message = dict(self.rng.choice(self.valid))
        for _ in range(self.rng.randrange(1, 3)):
            message.pop(self.rng.choice(list(message)))
        return msgspec.json.encode(message)

    def other_json(self) -> bytes:
        return self.rng.choice(
            (b"null", b"[]", b"{}", b"1", b'"text"', b"true", b" ", b"{}{}", b'{"type":{}}', b"\xef\xbb\xbf{}")
        )

    def spliced(self) -> bytes:
        one, other = self._valid(), self._valid()
        return one[: self.rng.randrange(len(one))] + other[self.rng.randrange(len(other)) :]

    def huge(self) -> bytes:
        message = dict(self.rng.choice(self.valid))
        size = self.rng.choice((20_001, 100_000, 900_000))
        message[self.rng.choice([*message, "text", "unknown"])] = "ü" * (size // 2)
        return msgspec.json.encode(message)

    def deep(self) -> bytes:
        depth = self.rng.choice((100, 1_000, 5_000, 100_000))
        nested = self.rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"type":' * depth + b"1" + b"}" * depth))
        return self.rng.choice((nested, self._valid()[:-1] + b',"unknown":' + nested + b"}"))

    def _valid(self) -> bytes:
        return msgspec.json.encode(self.rng.choice(self.valid))
