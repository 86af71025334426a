"""`streamrec doctor`: looks at everything a worker needs, says what is wrong and how to mend it. It changes nothing."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from models.domain.errors import RecommenderError, StoreError
from streams.cli.common import bundle_path, installed_version, run_async, with_settings
from streams.cli.reference import PARTS
from streams.settings import HIDDEN, Settings, unknown_environment
from streams.topics import TopicNames, topic_specs

if TYPE_CHECKING:
    from streams.cli.group import GroupState
    from streams.kafka.admin import TopicReport
    from streams.kafka.connection import KafkaConnection

EXIT_FAULT = 1
# A second's work of one worker: below it a lag is a chunk under way.
LAG_WORTH_A_WARNING = 3_000

app = typer.Typer()


class Finding(NamedTuple):
    """One line of the report."""

    check: str
    level: Literal["ok", "warn", "fail"]
    message: str
    mend: str = ""


@app.command()
@with_settings()
def doctor(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array of the findings.")] = False,
) -> None:
    """Check settings, broker, topics, group, index, models and versions; say what is wrong and how to mend it.

    Looks, and changes nothing. Exit code 1 when something is wrong that keeps a worker from working.
    """
    findings = run_async(_all(settings))
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level:<5} {finding.check:<14} {finding.message}")
            if finding.mend:
                typer.echo(f"{'':<20} -> {finding.mend}")
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAULT)


async def _all(settings: Settings) -> list[Finding]:
    findings = [*check_settings(settings), *check_versions()]
    findings += [finding async for finding in check_kafka(settings)]
    findings += [finding async for finding in check_index(settings)]
    findings += check_bundle(settings)
    broker_answers = not any(finding.check == "broker" and finding.level == "fail" for finding in findings)
    return findings + [finding async for finding in check_models(settings, broker_answers=broker_answers)]


def check_settings(settings: Settings) -> Iterator[Finding]:
    strangers = unknown_environment(os.environ)
    for name, near in strangers:
        yield Finding("settings", "warn", f"{name} is no setting", f"did you mean {near}?" if near else "remove it")
    if not strangers:
        yield Finding("settings", "ok", "every STREAMREC_* variable is a setting")
    plain = settings.kafka_security_protocol == "SASL_PLAINTEXT"
    if plain:
        yield Finding(
            "settings", "warn", "the Kafka password travels unencrypted", "kafka_security_protocol = SASL_SSL"
        )
    if settings.qdrant_api_key.get_secret_value() and settings.qdrant_url.startswith("http://"):
        yield Finding("settings", "warn", f"the Qdrant key ({HIDDEN}) travels unencrypted", "an https:// qdrant_url")
    if settings.metrics_host not in ("127.0.0.1", "localhost", "::1"):
        yield Finding(
            "settings", "ok", f"metrics are open to the network at {settings.metrics_host}:{settings.metrics_port}"
        )


def check_versions() -> Iterator[Finding]:
    found = {part: installed_version(part) for part in PARTS}
    shown = ", ".join(f"{part} {version}" for part, version in found.items() if version != "not installed")
    yield Finding("versions", "ok", f"python {platform.python_version()}, {shown}")
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if found[name] != "not installed"]
    if not runtimes:
        yield Finding(
            "versions", "fail", "ONNX Runtime is not installed", "pip install 'streamrec[cpu]' or 'streamrec[gpu]'"
        )
    elif len(runtimes) == 2:
        yield Finding(
            "versions",
            "warn",
            "onnxruntime and onnxruntime-gpu are both installed and are one module",
            "pip uninstall both, then install the one you want",
        )


async def check_kafka(settings: Settings) -> AsyncIterator[Finding]:
    from streams.kafka.admin import UNKNOWN_INCARNATION, TopicError, describe_topics, topic_ids
    from streams.kafka.connection import KafkaConnection

    names = TopicNames(settings.topic_prefix)
    specs = topic_specs(
        names, partitions=settings.topic_partitions, replication_factor=settings.topic_replication_factor
    )
    try:
        connection = KafkaConnection.from_settings(settings)
        report = await describe_topics(connection, specs)
    except RecommenderError as error:
        mend = "start it, or correct STREAMREC_KAFKA_BOOTSTRAP_SERVERS and the kafka_* settings beside it"
        yield Finding("broker", "fail", str(error), mend)
        return
    yield Finding("broker", "ok", f"{settings.kafka_bootstrap_servers} answers")
    for finding in check_topics(report, names):
        yield finding
    here = [topic for topic in (names.events, names.requests, names.item_stats) if topic in report.partitions]
    try:
        ids = await topic_ids(connection, here) if here else {}
        if UNKNOWN_INCARNATION in ids.values():
            yield Finding(
                "topic ids",
                "warn",
                "this broker serves no topic ids: a topic deleted and made anew would look like a replay",
                "use another topic_prefix instead of making a topic anew",
            )
        elif ids:
            yield Finding("topic ids", "ok", ", ".join(f"{topic} {found[-8:]}" for topic, found in ids.items()))
        async for finding in check_group(connection, settings, report, names):
            yield finding
    except TopicError as error:
        yield Finding("broker", "fail", str(error), "run this again; should it stay, look at the broker's log")


def check_topics(report: TopicReport, names: TopicNames) -> Iterator[Finding]:
    create = "streamrec topics create"
    for topic in report.missing:
        yield Finding("topics", "fail", f"{topic} does not exist", create)
    for each in report.differences:
        setting = "partitions" if each.what == "partitions" else each.what
        yield Finding(
            "topics",
            "fail" if each.fault else "warn",
            f"{each.topic}: {setting} is {each.found}, documented {each.wanted}",
            "set topic_partitions to what is there, if that is meant"
            if each.what == "partitions" and not each.fault
            else f"kafka-configs --alter --topic {each.topic} --add-config {each.what}={each.wanted}"
            if each.what != "partitions"
            else f"delete {each.topic} and run `{create}`",
        )
    if report.existing and report.sound:
        shown = ", ".join(f"{topic} {report.partitions[topic]}" for topic in report.existing)
        yield Finding("topics", "ok", f"partitions: {shown}")
    counts = {topic: report.partitions[topic] for topic in (names.events, names.requests) if topic in report.partitions}
    if len(set(counts.values())) > 1:
        yield Finding(
            "co-partitioning",
            "fail",
            f"{names.events} and {names.requests} differ in partitions ({counts}): a user would have two writers",
            f"delete {names.requests} and make it with {counts[names.events]} partitions",
        )
    elif len(counts) == 2:
        yield Finding("co-partitioning", "ok", f"{names.events} and {names.requests} have {counts[names.events]} each")


async def check_group(
    connection: KafkaConnection, settings: Settings, report: TopicReport, names: TopicNames
) -> AsyncIterator[Finding]:
    from streams.cli.group import group_state

    topics = [topic for topic in (names.events, names.requests, names.items) if topic in report.partitions]
    if not topics:
        return
    state: GroupState = await group_state(connection, settings.consumer_group, topics)
    group = settings.consumer_group
    if state.members:
        yield Finding("consumer group", "ok", f"{group} has {state.members} members")
    else:
        yield Finding("consumer group", "warn", f"{group} has no member: no worker consumes", "streamrec worker")
    for topic in topics:
        lags = {place[1]: state.lag(place) for place in state.end if place[0] == topic}
        behind = sum(lags.values())
        shown = ", ".join(f"{partition}: {lag}" for partition, lag in lags.items())
        slow = bool(behind > LAG_WORTH_A_WARNING and state.members)
        yield Finding(
            "lag",
            "warn" if slow else "ok",
            f"{topic}: {behind} records behind ({shown})",
            "more workers, or more partitions" if slow else "",
        )


async def check_index(settings: Settings) -> AsyncIterator[Finding]:
    from streams.container import make_stores

    if not settings.qdrant_url and not (settings.data_dir / "collections").is_dir():
        yield Finding("index", "ok", f"embedded, made in {settings.data_dir} at a worker's first start")
        return
    stores = make_stores(settings)
    try:
        await stores.ping()
        described = await stores.describe()
    except StoreError as error:
        if not settings.qdrant_url and "is locked by" in str(error):
            mend = "`streamrec store` lets several processes in (STREAMREC_QDRANT_URL=unix:/path)"
            yield Finding("index", "warn", f"embedded and in use, so not looked into: {error}", mend)
        else:
            mend = "start it, or correct STREAMREC_QDRANT_URL; empty = embedded"
            yield Finding("index", "fail", str(error), mend)
        return
    finally:
        await stores.close()
    collections = described.pop("collections", None)
    yield Finding("index", "ok", ", ".join(f"{name} {value}" for name, value in described.items()))
    if isinstance(collections, dict):
        shown = ", ".join(f"{name} {count}" for name, count in sorted(collections.items())) or "none yet"
        yield Finding("collections", "ok", shown)


def check_bundle(settings: Settings) -> Iterator[Finding]:
    from streams.container import read_bundle

    path = bundle_path(settings)
    if not settings.bundle and not path.exists():
        missing = installed_version("onnx") == "not installed"
        yield Finding(
            "bundle",
            "fail" if missing else "ok",
            f"the bootstrap bundle is made in {path} at a worker's first start"
            + (", which needs the package onnx" if missing else ""),
            "pip install 'streamrec[bundle]', or set STREAMREC_BUNDLE" if missing else "",
        )
        return
    try:
        loaded = read_bundle(settings, path)
    except RecommenderError as error:
        mend = "set STREAMREC_BUNDLE to a sound bundle" if settings.bundle else "streamrec bundle bootstrap"
        yield Finding("bundle", "fail", str(error), mend)
        return
    yield Finding("bundle", "ok", f"{loaded.version} in {path}: checksums, shapes and parity hold")
    asked = ", ".join(loaded.missing_providers)
    yield Finding("providers", "ok", loaded.providers[0] + (f" (not in this installation: {asked})" if asked else ""))


async def check_models(settings: Settings, *, broker_answers: bool) -> AsyncIterator[Finding]:
    from streams.registry import Registry, RegistryError

    versions: list[str] | None = None
    try:
        registry = Registry(settings.registry_url)
        versions = registry.versions()
        yield Finding("registry", "ok", f"{registry} holds {len(versions)} model versions")
    except RegistryError as error:
        mend = "correct STREAMREC_REGISTRY, its credentials, or install the driver that is named"
        yield Finding("registry", "fail", str(error), mend)
    if broker_answers:
        async for finding in check_champion(settings, versions):
            yield finding


async def check_champion(settings: Settings, versions: list[str] | None) -> AsyncIterator[Finding]:
    from streams.kafka.admin import TopicError
    from streams.kafka.connection import KafkaConnection
    from streams.releases import ReleaseLog

    log = ReleaseLog(KafkaConnection.from_settings(settings), TopicNames(settings.topic_prefix).models)
    try:
        releases = await log.refresh()
    except TopicError:
        return  # among the topics, it is said that this one is missing
    except RecommenderError as error:
        yield Finding("champion", "fail", str(error), "run this again; should it stay, look at the broker's log")
        return
    if log.malformed:
        yield Finding("champion", "warn", f"{log.malformed} messages of the topic `models` say nothing", "see the log")
    champion = releases.champion
    if champion is None:
        yield Finding("champion", "ok", "no version was promoted: workers serve the bundle of their settings")
        return
    said = f"{champion.version}, release {champion.sequence} ({champion.action} by {champion.by})"
    if versions is not None and champion.version not in versions:
        mend = "streamrec models add BUNDLE_DIR, or streamrec models promote another one"
        yield Finding("champion", "fail", f"{said}, is not in the registry", mend)
    else:
        yield Finding("champion", "ok", said)
