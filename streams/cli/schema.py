"""`streamrec schema`: the event contract for producers in other languages."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from models.domain.errors import SettingsError
from models.domain.events import EventContract
from streams.cli.common import with_settings
from streams.settings import Settings

app = typer.Typer()


@app.command()
@with_settings("Recommending")
def schema(
    settings: Settings,
    message: Annotated[
        str, typer.Option(metavar="NAME", help="Only this message: interaction, search, item, ...; empty = all.")
    ] = "",
) -> None:
    """Print JSON Schemas (2020-12) of the messages, with the kinds that the settings add."""
    document = EventContract(settings.interaction_strengths).json_schema()
    if message:
        schemas = document["messages"]
        if message not in schemas:
            raise SettingsError(f"`--message`: there is no message {message!r}; there are {', '.join(schemas)}")
        document = {"$schema": document["$schema"], **schemas[message]}
    typer.echo(json.dumps(document, indent=2))
