"""A whole fit in a process of its own: the same weights as here, an end that is told, nothing left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.features import FEATURE_COUNT
from models.learning.encoder import NetworkConfig
from models.learning.encoder_config import EncoderConfig
from models.learning.encoder_trainer import EncoderTrainer
from models.learning.fit_process import FitProcess
from models.learning.lists import Lists
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.whole_fit import FitError, Fitted, WholeFit, fit_whole
from tests.model.logs import TEXT, made_log

pytestmark = pytest.mark.train
SMALL = EncoderConfig(network=NetworkConfig(width=8, state=12, hidden=16, dropout=0.1), batch=8, chunk=10, passes=3)


def job(config: EncoderConfig = SMALL, *, ranker: bool = True) -> WholeFit:
    log, rng = made_log(), np.random.default_rng(0)
    features = rng.normal(size=(300, 12, FEATURE_COUNT)).astype(np.float16)
    lists = Lists(np.arange(300), features, np.full(300, 12, np.int32), rng.integers(0, 12, 300).astype(np.int32))
    return WholeFit(
        log=log,
        end=220,
        encoders=EncoderTrainer(config, items=log.items, kinds=len(log.kinds), text_dimension=TEXT, seed=3),
        rankers=RankerTrainer(RankerConfig(batch=32, sampled=6, updates=60), 5) if ranker else None,
        lists=lists if ranker else None,
        validation=0.1,
    )


@pytest.fixture
def fits(tmp_path: Path) -> Iterator[FitProcess]:
    made = FitProcess(tmp_path / "fit")
    yield made
    made.abandon()


def taken(fits: FitProcess) -> Fitted:
    until = time.monotonic() + 120
    while (found := fits.take()) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def process_of(fits: FitProcess) -> int:
    assert fits._process is not None
    return fits._process.pid


@pytest.mark.parametrize("ranker", [True, False])
def test_a_fit_in_a_process_of_its_own_gives_the_weights_that_it_gives_here(fits: FitProcess, ranker: bool) -> None:
    given = job(ranker=ranker)
    fits.begin(given)
    assert fits.busy
    given.log.item[:] = 0  # the log goes on; the job was told what there was
    found = taken(fits)
    assert not fits.busy
    wanted = fit_whole(job(ranker=ranker))
    for name, each in wanted.encoders.served().arrays().items():
        np.testing.assert_array_equal(found.encoders.served().arrays()[name], each)
    assert found.encoders.passes == wanted.encoders.passes
    # Both go on alike.
    for fitted in (found, wanted):
        fitted.encoders.update(made_log(), 220, 300)
    np.testing.assert_array_equal(found.encoders.served().item_id, wanted.encoders.served().item_id)
    assert (found.rankers is None) == (wanted.rankers is None) == (not ranker)
    if wanted.rankers is not None and found.rankers is not None:
        for name, tensor in wanted.rankers.tensors().items():
            np.testing.assert_array_equal(found.rankers.tensors()[name], tensor)
        assert found.rankers.rng.random() == wanted.rankers.rng.random()


def test_a_fit_that_is_killed_says_so_and_another_one_can_begin(fits: FitProcess, tmp_path: Path) -> None:
    fits.begin(job(replace(SMALL, passes=100_000)))
    os.kill(process_of(fits), signal.SIGKILL)
    with pytest.raises(FitError, match="status -9"):
        taken(fits)
    assert not fits.busy
    assert not (tmp_path / "fit").exists()
    fits.begin(job())
    taken(fits)


def test_a_fit_that_raises_says_why(fits: FitProcess) -> None:
    broken = job()
    broken.log.item[5] = 10_000
    fits.begin(broken)
    with pytest.raises(FitError, match="10001"):
        taken(fits)


def test_a_fit_ends_when_it_is_given_up_or_who_began_it_is_gone(fits: FitProcess) -> None:
    fits.begin(job(replace(SMALL, passes=100_000)))
    pid = process_of(fits)
    fits.abandon()
    assert not fits.busy
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    fits.begin(job(replace(SMALL, passes=100_000)))
    assert fits._process is not None
    assert fits._process.stdin is not None
    fits._process.stdin.close()  # as the system does for a process that was killed
    assert fits._process.wait(60) == 1


def test_a_disk_that_takes_no_job_is_a_fit_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fits = FitProcess(tmp_path / "file" / "fit")
    with pytest.raises(FitError, match="could not begin"):
        fits.begin(job())
    assert not fits.busy
