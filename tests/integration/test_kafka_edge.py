"""The Kafka edge against real brokers: topics, publisher, broadcast reader, dead letters."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams.kafka.admin import TopicError, create_topics, describe_topics, partition_counts, topic_ids
from streams.kafka.broadcast import BroadcastError, BroadcastReader, read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.dead_letters import (
    REPLAYS_HEADER,
    DeadLetterError,
    dead_letter_message,
    read_dead_letters,
    replay_message,
)
from streams.kafka.embedded_broker import BrokerProcess
from streams.kafka.partitioner import partition_of
from streams.kafka.publisher import Message, MessageTooLargeError, Publisher, PublishError
from streams.topics import DEAD_LETTER_MESSAGE_BYTES, SOURCE_MESSAGE_BYTES, TopicNames, topic_specs
from tests.services.kafka import SASL_PASSWORD, SASL_USER, KafkaBroker

pytestmark = pytest.mark.integration
DEADLINE_SECONDS = 30.0


@pytest.fixture
def connection(broker: BrokerProcess) -> KafkaConnection:
    return KafkaConnection(broker.bootstrap_servers)


@pytest.fixture
def names(topic_prefix: str) -> TopicNames:
    return TopicNames(topic_prefix)


@pytest.fixture
async def publisher(connection: KafkaConnection) -> AsyncIterator[Publisher]:
    async with Publisher(connection, deadline_seconds=DEADLINE_SECONDS) as publisher:
        yield publisher


async def make(connection: KafkaConnection, names: TopicNames, partitions: int = 4) -> None:
    await create_topics(connection, topic_specs(names, partitions=partitions))


async def delete(connection: KafkaConnection, topic: str) -> None:
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while topic in await partition_counts(connection, [topic]):
            await asyncio.sleep(0.05)


async def read(connection: KafkaConnection, topic: str) -> list[Any]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [record async for record in read_to_end(connection, topic)]


def keyed(topic: str, count: int, *, value_bytes: int = 20, users: int = 10) -> list[Message]:
    return [Message(topic, b"user-%d" % (n % users), b"%d|" % n + b"x" * value_bytes) for n in range(count)]


def numbers(records: list[Any]) -> list[int]:
    return [int(record.value.split(b"|")[0]) for record in records]


class Collector:
    """What a broadcast reader handed over."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    async def __call__(self, records: list[Any]) -> None:
        self.records.extend(records)


# Topics


async def test_topics_are_made_once_and_found_sound(connection: KafkaConnection, names: TopicNames) -> None:
    specs = topic_specs(names, partitions=3)
    before = await describe_topics(connection, specs)
    assert set(before.missing) == set(names.all())
    assert not before.sound

    first = await create_topics(connection, specs)
    again = await create_topics(connection, specs)

    assert set(first.created) == set(names.all())
    assert again.created == ()
    assert set(again.existing) == set(names.all())
    after = await describe_topics(connection, specs)
    assert after.sound
    assert after.differences == ()
    assert after.partitions[names.events] == 3
    assert after.partitions[names.item_stats] == 1


async def test_looking_at_topics_creates_none(connection: KafkaConnection, names: TopicNames) -> None:
    await describe_topics(connection, topic_specs(names))
    with pytest.raises(TopicError, match=r"does not exist.*topics create"):
        await topic_ids(connection, [names.events])
    assert await partition_counts(connection, names.all()) == {}


async def test_a_topic_made_anew_has_another_id(connection: KafkaConnection, names: TopicNames) -> None:
    await make(connection, names)
    first = await topic_ids(connection, [names.events, names.items])
    assert await topic_ids(connection, [names.events, names.items]) == first

    await delete(connection, names.events)
    await make(connection, names)

    second = await topic_ids(connection, [names.events, names.items])
    assert second[names.events] != first[names.events]
    assert second[names.items] == first[names.items]


