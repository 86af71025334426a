"""The assignor that gives every partition to one member of a group."""

from __future__ import annotations

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.single_owner import SingleOwnerAssignor


class _Cluster(ClusterMetadata):
    """Topics of 3 partitions, without a broker."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {2, 0, 1}


def _partitions(found: dict[str, object], member: str) -> list[tuple[str, int]]:
    return [(place.topic, place.partition) for place in found[member].partitions()]  # type: ignore[attr-defined]


@given(since=st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 2**45), min_size=1, max_size=5))
def test_the_member_that_came_first_has_every_partition_and_the_others_none(since: dict[str, int]) -> None:
    members = {member: SingleOwnerAssignor(at).metadata(["feedback"]) for member, at in since.items()}

    found = SingleOwnerAssignor().assign(_Cluster(), members)

    oldest = min(since.values())
    owners = [member for member in since if _partitions(found, member)]
    assert len(owners) == 1
    assert since[owners[0]] == oldest
    assert _partitions(found, owners[0]) == [("feedback", 0), ("feedback", 1), ("feedback", 2)]
    assert found.keys() == since.keys()


@pytest.mark.parametrize("data", [b"", b"of another program", None])
def test_a_member_that_does_not_say_since_when_counts_as_the_oldest(data: bytes | None) -> None:
    members = {
        "ours": SingleOwnerAssignor(1_000).metadata(["feedback"]),
        "stranger": ConsumerProtocolMemberMetadata(0, ["feedback"], data),
    }

    found = SingleOwnerAssignor().assign(_Cluster(), members)

    assert _partitions(found, "stranger")
    assert not _partitions(found, "ours")
