"""`streamrec follow`: lists as they are published, for people or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from models.domain.errors import EventDecodeError
from models.domain.events import EventContract, Recommendation
from streams.cli.common import run_async, until_stopped, with_settings
from streams.settings import Settings
from streams.topics import TopicNames

app = typer.Typer()


@app.command()
@with_settings("Kafka")
def follow(
    settings: Settings,
    user: Annotated[str, typer.Option(metavar="ID", help="Only this user's lists.")] = "",
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Also the lists that are there already.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="End after so many lists; 0 = go on.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line, as published.")] = False,
) -> None:
    """Show lists as they are published, until Ctrl-C. Reads without a consumer group: it takes nothing from anybody."""
    run_async(until_stopped(_follow(settings, user, from_beginning, limit, as_json)))


async def _follow(settings: Settings, user: str, from_beginning: bool, limit: int, as_json: bool) -> None:
    from streams.cli.tail import tail
    from streams.kafka.connection import KafkaConnection

    key = user.encode("utf-8", "surrogatepass") if user else None
    topic = TopicNames(settings.topic_prefix).recommendations
    connection, listening = KafkaConnection.from_settings(settings), asyncio.Event()
    telling, shown = asyncio.create_task(_tell(listening, topic)), 0
    try:
        async for record in tail(connection, topic, key=key, from_beginning=from_beginning, ready=listening):
            show(record.key, record.value, as_json)
            shown += 1
            if shown == limit:
                return
    finally:
        telling.cancel()


async def _tell(listening: asyncio.Event, topic: str) -> None:
    """Say when nothing that is published is missed any more: whoever publishes next wants to know."""
    await listening.wait()
    typer.echo(f"reading {topic}", err=True)


def show(key: bytes | None, value: bytes | None, as_json: bool) -> None:
    """Print one message of `recommendations`; a null value says that the user was forgotten."""
    if value is None:
        user_id = (key or b"").decode("utf-8", "replace")
        text = (
            json.dumps({"user_id": user_id, "removed": True}) if as_json else f"{user_id}: forgotten, no list any more"
        )
        typer.echo(text)
        return
    if as_json:
        typer.echo(value.decode("utf-8", "replace"))
        return
    try:
        print_list(EventContract().decode_recommendation(value))
    except EventDecodeError as error:
        print(f"a message that is no list: {error}", file=sys.stderr)


def print_list(made: Recommendation) -> None:
    cause = f"request {made.request_id}" if made.request_id else f"event {made.trigger_event_id}"
    title = f"{made.user_id}  list {made.sequence} after {cause}  ({made.model_version})"
    rows = [[str(i.rank), i.item_id, f"{i.score:.3f}", i.source, i.reason] for i in made.items]
    print_table(title, ("rank", "item", "score", "source", "reason"), rows)


# Wider than any line that somebody looks at.
UNFOLDED_WIDTH = 10_000


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, folded: bool = True) -> None:
    """A table on standard output; ids are shown as they are, never read as markup.

    Args:
        folded: break long cells at the terminal's width; else a row is one line, and an id can be copied from it.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    table.title = _plain(title)
    width = None if folded else UNFOLDED_WIDTH
    Console(soft_wrap=not sys.stdout.isatty(), highlight=False, width=width).print(table)
    sys.stdout.flush()


def _plain(value: object) -> Any:
    from rich.text import Text

    return Text(str(value))
