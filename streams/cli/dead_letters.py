"""`streamrec dead-letters list|replay`: what could not be processed, shown, and put back once mended."""

from __future__ import annotations

import base64
import contextlib
import heapq
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from models.domain.errors import RecommenderError
from streams.cli.common import run_async, with_settings
from streams.cli.follow import print_table
from streams.settings import Settings
from streams.topics import TopicNames

if TYPE_CHECKING:
    from models.domain.ports import UserStore
    from streams.kafka.dead_letters import DeadLetter

# One call of the publisher, and one read of the user store.
BATCH = 500

Reason = Annotated[str, typer.Option(metavar="WORD", help="Only dead letters of this reason.")]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def dead_letters() -> None:
    """Messages that could not be processed."""


@app.command("list")
@with_settings("Kafka")
def list_letters(
    settings: Settings,
    reason: Reason = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Show the newest N.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, with key and value.")] = False,
) -> None:
    """Show the newest dead letters, and how many there are of each reason. Values are shown with --json only."""
    counts, newest = run_async(_newest(settings, reason, limit))
    if as_json:
        for letter in newest:
            typer.echo(msgspec.json.encode(_plain(letter)))
        return
    rows = [
        (
            f"{at.partition}/{at.offset}",
            f"{at.source_topic} {at.source_partition}/{at.source_offset}",
            at.reason,
            at.value_bytes,
            at.replays,
            at.detail,
        )
        for at in newest
    ]
    print_table("dead letters", ("place", "source", "reason", "bytes", "replays", "detail"), rows)
    total = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
    typer.echo(f"{counts.total()} dead letters: {total}")


@app.command()
@with_settings("Kafka", "Qdrant", "Model")
def replay(
    settings: Settings,
    reason: Reason = "",
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Put back at most N, oldest first; 0 = all.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be put back.")] = False,
) -> None:
    """Put dead letters back into the topic they came from, byte for byte.

    A dead letter stays in its topic until retention removes it, so that a second run puts it back again; events are
    folded once whatever happens, by their event_id. Left out are letters of which only the head was kept, and what
    users did who have been forgotten since; for that the user store is looked at, where it can be opened.
    """
    counts, checked = run_async(_replay(settings, reason, limit, dry_run))
    if checked is not None:
        print(f"warning: not checked whether users were forgotten since: {checked}", file=sys.stderr)
    left_out = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()) if what != "put back") or "none"
    typer.echo(f"{counts['put back']} {'would be ' if dry_run else ''}put back; left out: {left_out}")


async def _letters(settings: Settings, reason: str) -> AsyncIterator[DeadLetter]:
    from streams.kafka.broadcast import read_to_end
    from streams.kafka.connection import KafkaConnection
    from streams.kafka.dead_letters import DeadLetterError, parse_dead_letter

    topic = TopicNames(settings.topic_prefix).dead_letters
    connection = KafkaConnection.from_settings(settings)
    async for record in read_to_end(connection, topic, client_id="streamrec-dead-letters"):
        try:
            letter = parse_dead_letter(record)
        except DeadLetterError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        if not reason or letter.reason == reason:
            yield letter


async def _newest(settings: Settings, reason: str, limit: int) -> tuple[Counter[str], list[DeadLetter]]:
    counts: Counter[str] = Counter()
    newest: list[tuple[int, int, int, DeadLetter]] = []  # a heap: the oldest of them first
    async for letter in _letters(settings, reason):
        counts[letter.reason] += 1
        entry = (letter.source_timestamp_ms, letter.partition, letter.offset, letter)
        if len(newest) < limit:
            heapq.heappush(newest, entry)
        else:
            heapq.heappushpop(newest, entry)
    return counts, [entry[3] for entry in sorted(newest, key=lambda entry: entry[:3])]