async def test_a_restart_of_the_broker_keeps_topic_ids(own_kafka: KafkaBroker, names: TopicNames) -> None:
    connection = KafkaConnection(own_kafka.bootstrap_servers)
    await make(connection, names)
    before = await topic_ids(connection, names.all())
    await asyncio.to_thread(own_kafka.restart)
    assert await topic_ids(connection, names.all()) == before


async def test_what_differs_from_the_table_is_named(kafka: KafkaBroker, names: TopicNames) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(names.item_stats, 2, 1),
                NewTopic(names.events, 2, 1, topic_configs={"cleanup.policy": "compact"}),
                NewTopic(names.feedback, 7, 1),
            ]
        )
    finally:
        await admin.close()

    report = await create_topics(connection, topic_specs(names, partitions=4))

    found = {(d.topic, d.what): (d.found, d.wanted, d.fault) for d in report.differences}
    assert found[names.item_stats, "partitions"] == ("2", "1", True)
    assert found[names.events, "cleanup.policy"] == ("compact", "delete", True)
    assert found[names.feedback, "partitions"] == ("7", "4", False)
    assert not report.sound
    assert names.item_stats not in report.created


async def test_a_cluster_that_does_not_answer_is_an_error_with_its_address() -> None:
    with pytest.raises(TopicError, match="127.0.0.1:1 does not answer"):
        await describe_topics(KafkaConnection("127.0.0.1:1"), topic_specs(TopicNames()))


# Credentials


async def test_sasl_lets_in_who_knows_the_password(kafka: KafkaBroker, names: TopicNames) -> None:
    right = KafkaConnection(
        kafka.sasl_bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_username=SASL_USER,
        sasl_password=SASL_PASSWORD,
    )
    await make(right, names)
    async with Publisher(right) as publisher:
        await publisher.send(Message(names.events, b"user", b"1|"))
    assert numbers(await read(right, names.events)) == [1]
    assert SASL_PASSWORD not in repr(right)

    wrong = KafkaConnection(
        kafka.sasl_bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_username=SASL_USER,
        sasl_password="guessed",
    )
    with pytest.raises(TopicError) as refused:
        await describe_topics(wrong, topic_specs(names))
    assert "guessed" not in str(refused.value)


# Publisher


