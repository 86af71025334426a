"""What keeps the work beside the events from being felt by them: a low priority, and memory given back. Linux only."""

from __future__ import annotations

import ctypes
import os
import threading

# Half of what a thread may yield: an idle core is used whole, a busy one is left to the events.
NICENESS = 10


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
