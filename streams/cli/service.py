"""What commands share that run until they are told to stop: an end in time, and an exit code that says why.

Must not know what runs.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from models.domain.errors import StoreError
from streams.cli.common import fail, run_async, stop_on_signals
from streams.settings import Settings

# The chunk in work, the last commit and leaving the group take 2 s; supervisors kill after 5 s at the earliest.
STOP_SECONDS = 4.5
# Something broke that a new start may cure (2 = settings, files or services have to be changed first).
EXIT_BROKEN = 1


def run_service(settings: Settings, start: Callable[[], Coroutine[Any, Any, None]], *broken: type[Exception]) -> None:
    """Run to the end.

    Args:
        broken: errors that a new start may cure.
    Raises: typer.Exit with EXIT_BROKEN for these and where Kafka or the store is away; what has to be changed first as
        it comes.
    """
    from aiokafka.errors import KafkaError

    from streams.kafka.admin import TopicError

    try:
        try:
            run_async(start())
        finally:
            _keep_status()
    except broken as error:
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except (StoreError, TopicError) as error:
        # An embedded store that another process has, a topic that is missing: nothing that a new start cures.
        if not error.retryable if isinstance(error, StoreError) else error.topic:
            raise
        fail(str(error))
        raise typer.Exit(EXIT_BROKEN) from error
    except (KafkaError, OSError) as error:
        fail(f"Kafka at {settings.kafka_bootstrap_servers}: {error!r}")
        raise typer.Exit(EXIT_BROKEN) from error


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT. For the running event loop."""
    stop = asyncio.Event()
    stop_on_signals(stop.set)
    return stop


async def run_until_stopped(
    work: Coroutine[Any, Any, None],
    stop: asyncio.Event,
    name: str,
    patience: Callable[[], float] = lambda: STOP_SECONDS,
) -> None:
    """Run `work`, which ends by itself once `stop` is set; it is cut short where that takes too long.

    Args:
        patience: asked when `stop` is set: how many seconds it may take.
    """
    running = asyncio.create_task(work, name=name)
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not running.done():
        await asyncio.wait({running}, timeout=patience())
    if not running.done():
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled():
        running.result()


def _keep_status() -> None:
    """From here on the process ends by itself, with a status that says why: a signal that comes now must not replace
    it. (The loop's handlers are gone with the loop.)
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
