"""`streamrec publish`: a file of events or items into Kafka. Decoding and its errors are the event contract's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from models.domain.errors import EventDecodeError, SettingsError
from models.domain.events import EventContract
from streams.cli.common import run_async, with_settings
from streams.cli.lines import BadLines, FileError, Line, file_size, progress_bar, read_lines
from streams.settings import Settings
from streams.topics import TopicNames

if TYPE_CHECKING:
    from streams.kafka.publisher import Message, Publisher

# One call of the publisher: some produce requests, and at most so many messages in memory.
BATCH = 1_000
EVENTS, ITEMS = "events", "items"

app = typer.Typer()


@app.command()
@with_settings("Kafka", "Recommending")
def publish(
    settings: Settings,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, plain or .gz; `-` = standard input.")],
    events: Annotated[bool, typer.Option("--events", help="Every line is an event.")] = False,
    items: Annotated[bool, typer.Option("--items", help="Every line is an item.")] = False,
    rate: Annotated[float, typer.Option(metavar="N", min=0, help="Messages a second; 0 = as fast as Kafka takes.")] = 0,
    validate: Annotated[bool, typer.Option(help="Check each line against the contract before it is sent.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first bad line.")] = False,
) -> None:
    """Publish events or items from a file, a JSON object a line.

    A line with `type` is an event, any other one an item; {"item_id":"x","removed":true} removes an item. Lines are
    sent as they are, keyed by user_id or item_id. Bad lines are reported with number and reason, counted and left out.
    """
    if events and items:
        raise SettingsError("`--events` and `--items` exclude each other; leave both out to tell by the line")
    only = EVENTS if events else ITEMS if items else ""
    reader = LineReader(
        EventContract(settings.interaction_strengths), TopicNames(settings.topic_prefix), only, validate
    )
    bad = BadLines(file)
    sent = run_async(_publish(settings, file, reader, bad, rate, strict))
    parts = [f"{count} {what}" for what, count in sorted(sent.items())] or ["nothing"]
    typer.echo(f"published {', '.join(parts)}; {bad.count} bad lines")


class _Look(msgspec.Struct):
    """What decides where a line goes."""

    type: Any = None
    item_id: Any = None
    user_id: Any = None
    removed: Any = False


class Outgoing(NamedTuple):
    line: int
    what: str
    message: Message


class LineReader:
    """Turns lines into messages.

    Args:
        only: `events` or `items` where every line is one; empty = told by the line.
        validate: whether the contract must accept the line.
    """

    def __init__(self, contract: EventContract, names: TopicNames, only: str, validate: bool) -> None:
        self._contract, self._names, self._only, self._validate = contract, names, only, validate
        self._look = msgspec.json.Decoder(_Look)

    def read(self, line: Line) -> Outgoing:
        """Raises: EventDecodeError."""
        try:
            look = self._look.decode(line.data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            look = _Look()  # the contract says what is wrong, where it is asked
        is_item = self._only == ITEMS or (not self._only and look.type is None and look.item_id is not None)
        return self._item(line, look) if is_item else self._event(line, look)

    def _event(self, line: Line, look: _Look) -> Outgoing:
        from streams.kafka.publisher import Message

        user_id = self._contract.decode_event(line.data).user_id if self._validate else look.user_id
        return Outgoing(line.number, EVENTS, Message(self._names.events, _key(user_id), line.data))

    def _item(self, line: Line, look: _Look) -> Outgoing:
        from streams.kafka.publisher import Message

        item_id = self._contract.decode_item(line.data).item_id if self._validate else look.item_id
        key = _key(item_id)
        if key is None:
            # The topic is compacted, and brokers refuse a record without a key there.
            raise EventDecodeError("missing_key", "an item needs an `item_id`")
        removed = look.removed is True
        value = None if removed else line.data
        return Outgoing(line.number, "removals" if removed else ITEMS, Message(self._names.items, key, value))


def _key(found: object) -> bytes | None:
    if isinstance(found, bool) or not isinstance(found, str | int):
        return None
    return str(found).encode("utf-8", "surrogatepass")


async def _publish(
    settings: Settings, file: Path, reader: LineReader, bad: BadLines, rate: float, strict: bool
) -> Counter[str]:
    from streams.kafka.connection import KafkaConnection
    from streams.kafka.publisher import Publisher

    counts: Counter[str] = Counter()
    pending: list[Outgoing] = []
    with progress_bar(f"publishing {file.name}", file_size(file), "bytes") as progress:
        async with Publisher(KafkaConnection.from_settings(settings), client_id="streamrec-publish") as publisher:
            pace = Pace(rate)
            room = await pace.room()
            for line in read_lines(file, progress):
                try:
                    pending.append(reader.read(line))
                except EventDecodeError as error:
                    bad.report(line.number, error)
                    if strict:
                        await _send(publisher, pending, counts, bad)
                        raise FileError(
                            f"{file}:{line.number} is no good; what stands before it is published"
                        ) from error
                    continue
                if len(pending) >= room:
                    await _send(publisher, pending, counts, bad)
                    room = await pace.room()
            await _send(publisher, pending, counts, bad)
    if strict and bad.count:
        raise FileError(f"{file}: {bad.count} messages are larger than their topic allows")
    return counts


async def _send(publisher: Publisher, pending: list[Outgoing], counts: Counter[str], bad: BadLines) -> None:
    from streams.kafka.publisher import MessageTooLargeError

    too_large: set[int] = set()
    try:
        await publisher.send_many([each.message for each in pending])
    except MessageTooLargeError as error:
        too_large.update(error.indexes)
    for place, each in enumerate(pending):
        if place in too_large:
            bad.report(each.line, "too_large: the message is larger than the topic allows")
        else:
            counts[each.what] += 1
    pending.clear()


class Pace:
    """How many messages may go now, so that on average `rate` go in a second (0 = no limit)."""

    def __init__(self, rate: float, now: Callable[[], float] | None = None) -> None:
        self._rate, self._now = rate, now or asyncio.get_running_loop().time
        self._start = self._now()
        self._given = 0

    async def room(self) -> int:
        """Waits until there is room for one. Returns: for how many."""
        if not self._rate:
            return BATCH
        wait = self._start + self._given / self._rate - self._now()
        if wait > 0:
            await asyncio.sleep(wait)
        room = min(BATCH, max(1, int((self._now() - self._start) * self._rate) + 1 - self._given))
        self._given += room
        return room
