"""The bootstrap bundle, built once for the run, and what every test here draws from."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from export.bootstrap import build_bootstrap
from models.domain.ports import F32, EventInputs
from models.encoders.bundle import Bundle, load_bundle

FEATURES = ("encoder_score", "covisitation", "popularity")
WEIGHTS = (1.0, 0.5, -0.25)
KINDS = ("view", "click", "purchase")


@pytest.fixture(scope="session")
def bundle_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bootstrap"
    return build_bootstrap(out, features=FEATURES, initial_weights=WEIGHTS, kinds=KINDS)


@pytest.fixture(scope="session")
def bundle(bundle_directory: Path) -> Bundle:
    return load_bundle(bundle_directory)


@pytest.fixture
def copied_bundle(bundle_directory: Path, tmp_path: Path) -> Path:
    """A bundle that the test may spoil."""
    return Path(shutil.copytree(bundle_directory, tmp_path / "bundle"))


def unit_rows(rng: np.random.Generator, *shape: int) -> F32:
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def event_inputs(rng: np.random.Generator, *lead: int) -> EventInputs:
    """Made-up events: a third without item, a third without text, strengths of both signs and zero."""
    item, text = unit_rows(rng, *lead, 65), unit_rows(rng, *lead, 384)
    item[rng.random(lead) < 0.33] = 0
    text[rng.random(lead) < 0.33] = 0
    return EventInputs(
        item=item,
        text=text,
        kind=rng.integers(0, 4, lead),
        strength=rng.choice([-1.0, 0.0, 0.5, 1.0, 3.0], lead).astype(np.float32),
        value=rng.integers(0, 6, lead).astype(np.float32),
        log2_gap=rng.uniform(-1, 20, lead).astype(np.float32),
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """A second thread of torch waits spinning: on a busy machine the small fits of these tests take thrice the time.
    Sums over two threads differ in their last bits, so that it has to hold before any other fixture is made."""
    if find_spec("torch"):
        import torch

        torch.set_num_threads(1)
