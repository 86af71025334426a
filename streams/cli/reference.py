"""`streamrec settings`, `metrics`, `version`: what this installation has, for people and for the README's tables."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated

import typer

from streams.cli.common import installed_version, with_settings
from streams.metrics import Metrics
from streams.settings import Settings, settings_markdown, unknown_environment
from streams.trainer_metrics import TrainerMetrics

# The parts whose version changes behaviour; a bug report should name them.
PARTS = (
    "streamrec",
    "faust-streaming",
    "aiokafka",
    "qdrant-client",
    "qdrant-edge-py",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "numba",
)

settings_app = typer.Typer()
metrics_app = typer.Typer()
version_app = typer.Typer()


@settings_app.command()
@with_settings()
def settings(
    settings: Settings,
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table instead of values.")] = False,
) -> None:
    """Print the effective settings as JSON, secrets hidden; on standard error, variables that set nothing."""
    if markdown:
        typer.echo(settings_markdown())
        return
    typer.echo(json.dumps(settings.redacted(), indent=2))
    for name, near in unknown_environment(os.environ):
        typer.echo(f"warning: {name} is no setting{f'; did you mean {near}?' if near else ''}", err=True)


@metrics_app.command()
def metrics(
    markdown: Annotated[bool, typer.Option("--markdown", help="The README's table.")] = False,
) -> None:
    """List every metric with its type and labels."""
    for title, listed in (("worker", Metrics()), ("trainer", TrainerMetrics())):
        if markdown:
            typer.echo(f"{listed.markdown()}\n")
            continue
        typer.echo(f"# {title}")
        for info in listed.described:
            labels = "{" + ",".join(info.labels) + "}" if info.labels else ""
            typer.echo(f"{info.name}{labels}  {info.kind}  {info.description}")


@version_app.command()
def version() -> None:
    """Print the versions of this program, of Python and of the parts that change behaviour."""
    typer.echo(f"python {platform.python_version()}")
    for part in PARTS:
        typer.echo(f"{part} {installed_version(part)}")
