"""Bundles of random bytes, sound to the last checksum though no graph opens: for what only carries bundles about."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from export.bootstrap import versioned
from export.writer import write_bundle
from models.domain.features import FEATURES
from models.encoders.manifest import Dimensions, Graphs, Manifest, RankerSpec, TextModelSpec

# Larger than any buffer between a process and its disk, so that a write can end in the middle.
LARGEST_FILE_BYTES = 300_000
TRAINING = "training.safetensors"
KINDS = ("", "view", "rating", "search")
TEXT = 384


def small_bundle(folder: Path, seed: int = 0, *, training: bool = True, parent: str | None = None) -> Path:
    """A bundle of random bytes under a manifest that is true of them; one file is only for training.

    The text encoder is one for all seeds, as those of a line of models are.
    """
    rng, of_all = np.random.default_rng(seed), np.random.default_rng(0)
    text = TextModelSpec(graph="text.onnx", tokenizer="tokenizer.json", pooling="mean", max_tokens=128, source="random")
    names = ["ranker.onnx", "tokenizer.json", *msgspec.structs.astuple(Graphs()), *([TRAINING] if training else [])]
    files = {name: rng.bytes(1_000) for name in names} | {"text.onnx": of_all.bytes(LARGEST_FILE_BYTES)}
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
        training=TRAINING if training else None,
        checksums={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    return write_bundle(folder, versioned(draft), files)
