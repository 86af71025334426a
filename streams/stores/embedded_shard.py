"""One shard of the embedded engine on a thread of its own: how to run, flush and close it, not what it holds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from qdrant_edge import EdgeConfig, EdgeShard

from models.domain.errors import StoreError

T = TypeVar("T")
PointId = int | str | UUID

# Points written between two flushes. A flush cuts the write-ahead log, which otherwise grows by 7 kB a user; it runs
# beside the writes, but one of them may wait for it (40 to 100 ms on two busy cores, however little is flushed; without
# a flush the longest write was 16 ms), so that it must be rare. At 16,384 the log stays near 120 MB; 14,000 users of it
# are replayed in 0.4 s after kill -9.
FLUSH_EVERY_POINTS = 16_384

# Making, flushing and closing a shard keep the interpreter's lock, each call 3 to 13 ms (qdrant-edge-py 0.9): in a row
# they hold up everything else of the process, events among them, for as long as all of them together.
APART_SECONDS = 0.03

logger = logging.getLogger(__name__)


class Shard:
    """An open shard. Calls run on its thread, in the order made; a flush runs on another, which the engine allows.

    Args:
        error: the StoreError that this shard's failures become.
    """

    def __init__(self, engine: EdgeShard, error: type[StoreError], name: str) -> None:
        self.engine = engine
        self.error = error
        self.name = name
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"store-{name}")
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix=f"flush-{name}")
        self._flush: Future[None] | None = None
        self._unflushed_points = 0
        self._closed = False

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` on the shard's thread. Raises: the shard's StoreError in place of the engine's."""
        if self._closed:
            raise self.error(f"collection {self.name} was closed or dropped", retryable=False)
        return await asyncio.get_running_loop().run_in_executor(self._writer, guarded, function, self.error)

    def wrote(self, points: int, *, optimize: bool = False) -> None:
        """Count a write; called on the shard's thread.

        Args:
            optimize: build graphs after the flush; of use only where the engine searches, and it costs seconds.
        """
        self._unflushed_points += points
        if self._unflushed_points >= FLUSH_EVERY_POINTS and (self._flush is None or self._flush.done()):
            self._unflushed_points = 0
            self._flush = self._maintenance.submit(self._maintain, optimize)

    def _maintain(self, optimize: bool) -> None:
        try:
            self.engine.flush()
            if optimize:
                self.engine.optimize()
        except Exception:
            # Nothing is lost: the write-ahead log still holds it, and the next flush tries again.
            logger.exception("collection %s could not be flushed", self.name)

    async def close(self) -> None:
        """Wait for what is under way, flush, release the shard's lock."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._writer, guarded, self._close, self.error)
        self._writer.shutdown(wait=False)

    def _close(self) -> None:
        self._maintenance.shutdown(wait=True)
        self.engine.flush()
        breathe()  # a close that has nothing to flush is short
        self.engine.close()


def breathe() -> None:
    """Let the process's other threads run between two calls that keep the interpreter's lock."""
    time.sleep(APART_SECONDS)


def load_shard(path: Path, error: type[StoreError]) -> EdgeShard:
    """Open the shard at `path`, replaying its log; blocks."""
    return guarded(lambda: EdgeShard.load(str(path)), error)


def create_shard(path: Path, config: EdgeConfig, error: type[StoreError]) -> EdgeShard:
    """Make an empty shard at `path`; blocks."""
    return guarded(lambda: EdgeShard.create(str(path), config), error)


def guarded(function: Callable[[], T], error: type[StoreError]) -> T:
    """Run `function`; what the engine raises becomes `error`.

    What the caller did wrong is refused before the engine sees it, so that what the engine refuses is the disk's doing
    and may pass. A panic of the engine (a BaseException of its binding) does not.
    """
    try:
        return function()
    except StoreError:
        raise
    except (TypeError, ValueError) as refused:
        raise error(f"the embedded engine refused the call: {refused}", retryable=False) from refused
    except Exception as failure:
        raise error(f"the embedded engine failed: {failure}") from failure
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error(f"the embedded engine panicked: {panic}", retryable=False) from panic
