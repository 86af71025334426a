"""The replay buffer: whole after a kill, bounded, and fair to users."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra `train` or `demo`")

from models.domain.feedback import Candidates, Feedback, pack_features
from models.learning.replay_buffer import ReplayBuffer, useful
from tests.domain.helpers import told_click

FEATURES = np.random.default_rng(0).normal(size=(20, 54))


def record(n: int, user: str = "u", *, with_candidates: bool = True) -> Feedback:
    candidates = Candidates(tuple(f"i{k}" for k in range(20)), pack_features(FEATURES), n % 20, (1,) * 8, 1)
    return told_click(
        n,
        user,
        f"i{n % 20}",
        history=(("i0", "click", None, n - 1, None),),
        candidates=candidates if with_candidates else None,
    )


def everything(buffer: ReplayBuffer) -> list[Feedback]:
    return [each for _, records in buffer.after(0) for each in records]


def test_records_and_offsets_come_back_as_they_went_in(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    assert (buffer.offsets, buffer.last, len(buffer)) == ({}, 0, 0)
    first = buffer.append([record(0), record(1)], {0: 2, 1: 5})
    second = buffer.append([record(2)], {0: 3})
    third = buffer.append([], {1: 9})  # records that need no keeping are covered too
    again = ReplayBuffer(tmp_path)
    assert everything(again) == [record(0), record(1), record(2)]
    assert again.offsets == buffer.offsets == {0: 3, 1: 9}
    assert [number for number, _ in again.after(first)] == [second, third]
    assert again.append([record(3)], {0: 1}) == third + 1
    assert again.offsets == {0: 3, 1: 9}, "offsets never go back"


def test_what_a_kill_left_unfinished_is_no_segment_and_a_damaged_one_is_set_aside(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for n in range(3):
        buffer.append([record(n)], {0: n + 1})
    names = sorted(tmp_path.glob("*.parquet"))
    (tmp_path / "000000000004.draft").write_bytes(names[0].read_bytes()[:100])
    names[1].write_bytes(names[1].read_bytes()[:-7])
    again = ReplayBuffer(tmp_path)
    assert again.damaged == [names[1].name]
    assert everything(again) == [record(0), record(2)]
    assert again.offsets == {0: 3}
    assert not list(tmp_path.glob("*.draft"))
    assert again.append([record(3)], {0: 4}) == 4


KILLED = """
import sys
from pathlib import Path
from tests.domain.test_replay_buffer import record
from models.learning.replay_buffer import ReplayBuffer
buffer = ReplayBuffer(Path(sys.argv[1]), capacity_bytes=200_000)
n = len(buffer.offsets) and buffer.offsets[0]
print("ready", flush=True)
while True:
    buffer.append([record(n + k, f"u{k % 3}", with_candidates=k % 2 == 0) for k in range(10)], {0: n + 10})
    n += 10
    print(n, flush=True)
"""


def test_killed_at_any_moment_a_writer_leaves_whole_segments_and_loses_nothing_it_had_answered_for(
    tmp_path: Path,
) -> None:
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
        )
        assert writer.stdout is not None
        told = 0
        try:
            assert writer.stdout.readline() == "ready\n"
            for _ in range(3 + 5 * attempt):
                told = int(writer.stdout.readline())
        finally:
            writer.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
            writer.wait()
            writer.stdout.close()
        buffer = ReplayBuffer(tmp_path, capacity_bytes=200_000)
        assert buffer.damaged == []
        assert buffer.offsets[0] >= told
        assert buffer.offsets[0] % 10 == 0
        found = everything(buffer)
        assert found[-1].event_id == f"e{buffer.offsets[0] - 1}" or found[-1].event_id == f"e{buffer.offsets[0] - 2}"
        assert buffer.bytes <= 200_000


def test_the_older_half_is_thinned_before_anything_newer_is_lost(tmp_path: Path) -> None:
    whole = ReplayBuffer(tmp_path / "whole")
    size = 0
    for n in range(8):
        whole.append([record(10 * n + k, f"u{k}", with_candidates=k % 2 == 0) for k in range(10)], {0: n})
        size = whole.bytes
    small = ReplayBuffer(tmp_path / "small", capacity_bytes=size - 1)
    for n in range(8):
        small.append([record(10 * n + k, f"u{k}", with_candidates=k % 2 == 0) for k in range(10)], {0: n})
    assert [segment.thinned for segment in small.segments] == [True] + [False] * 7
    assert [segment.rows for segment in small.segments] == [5] + [10] * 7
    tiny = ReplayBuffer(tmp_path / "tiny", capacity_bytes=size // 3)
    for n in range(8):
        tiny.append([record(10 * n + k, f"u{k}", with_candidates=k % 2 == 0) for k in range(10)], {0: n})
    assert tiny.bytes <= size // 3
    assert tiny.segments[-1].number == 8
    assert not tiny.segments[-1].thinned
    assert tiny.offsets == {0: 7}


def test_of_a_thinned_segment_stay_lists_to_learn_from_and_of_a_heavy_user_his_newest() -> None:
    users = ["heavy"] * 8 + ["a", "b"]
    kept = useful(users, np.array([True] * 9 + [False]), 0.3)
    assert np.flatnonzero(kept).tolist() == [5, 6, 7, 8]


def test_a_forgotten_users_records_are_gone_from_the_disk(tmp_path: Path) -> None:
    buffer = ReplayBuffer(tmp_path)
    for n in range(0, 30, 10):
        buffer.append([record(n + k, f"somebody-{k % 2}") for k in range(10)], {0: n})
    assert buffer.forget("somebody-1", 14) == 7
    assert buffer.forget("somebody-1", 14) == 0
    again = ReplayBuffer(tmp_path)
    assert len(everything(again)) == len(again) == 23
    assert min(each.event_time_ms for each in everything(again) if each.user_id == "somebody-1") == 15
    assert again.offsets == {0: 20}
    buffer.forget("somebody-1", 100)
    assert all(b"somebody-1" not in path.read_bytes() for path in tmp_path.iterdir())
