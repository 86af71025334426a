"""Writes a learned bundle: trained user and item towers, a trained ranker, and the text encoder of a parent bundle.

Knows which files a bundle has; trains nothing. The same arguments give the same version.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from export.bootstrap import RANKER_GRAPH, TEXT_GRAPH, TOKENIZER, versioned
from export.learned_graphs import item_graph, sequence_graph, state_size, step_graph
from export.onnx_graph import OPSET
from export.review_value import FILE as REVIEW_VALUE_GRAPH
from export.writer import write_bundle
from models.domain.errors import BundleError
from models.encoders.item import OnnxItemEncoder, encode_item_ids, encode_table
from models.encoders.manifest import (
    MANIFEST_SCHEMA,
    Dimensions,
    Graphs,
    ItemTableSpec,
    Manifest,
    RankerSpec,
    read_files,
    read_manifest,
)
from models.encoders.session import CPU, open_session
from models.encoders.user import OnnxUserEncoder
from models.learning.encoder_weights import F32, EncoderWeights

NAME = "learned"
RECIPE = "learned recipe 2"
TRAINING = "training.safetensors"


def build_learned(
    out: Path,
    *,
    parent: str | None,
    text_model: Path,
    weights: EncoderWeights,
    item_ids: Sequence[str],
    ranker_graph: bytes,
    features: Sequence[str],
    kinds: Sequence[str],
    candidates: int = 0,
    source_weights: Sequence[float] | None = None,
    value_scale: float | None = None,
    review_value: bytes | None = None,
    training: bytes | None = None,
    metrics: Mapping[str, float] | None = None,
    keep_same: bool = False,
) -> Path:
    """Write the bundle at the directory `out`.

    Args:
        parent: version of the bundle that this one is to replace.
        text_model: a bundle directory, whose text encoder is copied; it must be the one that made the training log.
        item_ids: one a row of the weights' item table.
        ranker_graph: `features` float32[B, K, F] -> `score` float32[B, K].
        kinds: the training log's, the empty name first.
        candidates, source_weights, value_scale: see `RankerSpec` and `Manifest`.
        review_value: graph of the head that reads values from texts; None leaves it out.
        training: what a trainer goes on from (`models.learning.training_state`); not part of the version.
        metrics: figures for people and for the gate; they do not change the version.
        keep_same: see `write_bundle`.
    Returns: `out`.
    Raises: BundleError.
    """
    if len(item_ids) != len(weights.item_id):
        raise BundleError(f"{len(item_ids)} item ids and {len(weights.item_id)} rows")
    if len(kinds) != len(weights.kind):
        raise BundleError(f"{len(kinds)} kinds and {len(weights.kind)} rows")
    source = read_manifest(text_model)
    # A bundle that was fetched for serving lacks the files that only training reads.
    copied = read_files(text_model, source, (source.text_model.graph, source.text_model.tokenizer))
    graphs, table = Graphs(), ItemTableSpec()
    ids, rows = item_table(weights, item_ids)
    files = {
        graphs.step: step_graph(weights),
        graphs.sequence: sequence_graph(weights),
        graphs.item: item_graph(weights),
        table.ids: encode_item_ids(ids),
        table.vectors: encode_table(rows),
        RANKER_GRAPH: ranker_graph,
        TEXT_GRAPH: copied[source.text_model.graph],
        TOKENIZER: copied[source.text_model.tokenizer],
    }
    if review_value is not None:
        files[REVIEW_VALUE_GRAPH] = review_value
    if training is not None:
        files[TRAINING] = training
    draft = Manifest(
        schema_version=MANIFEST_SCHEMA,
        name=NAME,
        version="",
        parent=parent,
        created_ms=time.time_ns() // 1_000_000,
        dimensions=Dimensions(item=weights.dimension, state=state_size(weights), text=len(weights.projection)),
        opset=OPSET,
        recipe=RECIPE,
        kinds=tuple(kinds),
        graphs=graphs,
        ranker=RankerSpec(
            graph=RANKER_GRAPH,
            features=tuple(features),
            initial_weights=None,
            candidates=candidates,
            source_weights=None if source_weights is None else tuple(float(weight) for weight in source_weights),
        ),
        text_model=msgspec.structs.replace(source.text_model, graph=TEXT_GRAPH, tokenizer=TOKENIZER),
        checksums={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        item_table=table,
        review_value=None if review_value is None else REVIEW_VALUE_GRAPH,
        training=None if training is None else TRAINING,
        value_scale=value_scale,
        metrics=dict(metrics or {}),
    )
    return write_bundle(out, versioned(draft), files, keep_same=keep_same)


def item_table(weights: EncoderWeights, item_ids: Sequence[str]) -> tuple[list[str], F32]:
    """The items that training knows, and what it learned of each beyond what a new item is.

    Returns: M ids and float32[M, D], to be added to the item graph's output.
    """
    learned = weights.own() - weights.cold
    known = np.any(learned != 0, axis=1)
    return [item_id for item_id, has in zip(item_ids, known.tolist(), strict=True) if has], learned[known]


def open_towers(
    weights: EncoderWeights, item_ids: Sequence[str], kinds: Sequence[str], *, threads: int = 1
) -> tuple[OnnxUserEncoder, OnnxItemEncoder]:
    """Both towers as a worker would have them, without a bundle on disk."""
    item = open_session("item", item_graph(weights), [CPU], threads)
    ids, rows = item_table(weights, item_ids)
    return (
        open_user_tower(weights, kinds, threads=threads),
        OnnxItemEncoder(item, dimension=weights.dimension, item_ids=ids, table=rows),
    )


def open_user_tower(weights: EncoderWeights, kinds: Sequence[str], *, threads: int = 1) -> OnnxUserEncoder:
    """The user tower alone: all that a backtest's many versions take in this form."""
    step, sequence = (
        open_session(name, graph(weights), [CPU], threads)
        for name, graph in (("step", step_graph), ("sequence", sequence_graph))
    )
    return OnnxUserEncoder(
        step,
        sequence,
        kinds=kinds,
        state_size=state_size(weights),
        dimension=weights.dimension,
        text_dimension=len(weights.projection),
    )
