"""What commands share: settings as flags, an event loop, the way errors reach people. It must not know any command."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from importlib import metadata
from typing import Annotated, Any, TypeVar

import typer

from streams.logs import configure_logging
from streams.settings import SettingInfo, Settings, describe_settings

T = TypeVar("T")


def with_settings(*groups: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command a parameter `settings: Settings` and a flag for every setting.

    The decorated function keeps its own arguments and options. Logging is configured from the settings before it runs.

    Args:
        groups: which groups of settings to offer as flags (`"Kafka"`, `"Qdrant"`, ...); none = all of them. The other
            settings still come from the environment and the TOML file. "General" is always offered.
    """
    wanted = {*groups, "General"} if groups else None
    infos = [info for info in describe_settings() if wanted is None or info.group in wanted]

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        clash = {parameter.name for parameter in own} & {info.name for info in infos}
        if clash:
            raise ValueError(
                f"{command.__name__} has options {sorted(clash)} that are settings: read them from `settings`"
            )

        @functools.wraps(command)
        def run(**given: Any) -> T:
            flags = {info.name: given.pop(info.name) for info in infos}
            settings = Settings(**{name: value for name, value in flags.items() if value is not None})
            configure_logging(settings.log_level, settings.log_format)
            return command(settings=settings, **given)

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        flags = [_flag(info) for info in infos]
        run.__signature__ = inspect.Signature([*own, *flags], return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)}
        return run

    return decorate


def _flag(info: SettingInfo) -> inspect.Parameter:
    # Values stay text here: `Settings` is the one place that reads and judges them, so that a flag, a variable and a
    # line of TOML get the same answer.
    flag = "--" + info.name.replace("_", "-")
    description = f"{info.description} ({info.limits})" if info.limits else info.description
    if info.is_secret:
        description += " A flag shows in the list of processes: prefer the environment."
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if info.is_switch else flag,
        envvar=info.environment,
        show_envvar=True,
        help=description,
        show_default=info.default or False,
        rich_help_panel=f"{info.group} settings",
        metavar=None if info.is_switch else "TEXT",
    )
    annotation = Annotated[bool | None, option] if info.is_switch else Annotated[str | None, option]
    return inspect.Parameter(info.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop where there is one."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def fail(message: str) -> None:
    """Say on standard error what is wrong, a line a problem."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