def _plain(letter: DeadLetter) -> dict[str, Any]:
    """Bytes as text where they are text, else as base64 under another name."""
    shown: dict[str, Any] = {
        each.name: getattr(letter, each.name) for each in fields(letter) if each.name not in ("key", "value", "headers")
    }
    for name in ("key", "value"):
        data: bytes | None = getattr(letter, name)
        try:
            shown[name] = None if data is None else data.decode()
        except UnicodeDecodeError:
            shown[f"{name}_base64"] = base64.b64encode(data or b"").decode()
    return shown


async def _replay(settings: Settings, reason: str, limit: int, dry_run: bool) -> tuple[Counter[str], str | None]:
    """Returns: how many of each outcome, and why the forgotten could not be told (None where they could)."""
    from streams.cli.states import user_states
    from streams.kafka.connection import KafkaConnection
    from streams.kafka.publisher import Publisher

    counts: Counter[str] = Counter()
    unchecked: str | None = None
    store: UserStore | None = None
    async with contextlib.AsyncExitStack() as opened:
        try:
            store = await opened.enter_async_context(user_states(settings))
        except RecommenderError as error:
            unchecked = str(error)
        publisher = None
        if not dry_run:
            publisher = await opened.enter_async_context(
                Publisher(KafkaConnection.from_settings(settings), client_id="streamrec-replay")
            )
        pending: list[DeadLetter] = []
        taken = 0
        async for letter in _letters(settings, reason):
            if not _replayable(settings, letter, counts):
                continue
            pending.append(letter)
            taken += 1
            if len(pending) == BATCH or taken == limit:
                await _put_back(publisher, store, pending, counts)
            if taken == limit:
                break
        await _put_back(publisher, store, pending, counts)
    return counts, unchecked


def _replayable(settings: Settings, letter: DeadLetter, counts: Counter[str]) -> bool:
    names = TopicNames(settings.topic_prefix)
    if not letter.whole:
        counts["of which only the head was kept"] += 1
        return False
    if letter.source_topic not in (names.events, names.items, names.requests):
        counts["of another deployment"] += 1
        return False
    return True


async def _put_back(publisher: Any, store: UserStore | None, pending: list[DeadLetter], counts: Counter[str]) -> None:
    from streams.kafka.dead_letters import replay_message

    if not pending:
        return
    forgotten = await _forgotten(store, pending) if store is not None else [False] * len(pending)
    kept = [letter for letter, gone in zip(pending, forgotten, strict=True) if not gone]
    if publisher is not None:
        await publisher.send_many([replay_message(letter) for letter in kept])
    counts["put back"] += len(kept)
    counts["of users who were forgotten"] += sum(forgotten)
    counts += Counter()  # without the zeros
    pending.clear()


class _Whose(msgspec.Struct):
    user_id: Any = None
    event_time_ms: Any = None


async def _forgotten(store: UserStore, letters: Sequence[DeadLetter]) -> list[bool]:
    """Whether each letter is of a time that its user had forgotten; without a readable time, any is."""
    from models.domain.state import unpack_body, user_key

    whose = [_whose(letter) for letter in letters]
    ids = sorted({user_id for user_id, _ in whose if user_id})
    records = await store.load_many([user_key(user_id) for user_id in ids]) if ids else []
    since = {
        user_id: unpack_body(record.body).forgotten_ms
        for user_id, record in zip(ids, records, strict=True)
        if record is not None
    }
    return [
        (at := since.get(user_id, -1)) >= 0 and (event_time_ms is None or event_time_ms <= at)
        for user_id, event_time_ms in whose
    ]


def _whose(letter: DeadLetter) -> tuple[str, int | None]:
    """User and event time as far as a message that is no good tells them; else the key names the user."""
    found = _Whose()
    with contextlib.suppress(msgspec.DecodeError, RecursionError, ValueError):
        found = msgspec.json.decode(letter.value or b"", type=_Whose)
    user_id = found.user_id
    if isinstance(user_id, bool) or not isinstance(user_id, str | int):
        user_id = (letter.key or b"").decode("utf-8", "replace")
    time_ms = found.event_time_ms
    return str(user_id), time_ms if isinstance(time_ms, int) and not isinstance(time_ms, bool) else None
