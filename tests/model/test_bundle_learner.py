"""The trainer's learner over bundles: what it keeps between two starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from models.domain.ports import F32
from models.learning.online_config import OnlineConfig
from streams.cli.learning import BundleLearner
from tests.domain.helpers import OPTIONS
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


def test_a_restart_encodes_only_the_texts_that_changed_and_another_text_model_all_of_them(tmp_path: Path) -> None:
    parent = make_bundle(tmp_path)
    bundles = [learned(tmp_path / f"learned-{seed}", parent, IDS, seed=seed) for seed in (1, 2)]

    def start(text_version: str) -> tuple[BundleLearner, CountingEncoder]:
        encoder = CountingEncoder()
        learner = BundleLearner(
            tmp_path / "trainer", OPTIONS, encoder, text_version, config=OnlineConfig(), replay_bytes=1_000_000
        )
        return learner, encoder

    learner, encoder = start("one")
    learner.adopt(bundles[0])
    learner.declare(IDS, TEXTS)
    learner.declare(IDS[:3], TEXTS[:3])
    assert encoder.asked == TEXTS
    learner.adopt(bundles[1])  # which saves
    learner.close()

    learner, encoder = start("one")
    learner.declare(IDS, [*TEXTS[:-1], "another story"])
    assert encoder.asked == ["another story"]
    assert learner.trainer.log.log.item_text[0, 0] == len(TEXTS[0])
    learner.close()

    learner, encoder = start("another")
    learner.declare(IDS, TEXTS)
    assert encoder.asked == TEXTS
    learner.close()
