"""The partition of a key is the one that Java's and aiokafka's clients choose."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.partitioner import partition_of

# From Kafka's own UtilsTest.testMurmur2 (the hash as Java's signed int).
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("key", JAVA_VECTORS)
@pytest.mark.parametrize("partitions", [1, 4, 7, 1000, 2**31 - 1])
def test_a_key_goes_where_kafkas_own_vectors_say(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (JAVA_VECTORS[key] & 0x7FFFFFFF) % partitions


@given(key=st.binary(max_size=300), partitions=st.integers(1, 200))
def test_any_key_goes_where_aiokafka_sends_it(key: bytes, partitions: int) -> None:
    everywhere = list(range(partitions))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, everywhere, everywhere)


def test_a_topic_without_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        partition_of(b"user", 0)
