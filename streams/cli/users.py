"""`streamrec users export|rebuild`: user states shown, and made anew from the log."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from streams.cli.common import fail, run_async, use_one_blas_thread, with_settings
from streams.cli.lines import new_file, progress_bar
from streams.settings import Settings

if TYPE_CHECKING:
    from models.domain.ports import UserRecord

EXIT_UNKNOWN_USER = 1

app = typer.Typer(no_args_is_help=True)


@app.callback()
def users() -> None:
    """User states."""


@app.command()
@with_settings("Qdrant", "Model")
def export(
    settings: Settings,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines; .gz is packed; `-` = standard output.")],
    user: Annotated[str, typer.Option(metavar="ID", help="Only this user.")] = "",
) -> None:
    """Write what is stored of every user, or of one: a JSON object a line. For support and for the right of access.

    A line holds user_id, events_applied, model_version, applied_offsets, recent (the latest interactions),
    last_event_ms, sequence and last_list. Users who were forgotten are not in it. An embedded store belongs to one
    process: beside a running worker, start `streamrec store` first and the worker on its socket
    (STREAMREC_QDRANT_URL=unix:/path).
    """
    count = run_async(_export(settings, file, user))
    if user and not count:
        fail(f"nothing is stored of user {user!r}")
        raise typer.Exit(EXIT_UNKNOWN_USER)
    print(f"{count} users exported", file=sys.stderr)


async def _export(settings: Settings, file: Path, user: str) -> int:
    from models.domain.state import user_key
    from streams.cli.states import exported, user_states

    count = 0
    async with user_states(settings) as store:
        with new_file(file, private=True) as out, progress_bar("exporting", await store.count(), "users") as progress:
            records = _these(await store.load_many([user_key(user)])) if user else store.scan()
            seen = 0
            async for record in records:
                line = exported(record)
                if line is not None:
                    out.write(msgspec.json.encode(line) + b"\n")
                    count += 1
                seen += 1
                progress(seen)
    return count


async def _these(records: Iterable[UserRecord | None]) -> AsyncIterator[UserRecord]:
    for record in records:
        if record is not None:
            yield record


@app.command()
@with_settings()
def rebuild(settings: Settings) -> None:
    """Fold the events that Kafka still has into a new generation of states, publish nothing, then switch to it.

    For states that a defect spoilt. Stop the workers first: it refuses while the consumer group has members. Each
    user's events up to the offset that the group has committed are folded, the rest is the worker's; users of whom no
    event is retained keep their state, and who was forgotten stays so. Sequence numbers and the last list go on.
    """
    use_one_blas_thread()
    from streams.cli.rebuild import rebuild_users

    report = run_async(rebuild_users(settings))
    typer.echo(
        f"generation {report.generation} is live: {report.folded} events folded for {report.rebuilt} users, "
        f"{report.kept} users kept as they were, {report.skipped} records left out (bad, late, double or forgotten)"
    )
