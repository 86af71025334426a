"""The trainer's learner over bundles: what it keeps between two starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.ports import F32
from models.encoders.manifest import read_manifest
from models.learning.online_config import OnlineConfig
from streams.cli.learning import BundleLearner
from tests.domain.helpers import OPTIONS, told_click
from tests.services.deployment import make_bundle
from tests.services.versions import learned

pytestmark = pytest.mark.train

IDS = [f"i{n}" for n in range(40)]
TEXTS = [f"story {n}" for n in range(40)]


class CountingEncoder:
    """Embeddings that only the text decides; says what it was asked."""

    dimension = 384

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_many(self, texts: Sequence[str]) -> F32:
        self.asked += texts
        return np.stack([np.full(self.dimension, len(text), np.float32) for text in texts])


def start(directory: Path, text_version: str = "one") -> tuple[BundleLearner, CountingEncoder]:
    encoder = CountingEncoder()
    learner = BundleLearner(directory, OPTIONS, encoder, text_version, config=OnlineConfig(), replay_bytes=1_000_000)
    return learner, encoder


def test_a_restart_encodes_only_the_texts_that_changed_and_another_text_model_all_of_them(tmp_path: Path) -> None:
    parent = make_bundle(tmp_path)
    bundles = [learned(tmp_path / f"learned-{seed}", parent, IDS, seed=seed) for seed in (1, 2)]
    at = tmp_path / "trainer"

    learner, encoder = start(at)
    learner.adopt(bundles[0])
    learner.declare(IDS, TEXTS)
    learner.declare(IDS[:3], TEXTS[:3])
    assert encoder.asked == TEXTS
    learner.adopt(bundles[1])  # which saves
    learner.close()

    learner, encoder = start(at)
    learner.declare(IDS, [*TEXTS[:-1], "another story"])
    assert encoder.asked == ["another story"]
    assert learner.trainer.log.log.item_text[0, 0] == len(TEXTS[0])
    learner.close()

    learner, encoder = start(at, "another")
    learner.declare(IDS, TEXTS)
    assert encoder.asked == TEXTS
    learner.close()


def test_what_another_release_saved_is_set_aside_and_the_replay_buffer_tells_the_rest(tmp_path: Path) -> None:
    parent, at = make_bundle(tmp_path), tmp_path / "trainer"
    bundles = [learned(tmp_path / f"learned-{seed}", parent, IDS, seed=seed) for seed in (1, 2)]
    learner, _ = start(at)
    learner.adopt(bundles[0])
    learner.append([told_click(n, f"u{n}", IDS[n]) for n in range(20)], {0: 19})
    learner.flush()
    learner.adopt(bundles[1])  # which saves
    learner.close()
    (state,) = at.glob("rounds/round-*/state.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "schema": 1}))

    learner, _ = start(at)
    assert (at / "rounds-of-another-release" / state.parent.name).is_dir()
    learner.adopt(bundles[1])
    assert learner.trainer.pending == 20
    learner.adopt(bundles[0])
    learner.close()
    learner, _ = start(at)
    assert learner.trainer.champion.version == read_manifest(bundles[0]).version
    learner.close()
