"""What commands share: settings as flags, an event loop, the way errors reach people. It must not know any command."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from streams.logs import configure_logging
from streams.settings import SettingInfo, Settings, describe_settings

if TYPE_CHECKING:
    from models.encoders.manifest import Manifest

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


def stop_on_signals(stop: Callable[[], object]) -> None:
    """Call `stop` at SIGTERM (supervisors) and SIGINT (Ctrl-C). For the running event loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def until_stopped(work: Coroutine[Any, Any, object]) -> None:
    """Run `work` to its end, or until a signal asks to end: then it is cancelled, and that is no failure."""
    task = asyncio.ensure_future(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    stop_on_signals(stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise


def use_one_blas_thread() -> None:
    """Keep matrix products on the calling thread, unless the environment says otherwise. Call it before numpy is
    loaded.

    The exact search multiplies small batches: with two BLAS threads it fell from thousands to 123 queries a second,
    since the threads wait for each other longer than they compute (research/faust-feasibility.md). BLAS reads these
    once.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def bundle_path(settings: Settings) -> Path:
    """Where the bundle to serve is, or will be once the bootstrap bundle is made. Makes nothing."""
    return Path(settings.bundle) if settings.bundle else settings.data_dir / "bundles" / "bootstrap"


def resolve_bundle(settings: Settings) -> Path:
    """The bundle to serve: the directory of the settings, else the bootstrap bundle, made or brought up to date here.

    Raises: BundleError.
    """
    if settings.bundle:
        return bundle_path(settings)
    # Only the command line may import `export`, and only where a bundle is to be made: it needs the extra `bundle`.
    from export.bootstrap import ensure_bootstrap
    from models.domain.events import EventContract, declared_types
    from models.domain.features import BASE_FEATURES
    from models.domain.ranking import bootstrap_weights

    return ensure_bootstrap(
        bundle_path(settings),
        text_model=settings.text_model or None,
        features=BASE_FEATURES,
        initial_weights=bootstrap_weights(),
        kinds=sorted(declared_types(EventContract(settings.interaction_strengths))),
    )


def served_manifest(settings: Settings) -> Manifest:
    """The manifest of the bundle to serve, which is made only where there is none. Raises: BundleError."""
    from models.domain.errors import BundleError
    from models.encoders.manifest import read_manifest

    try:
        return read_manifest(bundle_path(settings))
    except BundleError:
        if settings.bundle:
            raise
        return read_manifest(resolve_bundle(settings))


def installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def fail(message: str) -> None:
    """Say on standard error what is wrong, a line a problem."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