async def test_messages_keep_their_order_and_their_keys_partition(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    messages = keyed(names.events, 2_000, value_bytes=1_000)  # several batches of 256 KiB a partition

    published = await publisher.send_many(messages)

    assert [p.partition for p in published] == [partition_of(m.key or b"", 4) for m in messages]
    by_partition: dict[int, list[Any]] = {}
    for record in await read(connection, names.events):
        by_partition.setdefault(record.partition, []).append(record)
    for partition, records in by_partition.items():
        expected = [n for n, p in enumerate(published) if p.partition == partition]
        assert numbers(records) == expected
        assert [record.offset for record in records] == [published[n].offset for n in expected]


async def test_a_message_carries_its_headers_time_and_chosen_partition(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    await publisher.send_many(
        [
            Message(names.events, b"k", b"v", (("traceparent", b"00-a"), ("x", b"\xff")), 3, 1_700_000_000_123),
            Message(names.events, b"k", None, partition=2),
            Message(names.requests, None, b"no key"),
        ]
    )
    first, second = sorted(await read(connection, names.events), key=lambda record: -record.partition)
    assert (first.partition, first.timestamp, first.key, first.value) == (3, 1_700_000_000_123, b"k", b"v")
    assert tuple(first.headers) == (("traceparent", b"00-a"), ("x", b"\xff"))
    assert (second.partition, second.value) == (2, None)
    assert [record.value for record in await read(connection, names.requests)] == [b"no key"]


async def test_a_partition_that_is_not_there_is_refused_at_once(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    with pytest.raises(PublishError, match="4 partitions, none with number 9") as refused:
        await publisher.send(Message(names.events, b"k", b"v", partition=9))
    assert not refused.value.retryable


async def test_too_large_a_message_is_named_and_the_others_arrive(kafka: KafkaBroker, names: TopicNames) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    await make(connection, names, partitions=1)
    messages = keyed(names.events, 6)
    messages[2] = messages[2]._replace(value=b"2|" + b"y" * SOURCE_MESSAGE_BYTES)
    async with Publisher(connection) as publisher:
        with pytest.raises(MessageTooLargeError) as refused:
            await publisher.send_many(messages)
    assert refused.value.indexes == (2,)
    assert numbers(await read(connection, names.events)) == [0, 1, 3, 4, 5]


async def test_a_topic_limit_below_the_batch_size_costs_only_the_large_message(
    kafka: KafkaBroker, names: TopicNames
) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    await admin.create_topics([NewTopic(names.events, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    await admin.close()
    messages = keyed(names.events, 5, value_bytes=1_000)
    messages[3] = messages[3]._replace(value=b"3|" + b"y" * 3_000)
    async with Publisher(connection) as publisher:
        with pytest.raises(MessageTooLargeError) as refused:
            await publisher.send_many(messages)
    assert refused.value.indexes == (3,)
    assert numbers(await read(connection, names.events)) == [0, 1, 2, 4]


@pytest.mark.parametrize("idempotent", [False, True])
async def test_publishing_and_reading_survive_a_broker_that_goes_away(
    own_kafka: KafkaBroker, names: TopicNames, idempotent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    connection = KafkaConnection(own_kafka.bootstrap_servers)
    await make(connection, names)
    retries: list[str] = []
    collector = Collector()
    reader = BroadcastReader(names.events, connection, collector)
    reader.start()
    async with Publisher(
        connection,
        idempotent=idempotent,
        attempt_seconds=1.0,
        deadline_seconds=60.0,
        on_retry=lambda topic, error: retries.append(topic),
    ) as publisher:
        await publisher.send_many(keyed(names.events, 100))
        await asyncio.to_thread(own_kafka.stop)
        sending = asyncio.create_task(publisher.send_many(keyed(names.events, 200)[100:]))
        await asyncio.wait([sending], timeout=2.5)  # the broker stays away for longer than an attempt
        assert not sending.done()
        await asyncio.to_thread(own_kafka.start)
        await sending
        if not idempotent:  # aiokafka never gives a batch of an idempotent producer up
            assert names.events in retries
    async with asyncio.timeout(DEADLINE_SECONDS):
        await reader.barrier()
    await reader.stop()

    for records in (collector.records, await read(connection, names.events)):
        assert sorted(set(numbers(records))) == list(range(200))
        for partition in range(4):
            seen = numbers([record for record in records if record.partition == partition])
            assert list(dict.fromkeys(seen)) == sorted(set(seen))


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_deadline_ends_the_attempts(
    own_kafka: KafkaBroker, names: TopicNames, idempotent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    connection = KafkaConnection(own_kafka.bootstrap_servers)
    await make(connection, names)
    async with Publisher(connection, idempotent=idempotent, attempt_seconds=0.5, deadline_seconds=2.0) as publisher:
        await publisher.send_many(keyed(names.events, 10))
        await asyncio.to_thread(own_kafka.stop)
        async with asyncio.timeout(10):
            with pytest.raises(PublishError) as failed:
                await publisher.send_many(keyed(names.events, 10))
        assert failed.value.retryable
        await asyncio.to_thread(own_kafka.start)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:  # the caller's policy: try again later, with the same publisher
                try:
                    await publisher.send_many(keyed(names.events, 10))
                    break
                except PublishError as error:
                    assert error.retryable


async def test_a_broker_without_idempotence_is_said_to_refuse_it(
    embedded_kafka: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    publisher = Publisher(KafkaConnection(embedded_kafka.bootstrap_servers), idempotent=True, deadline_seconds=1.0)
    with pytest.raises(PublishError, match="UnknownError"):
        await publisher.start()
    await publisher.stop()


# Broadcast reader


async def test_a_broadcast_reader_has_everything_when_caught_up_and_more_at_a_barrier(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    await publisher.send_many(keyed(names.items, 500))
    collector = Collector()
    reader = BroadcastReader(names.items, connection, collector)
    reader.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await reader.caught_up()
        assert sorted(numbers(collector.records)) == list(range(500))
        for n in range(500, 520):
            await publisher.send(Message(names.items, b"user-%d" % n, b"%d|" % n))
            await reader.barrier()
            assert numbers(collector.records)[-1] == n
    assert sum(reader.position(partition) for partition in range(4)) == 520
    await reader.stop()
    await reader.wait_closed()
    with pytest.raises(BroadcastError, match="stopped"):
        await reader.barrier()


async def test_an_empty_topic_is_caught_up_with_at_once(connection: KafkaConnection, names: TopicNames) -> None:
    await make(connection, names)
    reader = BroadcastReader(names.models, connection, Collector())
    reader.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await reader.caught_up()
        await reader.barrier()
    await reader.stop()


async def test_a_broadcast_reader_starts_at_the_offsets_it_is_given(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    await publisher.send_many(keyed(names.item_stats, 100))
    collector = Collector()
    reader = BroadcastReader(names.item_stats, connection, collector, start_offsets={0: 90})
    reader.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await reader.caught_up()
    await reader.stop()
    assert numbers(collector.records) == list(range(90, 100))
    assert reader.position() == 100


async def test_markers_at_the_end_of_a_topic_do_not_keep_a_reader_waiting(
    kafka: KafkaBroker, names: TopicNames
) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    await make(connection, names, partitions=1)
    producer = AIOKafkaProducer(**connection.client_options(), transactional_id=names.items)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(names.items, b"0|", b"kept")
        with pytest.raises(ZeroDivisionError):
            async with producer.transaction():
                await producer.send_and_wait(names.items, b"1|", b"aborted")
                raise ZeroDivisionError
    finally:
        await producer.stop()
    collector = Collector()
    reader = BroadcastReader(names.items, connection, collector)
    reader.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await reader.caught_up()
    await reader.stop()
    assert numbers(collector.records) == [0]
    assert reader.position() == 4
    assert numbers(await read(connection, names.items)) == [0]


async def test_a_callback_that_fails_ends_the_reader_and_reaches_who_waits(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    await publisher.send_many(keyed(names.items, 10))

    async def fail(records: list[Any]) -> None:
        raise ZeroDivisionError("of the callback")

    reader = BroadcastReader(names.items, connection, fail)
    reader.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(BroadcastError, match="of the callback"):
            await reader.caught_up()
        with pytest.raises(BroadcastError, match="of the callback"):
            await reader.wait_closed()
    assert isinstance(reader.failure, BroadcastError)
    await reader.stop()


async def test_a_reader_started_before_its_broker_waits_for_it(
    own_kafka: KafkaBroker, names: TopicNames, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    connection = KafkaConnection(own_kafka.bootstrap_servers)
    await make(connection, names)
    async with Publisher(connection) as publisher:
        await publisher.send_many(keyed(names.items, 10))
    await asyncio.to_thread(own_kafka.stop)
    collector = Collector()
    reader = BroadcastReader(names.items, connection, collector)
    reader.start()
    caught_up = asyncio.create_task(reader.caught_up())
    await asyncio.wait([caught_up], timeout=0.5)
    assert not caught_up.done()
    await asyncio.to_thread(own_kafka.start)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await caught_up
    await reader.stop()
    assert sorted(numbers(collector.records)) == list(range(10))


# Dead letters


async def consume_one(connection: KafkaConnection, topic: str, partition: int) -> Any:
    consumer: AIOKafkaConsumer[bytes, bytes] = AIOKafkaConsumer(
        **connection.client_options(), auto_offset_reset="earliest", max_partition_fetch_bytes=DEAD_LETTER_MESSAGE_BYTES
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition)])
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await consumer.getone()
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"user", b'{"type": "ra'),
        (b"\xff\x00\xfe", bytes(range(256)) * 3),
        (None, b"no key"),
        (b"user", None),
        (b"", b""),
    ],
)
async def test_a_dead_letter_keeps_every_byte_and_goes_back_marked(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher, key: bytes | None, value: bytes | None
) -> None:
    await make(connection, names)
    headers = (("traceparent", b"00-abc"), ("traceparent", b"\xff twice"))
    sent = await publisher.send(Message(names.events, key, value, headers, timestamp_ms=1_700_000_000_000))
    source = await consume_one(connection, names.events, sent.partition)

    for replays in range(2):
        dead = await publisher.send(dead_letter_message(source, names.dead_letters, "invalid_json", "at byte 9 ü"))
        letters = [letter async for letter in read_dead_letters(connection, names.dead_letters)]
        letter = next(each for each in letters if (each.partition, each.offset) == (dead.partition, dead.offset))
        assert (letter.key, letter.value) == (key, value)
        assert (letter.reason, letter.detail) == ("invalid_json", "at byte 9 ü")
        assert (letter.source_topic, letter.source_partition) == (names.events, sent.partition)
        assert (letter.source_offset, letter.source_timestamp_ms) == (source.offset, 1_700_000_000_000)
        assert letter.headers[:2] == headers
        assert letter.whole
        assert letter.replays == replays

        back = await publisher.send(replay_message(letter))
        assert back.topic == names.events
        assert back.partition == sent.partition
        source = max(await read(connection, names.events), key=lambda record: record.offset)
        assert (source.key, source.value) == (key, value)
        assert dict(source.headers)[REPLAYS_HEADER] == b"%d" % (replays + 1)
        assert len(source.headers) == 3


async def test_the_largest_source_message_fits_whole_into_a_dead_letter(kafka: KafkaBroker, names: TopicNames) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    await make(connection, names)
    async with Publisher(connection) as publisher:
        value = bytes(1_000) * 1_048
        sent = await publisher.send(Message(names.events, b"user", value))
        source = await consume_one(connection, names.events, sent.partition)
        await publisher.send(dead_letter_message(source, names.dead_letters, "too_long"))
        (letter,) = [letter async for letter in read_dead_letters(connection, names.dead_letters)]
        assert letter.whole
        assert letter.value == value


async def test_what_exceeds_even_the_dead_letter_topic_keeps_digest_length_and_head(
    kafka: KafkaBroker, names: TopicNames
) -> None:
    connection = KafkaConnection(kafka.bootstrap_servers)
    await make(connection, names)
    value = b"head" + bytes(3_000_000)
    producer = AIOKafkaProducer(**connection.client_options(), compression_type="gzip", max_request_size=10_000_000)
    await producer.start()
    sent = await producer.send_and_wait(names.events, value, b"user", headers=[("large", bytes(100_000))])
    await producer.stop()
    source = await consume_one(connection, names.events, sent.partition)
    assert source.value == value

    async with Publisher(connection) as publisher:
        await publisher.send(dead_letter_message(source, names.dead_letters, "too_long"))
    (letter,) = [letter async for letter in read_dead_letters(connection, names.dead_letters)]

    assert not letter.whole
    assert letter.key == b"user"
    assert letter.value == value[:65_536]
    assert letter.value_bytes == len(value)
    assert letter.digest == hashlib.sha256(value).hexdigest()
    with pytest.raises(DeadLetterError, match="cannot be put back"):
        replay_message(letter)


async def test_a_record_that_is_no_dead_letter_is_said_to_be_none(
    connection: KafkaConnection, names: TopicNames, publisher: Publisher
) -> None:
    await make(connection, names)
    await publisher.send(Message(names.dead_letters, b"k", b"stranger"))
    with pytest.raises(DeadLetterError, match="no dead letter of ours"):
        [letter async for letter in read_dead_letters(connection, names.dead_letters)]
