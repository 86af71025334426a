"""What keeps the work beside the events from being felt by them: low priority, memory given back, no long collections.

Priorities and the allocator on Linux only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
import time

# Half of what a thread may yield: an idle core is used whole, a busy one is left to the events.
NICENESS = 10
# For a version that is not served yet: after each batch the events have the process for themselves, for this many times
# as long as the batch took. At 200 events/s the p99 of lists during a switch was 5.5 times the usual one without a
# pause, 2.2 times with three and 1.5 times with six, and 1,682 vectors took 1.4, 3.8 and 6.0 s.
PAUSES = 6.0
# A batch that took long on a busy machine was waiting for the most part: 1,682 vectors took 39 s beside a trainer.
LONGEST_PAUSE_SECONDS = 0.25


async def pause_after(started: float, pauses: float) -> None:
    """Leave the process to the events after a batch of work.

    Args:
        started: when the batch began, of `time.monotonic`.
        pauses: as a multiple of the time that it took.
    """
    await asyncio.sleep(min(pauses * (time.monotonic() - started), LONGEST_PAUSE_SECONDS))


def yield_to_events() -> None:
    """Lower the priority of the calling thread for good. Elsewhere than on Linux a thread has none of its own."""
    if hasattr(os, "PRIO_PROCESS") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def give_memory_back() -> None:
    """Let the allocator return what was freed: after a model was exchanged its graphs lie in arenas that keep it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # another libc, which has no such call


def stay() -> None:
    """Take what exists now for what stays: no later collection looks at it.

    A worker's libraries, compiled passes and catalogue are 200,000 objects and more; looking for garbage among all of
    them stopped events for 150 ms every few minutes.
    """
    gc.collect()
    gc.freeze()
