"""A consumer group in which one member has every partition and the others stand by.

The member that joined the group first keeps them, so that a new one changes nothing until the first is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata


class SingleOwnerAssignor(AbstractPartitionAssignor):
    """An assignor of aiokafka; each consumer needs an instance of its own.

    Args:
        since_ms: when this member came up; now unless said otherwise.
    """

    name = "streamrec-single-owner"

    def __init__(self, since_ms: int | None = None) -> None:
        self._since_ms = time.time_ns() // 1_000_000 if since_ms is None else since_ms

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(0, list(topics), str(self._since_ms).encode())

    @classmethod
    def assign(
        cls, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        owner = min(members, key=lambda member: (_since(members[member].user_data), member))
        topics = members[owner].subscription
        every = [(topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in sorted(topics)]
        return {
            member: ConsumerProtocolMemberAssignment(0, every if member == owner else [], b"") for member in members
        }

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Nothing is remembered: who owns is decided anew each time."""


def _since(data: bytes | None) -> int:
    return int(data) if data and data.isdigit() else 0
