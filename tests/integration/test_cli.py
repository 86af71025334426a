"""The commands as people run them, against real brokers: processes, exit codes, what they print."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.broadcast import read_to_end
from streams.kafka.connection import KafkaConnection
from streams.kafka.embedded_broker import BrokerProcess, free_port
from streams.topics import TopicNames
from tests.services.command import Command, wait_for

pytestmark = pytest.mark.integration

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("command")
    done = Command(directory, data_dir=str(directory)).run("bundle", "bootstrap")
    return done.stdout.split()[0]


def configured(broker: BrokerProcess, topic_prefix: str, directory: Path, bundle: str) -> Command:
    """For one broker, a prefix of one test alone and an embedded store in its directory."""
    return Command(
        directory,
        kafka_bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=topic_prefix,
        consumer_group=topic_prefix,
        topic_partitions="2",
        data_dir=str(directory / "data"),
        bundle=bundle,
        metrics_port="0",
        log_level="INFO",
    )


@pytest.fixture
def command(broker: BrokerProcess, topic_prefix: str, tmp_path: Path, bundle: str) -> Command:
    """Against each of the two brokers in turn."""
    return configured(broker, topic_prefix, tmp_path, bundle)


@pytest.fixture
def kafka_command(kafka: BrokerProcess, topic_prefix: str, tmp_path: Path, bundle: str) -> Command:
    """Against Apache Kafka, for long tests in which the brokers do not differ."""
    return configured(kafka, topic_prefix, tmp_path, bundle)


def write_lines(path: Path, lines: Iterable[object]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def rating(number: int, user: str, item: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "rating",
        "event_id": f"e{number}",
        "user_id": user,
        "item_id": item,
        "event_time_ms": START_MS + 1_000 * number,
        "value": 4.5,
        **more,
    }


ITEMS = [{"item_id": f"i{n}", "title": f"Lamp number {n}", "categories": ["home"]} for n in range(12)]


async def records_of(broker: BrokerProcess, topic: str) -> list[Any]:
    return [record async for record in read_to_end(KafkaConnection(broker.bootstrap_servers), topic)]


def findings(command: Command, code: int) -> dict[str, list[dict[str, str]]]:
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(command.run("doctor", "--json", code=code).stdout):
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_topics_are_created_once_and_a_second_run_changes_nothing(command: Command) -> None:
    first = command.run("topics", "create").stdout
    assert "8 created, 0 there already" in first
    assert "0 created, 8 there already" in command.run("topics", "create").stdout


async def test_publishing_reports_bad_lines_by_number_and_sends_the_others_as_they_are(
    command: Command, broker: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    command.run("topics", "create")
    event = rating(1, "u1", "i1", colour="unknown fields stay")
    lines = [ITEMS[0], event, "garbage", {"type": "nope", "event_id": "e2"}, "", {"item_id": "x", "removed": True}]
    done = command.run("publish", write_lines(tmp_path / "mixed.jsonl.gz", lines))

    assert "published 1 events, 1 items, 1 removals; 2 bad lines" in done.stdout
    assert "mixed.jsonl.gz:3: invalid_json" in done.stderr
    assert "mixed.jsonl.gz:4: undeclared_type" in done.stderr
    names = TopicNames(topic_prefix)
    assert [(r.key, r.value) for r in await records_of(broker, names.events)] == [(b"u1", json.dumps(event).encode())]
    assert {r.key: r.value for r in await records_of(broker, names.items)} == {
        b"i0": json.dumps(ITEMS[0]).encode(),
        b"x": None,
    }


async def test_strict_publishing_ends_at_the_first_bad_line_and_no_validate_sends_everything(
    kafka_command: Command, kafka: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    kafka_command.run("topics", "create")
    file = write_lines(tmp_path / "events.jsonl", [rating(1, "u1", "i1"), "garbage", rating(2, "u1", "i2")])
    assert "events.jsonl:2 is no good" in kafka_command.run("publish", file, "--strict", code=2).stderr
    topic = TopicNames(topic_prefix).events
    assert len(await records_of(kafka, topic)) == 1
    assert "published 3 events; 0 bad lines" in kafka_command.run("publish", file, "--no-validate", "--events").stdout
    assert b"garbage" in [record.value for record in await records_of(kafka, topic)]


async def test_a_rate_spreads_messages_over_time(
    kafka_command: Command, kafka: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    kafka_command.run("topics", "create")
    file = write_lines(tmp_path / "events.jsonl", [rating(n, f"u{n}", "i1") for n in range(30)])
    kafka_command.run("publish", file, "--rate", "30")
    stamps = [record.timestamp for record in await records_of(kafka, TopicNames(topic_prefix).events)]
    assert len(stamps) == 30
    assert 700 < max(stamps) - min(stamps) < 10_000


def test_doctor_names_missing_topics_and_how_to_make_them(command: Command) -> None:
    found = findings(command, code=1)
    assert {finding["level"] for finding in found["topics"]} == {"fail"}
    assert len(found["topics"]) == 8
    assert all(finding["mend"] == "streamrec topics create" for finding in found["topics"])
    assert found["broker"][0]["level"] == "ok"
    command.run("topics", "create")
    found = findings(command, code=0)
    assert [finding["level"] for finding in found["topics"]] == ["ok"]
    assert found["consumer group"][0]["level"] == "warn"
    assert found["bundle"][0]["level"] == "ok"


def test_doctor_says_that_a_broker_is_away(tmp_path: Path, bundle: str) -> None:
    away = Command(tmp_path, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=str(tmp_path), bundle=bundle)
    found = findings(away, code=1)
    assert found["broker"][0]["level"] == "fail"
    assert "STREAMREC_KAFKA_BOOTSTRAP_SERVERS" in found["broker"][0]["mend"]


def test_a_worker_without_topics_says_what_to_do_and_ends(command: Command) -> None:
    assert "streamrec topics create" in command.run("worker", code=2).stderr


def test_a_request_without_a_worker_ends_with_a_hint(kafka_command: Command) -> None:
    kafka_command.run("topics", "create")
    assert "streamrec doctor" in kafka_command.run("recommend", "u1", "--timeout", "2", code=1).stderr


def test_events_lead_to_lists_that_commands_show_beside_a_running_worker(command: Command, tmp_path: Path) -> None:
    command.run("topics", "create")
    socket = tmp_path / "s.sock"
    with command.started("store", "--socket", str(socket)) as store:
        wait_for(lambda: store.alive() and socket.exists(), "the store's socket")
        command.environment["STREAMREC_QDRANT_URL"] = f"unix:{socket}"
        with command.worker() as worker, command.started("follow", "--user", "u1", "--json", "--limit", "2") as follow:
            wait_for(lambda: "reading " in follow.said(), "the follower is there before anything is published")
            command.run("publish", write_lines(tmp_path / "items.jsonl", ITEMS))
            events = [rating(n, f"u{n % 3}", f"i{n % 5}") for n in range(30)]
            command.run("publish", write_lines(tmp_path / "events.jsonl", events))

            answer = command.lines("recommend", "u1", "--k", "3", "--text", "lamp", "--json")[0]
            assert answer["user_id"] == "u1"
            assert len(answer["items"]) == 3
            assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
            assert "Lamp" not in command.run("recommend", "stranger").stderr

            assert follow.process.wait(60) == 0, follow.said()
            followed = [json.loads(line) for line in follow.said().splitlines() if line.startswith("{")]
            assert [made["user_id"] for made in followed] == ["u1", "u1"]
            assert followed[0]["sequence"] < followed[1]["sequence"]
            shown = command.run("follow", "--user", "u2", "--from-beginning", "--limit", "1").stdout
            assert "u2  list" in shown

            found = findings(command, code=0)
            assert found["consumer group"][0]["level"] == "ok"
            assert found["index"][0]["level"] == "ok"

            exported = {user["user_id"]: user for user in command.lines("users", "export", "-")}
            assert {user: exported[user]["events_applied"] for user in ("u0", "u1", "u2")} == {
                "u0": 10,
                "u1": 10,
                "u2": 10,
            }
            assert exported["u1"]["recent"][-1] == {
                "item_id": "i3",
                "kind": "rating",
                "value": 4.5,
                "event_time_ms": START_MS + 28_000,
            }
            assert list(exported["u1"]) >= ["user_id", "events_applied", "model_version", "applied_offsets", "recent"]
            assert [user["user_id"] for user in command.lines("users", "export", "-", "--user", "u2")] == ["u2"]
            assert "nobody" in command.run("users", "export", "-", "--user", "nobody", code=1).stderr
            assert "active members" in command.run("users", "rebuild", code=2).stderr

            code, seconds = worker.stop()
            assert code == 0, worker.said()
            assert seconds < 5.0
        code, _ = store.stop()
        assert code == 0, store.said()
        assert not socket.exists()


def test_rebuilt_states_are_those_that_the_worker_had(kafka_command: Command, tmp_path: Path) -> None:
    kafka_command.run("topics", "create")
    events: list[object] = [rating(n, f"u{n % 5}", f"i{n % 7}") for n in range(60)]
    forget = {"type": "forget", "event_id": "f", "user_id": "u4", "event_time_ms": START_MS + DAY_MS}
    search = {"type": "search", "event_id": "s", "user_id": "u0", "text": "a lamp", "event_time_ms": START_MS + 90_000}
    with kafka_command.worker() as worker:
        kafka_command.run("publish", write_lines(tmp_path / "items.jsonl", ITEMS))
        wait_for(
            lambda: kafka_command.run("recommend", "u9", "--text", "lamp").stdout.count("i") > 3,
            "items that are listed",
        )
        kafka_command.run("publish", write_lines(tmp_path / "events.jsonl", [*events, search, forget]))
        wait_for(lambda: _nothing_waits(kafka_command), "a worker that is through")
        assert worker.stop()[0] == 0
    before = {user["user_id"]: user for user in kafka_command.lines("users", "export", "-")}
    assert before["u0"]["events_applied"] == 13
    assert "u4" not in before

    # 48 ratings and a search: what u4 did before he was forgotten is not folded again.
    assert "49 events folded for 5 users, 1 users kept" in kafka_command.run("users", "rebuild").stdout
    after = {user["user_id"]: user for user in kafka_command.lines("users", "export", "-")}
    assert after == before

    # What is folded is not folded again, and who was forgotten stays so.
    with kafka_command.worker() as worker:
        kafka_command.run(
            "publish", write_lines(tmp_path / "more.jsonl", [rating(70, "u0", "i9"), rating(71, "u4", "i9")])
        )
        wait_for(lambda: _nothing_waits(kafka_command), "a worker that is through")
        assert worker.stop()[0] == 0
    last = {user["user_id"]: user for user in kafka_command.lines("users", "export", "-")}
    assert last["u0"]["events_applied"] == 14
    assert last["u0"]["sequence"] == before["u0"]["sequence"] + 1
    assert "u4" not in last


def _nothing_waits(command: Command) -> bool:
    lags = findings(command, code=0)["lag"]
    return all(": 0 records behind" in finding["message"] for finding in lags)


async def test_dead_letters_are_listed_and_put_back_but_for_the_forgotten(
    kafka_command: Command, kafka: BrokerProcess, topic_prefix: str, tmp_path: Path
) -> None:
    kafka_command.run("topics", "create")
    tips = [rating(n, user, "i1") | {"type": "tip"} for n, user in enumerate(["u1", "gone"])]
    forget = {"type": "forget", "event_id": "f", "user_id": "gone", "event_time_ms": START_MS + DAY_MS}
    file = write_lines(tmp_path / "events.jsonl", [rating(8, "gone", "i1"), *tips, forget, "garbage"])
    with kafka_command.worker() as worker:
        kafka_command.run("publish", file, "--no-validate", "--events")
        wait_for(lambda: len(kafka_command.lines("dead-letters", "list", "--json")) == 3, "three dead letters")
        wait_for(lambda: _nothing_waits(kafka_command), "a worker that is through")
        assert worker.stop()[0] == 0

    listed = kafka_command.lines("dead-letters", "list", "--json", "--reason", "undeclared_type")
    assert sorted(json.loads(letter["value"])["user_id"] for letter in listed) == ["gone", "u1"]
    table = kafka_command.run("dead-letters", "list", "--limit", "1").stdout
    assert "3 dead letters: 2 undeclared_type, 1 invalid_json" in table
    assert "i1" not in table

    only_tips = ("--reason", "undeclared_type")
    said = kafka_command.run("dead-letters", "replay", "--dry-run", *only_tips).stdout
    assert said == "1 would be put back; left out: 1 of users who were forgotten\n"
    topic = TopicNames(topic_prefix).events
    assert len(await records_of(kafka, topic)) == 5
    assert kafka_command.run("dead-letters", "replay", *only_tips).stdout.startswith("1 put back")
    replayed = [record for record in await records_of(kafka, topic) if dict(record.headers).get("streamrec.replays")]
    assert [(record.key, record.value) for record in replayed] == [(b"u1", json.dumps(tips[0]).encode())]

    kafka_command.environment["STREAMREC_INTERACTION_STRENGTHS"] = "tip=3"
    with kafka_command.worker() as worker:
        wait_for(lambda: _nothing_waits(kafka_command), "a worker that is through")
        assert worker.stop()[0] == 0
    exported = kafka_command.lines("users", "export", "-")
    assert [(user["user_id"], user["events_applied"]) for user in exported] == [("u1", 1)]


def test_a_second_process_is_told_how_to_share_an_embedded_store(kafka_command: Command, tmp_path: Path) -> None:
    kafka_command.run("topics", "create")
    with kafka_command.worker() as worker:
        file = tmp_path / "users.jsonl"
        assert "streamrec store" in kafka_command.run("users", "export", file, code=2).stderr
        assert not file.exists()
        assert findings(kafka_command, code=0)["index"][0]["level"] == "warn"
        assert "not checked" in kafka_command.run("dead-letters", "replay").stderr
        assert worker.stop()[0] == 0


def test_a_worker_that_waits_for_its_broker_still_stops(tmp_path: Path, bundle: str) -> None:
    away = Command(
        tmp_path,
        kafka_bootstrap_servers=f"127.0.0.1:{free_port()}",
        data_dir=str(tmp_path / "data"),
        bundle=bundle,
        metrics_port="0",
    )
    with away.started("worker") as worker:
        wait_for(
            lambda: "metrics and probes" in worker.said() or worker.process.poll() is not None, "a worker that starts"
        )
        if worker.process.poll() is None:
            worker.process.terminate()
        code = worker.process.wait(10)
    assert code in (0, 1), worker.said()
    assert "Traceback" not in worker.said()


def test_bundles_are_shown_and_verified(kafka_command: Command, bundle: str, tmp_path: Path) -> None:
    assert "bootstrap-" in kafka_command.run("bundle", "show").stdout
    assert json.loads(kafka_command.run("bundle", "show", bundle, "--json").stdout)["name"] == "bootstrap"
    assert kafka_command.run("bundle", "verify").stdout.startswith("ok")
    assert "no bundle here" in kafka_command.run("bundle", "verify", tmp_path / "nothing", code=2).stderr
