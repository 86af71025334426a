"""The topics of a deployment: names, keys, partitions, retention and message sizes. A table; it talks to no broker.

`streams/kafka/admin.py` makes these topics and compares what a broker has with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

_DAY_MS = 24 * 60 * 60 * 1000

# Kafka's own default. The largest event (20,000 characters of text, each of up to 6 bytes escaped) and the largest
# item (a vector of 4,096 numbers beside its text) stay below a quarter of it.
SOURCE_MESSAGE_BYTES = 1_048_588
# A dead letter is a source message of up to the limit above with its key, headers and reason: twice as much always
# holds it, unless a compressed batch hid a larger one.
DEAD_LETTER_MESSAGE_BYTES = 2 * 1_048_588
# Snapshots of the statistics travel among the deltas, in chunks; few and large ones make a start quick.
STATISTICS_MESSAGE_BYTES = 4 * 1_048_588
# Largest message of any topic: what a producer and a consumer of ours must be able to carry.
LARGEST_MESSAGE_BYTES = STATISTICS_MESSAGE_BYTES

# `users rebuild` folds what is still there: a month is enough for a wrong release to be noticed and undone.
EVENTS_RETENTION_MS = 30 * _DAY_MS
# An answer to a request is worth something for seconds.
REQUESTS_RETENTION_MS = 1 * _DAY_MS
# Training replays older data too, but from its own buffer on disk; the topic bridges an absent trainer.
FEEDBACK_RETENTION_MS = 30 * _DAY_MS
# Candidates with their features make a record some 20 KB: a busy day would fill a disk before time runs out. 1 GiB a
# partition holds the latest 50,000 interactions of it, a hundred rounds of training; what is older than that when a
# trainer comes back would be the first to leave its buffer.
FEEDBACK_RETENTION_BYTES = 1024**3
# Exact counts need every delta since the newest snapshot, and a deployment may rest for a season before it is started
# again.
STATISTICS_RETENTION_MS = 365 * _DAY_MS
# Long enough to look at and replay, short enough for what a forgotten user left in it.
DEAD_LETTERS_RETENTION_MS = 30 * _DAY_MS

# A removed item and a forgotten user's list are gone within a day: a segment is closed after an hour (an open one is
# never compacted) and cleaned within a day whatever the share of old records in it.
_COMPACTED: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "segment.ms": str(60 * 60 * 1000),
    "max.compaction.lag.ms": str(_DAY_MS),
}


@dataclass(frozen=True, slots=True)
class TopicNames:
    """Full names of the topics of one deployment: `<prefix>.<name>`, or the bare name without a prefix."""

    prefix: str = ""
    events: str = field(init=False)
    items: str = field(init=False)
    requests: str = field(init=False)
    recommendations: str = field(init=False)
    feedback: str = field(init=False)
    item_stats: str = field(init=False)
    models: str = field(init=False)
    dead_letters: str = field(init=False)

    def __post_init__(self) -> None:
        start = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        for each in fields(self):
            if each.name != "prefix":
                object.__setattr__(self, each.name, start + each.name.replace("_", "-"))

    def all(self) -> tuple[str, ...]:
        return tuple(getattr(self, each.name) for each in fields(self) if each.name != "prefix")


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it should be."""

    name: str
    key: str
    """What the key of a message is, for people."""
    partitions: int
    replication_factor: int
    configs: Mapping[str, str]
    partitions_fixed: bool = False
    """Whether another number of partitions is a fault; elsewhere the cluster's owner may choose it."""

    @property
    def max_message_bytes(self) -> int:
        return int(self.configs["max.message.bytes"])


def topic_specs(names: TopicNames, *, partitions: int = 4, replication_factor: int = 1) -> tuple[TopicSpec, ...]:
    """Every topic of a deployment.

    Args:
        partitions: of the topics that are shared out among workers. `item-stats` always has one: each worker reads
        all of it,
            and one partition gives the deltas one order.
    """

    def spec(
        name: str,
        key: str,
        *,
        retention_ms: int | None,
        max_bytes: int,
        retention_bytes: int | None = None,
        only_one: bool = False,
    ) -> TopicSpec:
        kept = _COMPACTED if retention_ms is None else {"cleanup.policy": "delete", "retention.ms": str(retention_ms)}
        if retention_bytes is not None:
            kept = {**kept, "retention.bytes": str(retention_bytes)}
        return TopicSpec(
            name=name,
            key=key,
            partitions=1 if only_one else partitions,
            replication_factor=replication_factor,
            configs={**kept, "max.message.bytes": str(max_bytes)},
            partitions_fixed=only_one,
        )

    source = SOURCE_MESSAGE_BYTES
    return (
        spec(names.events, "user_id", retention_ms=EVENTS_RETENTION_MS, max_bytes=source),
        spec(names.items, "item_id", retention_ms=None, max_bytes=source),
        spec(names.requests, "user_id", retention_ms=REQUESTS_RETENTION_MS, max_bytes=source),
        spec(names.recommendations, "user_id", retention_ms=None, max_bytes=source),
        spec(
            names.feedback,
            "user_id",
            retention_ms=FEEDBACK_RETENTION_MS,
            max_bytes=source,
            retention_bytes=FEEDBACK_RETENTION_BYTES,
        ),
        spec(
            names.item_stats,
            "source partition",
            retention_ms=STATISTICS_RETENTION_MS,
            max_bytes=STATISTICS_MESSAGE_BYTES,
            only_one=True,
        ),
        spec(names.models, "name", retention_ms=None, max_bytes=source),
        spec(
            names.dead_letters,
            "original key",
            retention_ms=DEAD_LETTERS_RETENTION_MS,
            max_bytes=DEAD_LETTER_MESSAGE_BYTES,
        ),
    )
