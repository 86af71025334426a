"""The topic `models` on real brokers: who is champion after promotions, crashes, garbage and two writers at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from models.domain.errors import EventDecodeError
from models.domain.release_log import ReleaseError, promote
from models.domain.releases import CHAMPION, Release, decode_release, encode_release
from models.encoders.manifest import Manifest, read_manifest
from streams.kafka.admin import TopicError, create_topics
from streams.kafka.broadcast import BroadcastReader, read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.embedded_broker import BrokerProcess
from streams.kafka.publisher import Message, Published, Publisher
from streams.releases import ReleaseConflictError, ReleaseLog, entry_of, read_releases
from streams.topics import TopicNames, topic_specs
from tests.services.bundles import small_bundle

pytestmark = pytest.mark.integration


@pytest.fixture
def connection(broker: BrokerProcess) -> KafkaConnection:
    return KafkaConnection(broker.bootstrap_servers)


@pytest.fixture
async def topic(connection: KafkaConnection, topic_prefix: str) -> str:
    names = TopicNames(topic_prefix)
    await create_topics(connection, [spec for spec in topic_specs(names) if spec.name == names.models])
    return names.models


@pytest.fixture
async def publisher(connection: KafkaConnection) -> AsyncIterator[Publisher]:
    async with Publisher(connection) as found:
        yield found


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    folder = tmp_path_factory.mktemp("bundles")
    return [read_manifest(small_bundle(folder / str(seed), seed)) for seed in range(3)]


async def test_releases_are_read_back_by_everybody(
    connection: KafkaConnection, topic: str, publisher: Publisher, manifests: list[Manifest]
) -> None:
    trainer, operator = (ReleaseLog(connection, topic, publisher) for _ in range(2))
    first, second, _ = manifests
    await trainer.promote(first, by="trainer", reason="first")
    release = await trainer.promote(
        second, by="trainer", reason="better", figures={"margin": 0.01, "odd": float("nan")}
    )
    assert (release.sequence, release.previous) == (2, first.version)
    assert await trainer.promote(second, by="trainer", reason="again") == release

    back = await operator.roll_back(by="operator", reason="complaints")
    assert (back.sequence, back.version, back.action, back.by) == (3, first.version, "rollback", "operator")
    found = await read_releases(connection, topic)
    assert found.champion == back
    assert [found.state(manifest.version) for manifest in manifests] == ["champion", "rolled_back", "candidate"]
    entry = found.entry(second.version)
    assert entry is not None
    assert entry.metrics == {"margin": 0.01}
    with pytest.raises(ReleaseError):
        await operator.roll_back(by="operator", reason="further")


async def test_what_means_nothing_is_counted_and_passed_over(
    connection: KafkaConnection, topic: str, publisher: Publisher, manifests: list[Manifest]
) -> None:
    log = ReleaseLog(connection, topic, publisher)
    await log.promote(manifests[0], by="trainer", reason="first")
    garbage = [
        Message(topic, b"champion", b"not json"),
        Message(topic, b"", b"{}"),
        Message(topic, b"other", b"{}"),
    ]
    await publisher.send_many(garbage)
    reader = ReleaseLog(connection, topic)
    found = await reader.refresh()
    assert reader.malformed == len(garbage)
    assert found.champion == log.champion
    await reader.refresh()
    assert reader.malformed == len(garbage)
    with pytest.raises(EventDecodeError):
        decode_release(b"champion", b"not json")


async def test_a_crash_after_the_release_alone_leaves_one_champion(
    connection: KafkaConnection, topic: str, publisher: Publisher, manifests: list[Manifest]
) -> None:
    first, second, third = manifests
    log = ReleaseLog(connection, topic, publisher)
    await log.promote(first, by="trainer", reason="first")
    release, entries = promote(log.releases, entry_of(second), by="trainer", reason="crash", now_ms=1)
    assert entries
    await publisher.send(Message(topic, CHAMPION.encode(), encode_release(release)))

    found = await read_releases(connection, topic)
    assert [found.state(each.version) for each in manifests] == ["retired", "champion", "candidate"]
    await log.promote(third, by="trainer", reason="next")
    found = await read_releases(connection, topic)
    assert [found.entries[each.version].state for each in manifests] == ["retired", "retired", "champion"]


class Overtaken(Publisher):
    """A publisher whose process is so slow that others release between its decision and its first message."""

    def __init__(self, connection: KafkaConnection, before: list[Release]) -> None:
        super().__init__(connection)
        self.before = before

    async def send_many(self, messages: Sequence[Message]) -> list[Published]:
        for release in self.before:
            await super().send_many([Message(messages[0].topic, CHAMPION.encode(), encode_release(release))])
        self.before = []
        return await super().send_many(messages)


async def test_of_two_writers_at_once_one_holds_and_the_other_is_told(
    connection: KafkaConnection, topic: str, publisher: Publisher, manifests: list[Manifest]
) -> None:
    first, second, third = manifests
    log = ReleaseLog(connection, topic, publisher)
    await log.promote(first, by="trainer", reason="first")
    one, _ = promote(log.releases, entry_of(second), by="operator", reason="quick", now_ms=1)
    other = await read_releases(connection, topic)
    other.update(b"champion", encode_release(one))
    two, _ = promote(other, entry_of(first), by="operator", reason="quick too", now_ms=2)
    async with Overtaken(connection, [one, two]) as slow:
        with pytest.raises(ReleaseConflictError, match=f"{third.version} is not champion") as raised:
            await ReleaseLog(connection, topic, slow).promote(third, by="trainer", reason="slow")
    assert raised.value.champion == two
    # What compaction leaves is the newest message: it must be the one that holds.
    last = [r.value async for r in read_to_end(connection, topic) if r.key == b"champion"][-1]
    assert decode_release(b"champion", last) == two
    assert (await read_releases(connection, topic)).champion == two


async def test_a_broadcast_reader_and_a_writer_share_one_log(
    connection: KafkaConnection, topic: str, publisher: Publisher, manifests: list[Manifest]
) -> None:
    log = ReleaseLog(connection, topic, publisher)
    changes: list[bool] = []

    async def on_records(records: list[object]) -> None:
        changes.append(log.read(records))

    reader = BroadcastReader(topic, connection, on_records)
    reader.start()
    await reader.caught_up()
    release = await log.promote(manifests[0], by="trainer", reason="own")
    await reader.barrier()
    assert log.champion == release
    theirs = await ReleaseLog(connection, topic, publisher).promote(manifests[1], by="operator", reason="theirs")
    await reader.barrier()
    assert changes[-1]
    assert log.champion == theirs
    await reader.stop()


async def test_a_missing_topic_is_named_with_the_command_that_makes_it(
    connection: KafkaConnection, topic_prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(TopicError, match="run `streamrec topics create`"):
        await read_releases(connection, f"{topic_prefix}.models")
