"""Bundles for tests: small ones, sound to the last checksum though no graph opens, and learned ones that serve."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from export.bootstrap import versioned
from export.learned import build_learned
from export.writer import write_bundle
from models.domain.features import FEATURES
from models.encoders.manifest import Dimensions, Graphs, Manifest, RankerSpec, TextModelSpec
from models.learning.encoder_weights import GAP_BUCKETS, VALUE_BUCKETS, EncoderWeights

# Larger than any buffer between a process and its disk, so that a write can end in the middle.
LARGEST_FILE_BYTES = 300_000
TRAINING = "training.safetensors"
KINDS = ("", "view", "rating", "search")
TEXT, RECURRENCE, WIDTH = 384, 128, 64


def small_bundle(folder: Path, seed: int = 0, *, training: bool = True, parent: str | None = None) -> Path:
    """A bundle of random bytes under a manifest that is true of them; one file is only for training."""
    rng = np.random.default_rng(seed)
    text = TextModelSpec(graph="text.onnx", tokenizer="tokenizer.json", pooling="mean", max_tokens=128, source="random")
    names = ["ranker.onnx", "tokenizer.json", *msgspec.structs.astuple(Graphs()), *([TRAINING] if training else [])]
    files = {name: rng.bytes(1_000) for name in names} | {"text.onnx": rng.bytes(LARGEST_FILE_BYTES)}
    draft = Manifest(
        schema_version=1,
        name="small",
        version="",
        parent=parent,
        created_ms=1_700_000_000_000 + seed,
        dimensions=Dimensions(item=65, state=256, text=TEXT),
        opset=17,
        recipe="random bytes",
        kinds=KINDS,
        graphs=Graphs(),
        ranker=RankerSpec(graph="ranker.onnx", features=FEATURES, initial_weights=None),
        text_model=text,
        checksums={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    return write_bundle(folder, versioned(draft), files)


def learned_bundle(folder: Path, text_model: Path, seed: int, *, items: int = 30, recurrence: int = RECURRENCE) -> Path:
    """A bundle whose towers have random weights; its user states have the bootstrap bundle's size by default.

    Args:
        text_model: a bundle whose text encoder is copied.
        items: item ids are `item 0`, `item 1`, ...
        recurrence: decides the size of a user's state.
    """
    from export.onnx_graph import GraphBuilder

    rng = np.random.default_rng(seed)
    kinds, hidden = len(KINDS), 2 * WIDTH

    def normal(scale: float, *shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    weights = EncoderWeights(
        item_id=normal(0.5, items, WIDTH),
        item_bias=normal(1.0, items),
        cold_bias=np.array(-1.5, np.float32),
        text_bias=normal(0.5, TEXT),
        projection=normal(0.2, TEXT, WIDTH),
        kind=normal(0.3, kinds, WIDTH),
        value=normal(0.3, VALUE_BUCKETS, WIDTH),
        gap=normal(0.3, GAP_BUCKETS, WIDTH),
        text_scale=normal(0.5, kinds, WIDTH),
        take_weight=normal(0.2, WIDTH, 3 * recurrence),
        take_bias=normal(0.2, 3 * recurrence),
        recurrent_weight=normal(0.1, recurrence, 3 * recurrence),
        recurrent_bias=normal(0.2, recurrence),
        norm_weight=normal(0.5, recurrence),
        norm_bias=normal(0.2, recurrence),
        skip_weight=normal(0.1, recurrence, WIDTH),
        skip_bias=normal(0.1, WIDTH),
        hidden_weight=normal(0.1, recurrence, hidden),
        hidden_bias=normal(0.1, hidden),
        out_weight=normal(0.1, hidden, WIDTH),
        out_bias=normal(0.1, WIDTH),
    )
    g = GraphBuilder()
    g.op("ReduceSum", "features", g.axes(2), keepdims=0, out="score")
    return build_learned(
        folder,
        parent=None,
        text_model=text_model,
        weights=weights,
        item_ids=[f"item {n}" for n in range(items)],
        ranker_graph=g.model("ranker", {"features": ("B", "K", len(FEATURES))}, {"score": ("B", "K")}),
        features=FEATURES,
        kinds=KINDS,
        metrics={"ndcg_at_10": (100 + seed) / 1_000},
    )
