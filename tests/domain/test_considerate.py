"""Work beside the events gives way to them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from streams.agents.considerate import NICENESS, give_memory_back, stay, yield_to_events


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_a_thread_that_yields_leaves_the_others_their_priority() -> None:
    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = own()
    with ThreadPoolExecutor(1, initializer=yield_to_events) as executor:
        assert executor.submit(own).result() == min(19, max(before, NICENESS))
    assert own() == before


def test_memory_can_be_given_back_at_any_time() -> None:
    give_memory_back()
    give_memory_back()


def test_what_stays_is_not_looked_at_again() -> None:
    mine: dict[str, list[int]] = {"any": []}
    try:
        stay()
        assert not any(each is mine for each in gc.get_objects())
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert any(each is mine for each in gc.get_objects())
