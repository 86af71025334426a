"""Bundles that differ from the worker's own, made in a second and without torch, for tests of what happens to versions.

What they recommend is of no account; that they are sound, and differ where they are meant to, is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from export.bootstrap import build_bootstrap
from export.learned import build_learned
from export.onnx_graph import GraphBuilder
from export.ranker_graph import ranker_graph
from models.domain.candidates import SOURCE_COUNT
from models.domain.events import EventContract, Recommendation, declared_types
from models.domain.features import BASE_FEATURES, FEATURES, PRESENCE
from models.domain.ranking import bootstrap_weights
from models.encoders.manifest import MANIFEST, content_version, encode_manifest, read_manifest
from models.learning.encoder_weights import GAP_BUCKETS, VALUE_BUCKETS, EncoderWeights
from models.learning.ranker_weights import RankerWeights
from tests.services.deployment import Deployment

TEXT, RECURRENCE = 384, 128
HIDDEN, CONTEXT = 16, 8
# A score without marks stays well below half the smaller one, and single precision tells thousandths of the larger sum.
RANKER_MARK, VECTOR_MARK = 10_000, 100


def kinds() -> list[str]:
    return sorted(declared_types(EventContract()))


def other_ranker(out: Path, *, scale: float = 2.0) -> Path:
    """The bootstrap bundle with other weights of its ranker: the same items' vectors."""
    weights = [scale * weight for weight in bootstrap_weights()]
    return build_bootstrap(out, features=BASE_FEATURES, initial_weights=weights, kinds=kinds())


def learned(
    out: Path,
    parent: Path,
    item_ids: Sequence[str],
    *,
    seed: int = 0,
    width: int = 64,
    mark: int = 0,
    recurrence: int = RECURRENCE,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """A learned bundle of random weights over those items; another seed gives other vectors of every item.

    Args:
        mark: 1 to 99 for a bundle whose scores tell which item vectors and which ranker made them (`told_by`).
    """
    rng = np.random.default_rng(seed)
    names = ["", *kinds()]

    def normal(scale: float, *shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    hidden = 2 * width
    weights = EncoderWeights(
        item_id=normal(0.2, len(item_ids), width),
        item_bias=normal(0.3, len(item_ids)) + np.float32(VECTOR_MARK * mark),
        cold=np.append(np.zeros(width, np.float32), np.float32(VECTOR_MARK * mark)),
        foreseen=normal(0.1, TEXT, width + 1),
        projection=normal(0.05, TEXT, width),
        kind=normal(0.3, len(names), width),
        value=normal(0.3, VALUE_BUCKETS, width),
        gap=normal(0.3, GAP_BUCKETS, width),
        text_scale=normal(0.5, len(names), width),
        take_weight=normal(0.2, width, 3 * recurrence),
        take_bias=normal(0.2, 3 * recurrence),
        recurrent_weight=normal(0.1, recurrence, 2 * recurrence),
        recurrent_bias=normal(0.2, recurrence),
        norm_weight=normal(0.5, recurrence),
        norm_bias=normal(0.2, recurrence),
        skip_weight=normal(0.1, recurrence, width),
        skip_bias=normal(0.1, width),
        hidden_weight=normal(0.1, recurrence, hidden),
        hidden_bias=normal(0.1, hidden),
        out_weight=normal(0.1, hidden, width),
        out_bias=normal(0.1, width),
    )
    count = len(FEATURES)
    ranker = RankerWeights(
        mean=normal(0.1, count),
        scale=np.ones(count, np.float32),
        first=(normal(0.1, count, HIDDEN), normal(0.1, HIDDEN)),
        attention=(normal(0.1, HIDDEN, 1), normal(0.1, 1)),
        context=normal(0.1, 2 * HIDDEN, CONTEXT),
        second=(normal(0.1, HIDDEN, CONTEXT), normal(0.1, CONTEXT)),
        last=(normal(0.1, CONTEXT, 1), normal(0.1, 1)),
        straight=normal(0.1, count),
    )
    return build_learned(
        out,
        parent=read_manifest(parent).version,
        text_model=parent,
        weights=weights,
        item_ids=item_ids,
        ranker_graph=telling_ranker(mark) if mark else ranker_graph(ranker, PRESENCE),
        features=FEATURES,
        kinds=names,
        candidates=200,
        source_weights=(1.0,) * SOURCE_COUNT,
        value_scale=5.0,
        metrics=metrics,
    )


def telling_ranker(mark: int) -> bytes:
    """Scores a candidate as the encoder does, plus a mark of the ranker's own."""
    g = GraphBuilder()
    score = FEATURES.index("encoder_score")
    column = g.op("Slice", "features", g.axes(score), g.axes(score + 1), g.axes(2))
    g.op("Add", g.op("Squeeze", column, g.axes(2)), g.constant(float(RANKER_MARK * mark)), out="score")
    return g.model("ranker", {"features": ("B", "K", len(FEATURES))}, {"score": ("B", "K")})


class Told(NamedTuple):
    """Marks that a list's scores carry."""

    ranker: set[int]
    vectors: set[int]


def told_by(made: Recommendation) -> Told:
    """By which marks' rankers and item vectors the items of a list were scored."""
    scores = [one.score for one in made.items]
    rankers = [round(score / RANKER_MARK) for score in scores]
    vectors = [round((score - RANKER_MARK * mark) / VECTOR_MARK) for score, mark in zip(scores, rankers, strict=True)]
    return Told(set(rankers), set(vectors))


def broken_step(bundle: Path) -> Path:
    """Changes a bundle in place: its step graph is now the item graph, under checksums and a version that agree."""
    manifest = read_manifest(bundle)
    data = (bundle / manifest.graphs.item).read_bytes()
    (bundle / manifest.graphs.step).write_bytes(data)
    sums = {**manifest.checksums, manifest.graphs.step: hashlib.sha256(data).hexdigest()}
    changed = msgspec.structs.replace(manifest, checksums=sums)
    changed = msgspec.structs.replace(changed, version=content_version(changed))
    (bundle / MANIFEST).write_bytes(encode_manifest(changed))
    return bundle


def other_text(bundle: Path) -> Path:
    """Changes a bundle in place: its text model now cuts texts at another length, which makes it another one."""
    manifest = read_manifest(bundle)
    text = msgspec.structs.replace(manifest.text_model, max_tokens=manifest.text_model.max_tokens // 2)
    changed = msgspec.structs.replace(manifest, text_model=text)
    changed = msgspec.structs.replace(changed, version=content_version(changed))
    (bundle / MANIFEST).write_bytes(encode_manifest(changed))
    return bundle


class Models:
    """The registry of a deployment and its releases, as the trainer and operators use them."""

    def __init__(self, deployed: Deployment) -> None:
        from streams.registry import Registry
        from streams.releases import ReleaseLog

        self.registry = Registry(str(deployed.data_dir / "models"))
        self.log = ReleaseLog(deployed.connection, deployed.names.models, deployed.publisher)

    def add(self, bundle: Path) -> str:
        return self.registry.publish(bundle)

    async def promote(self, bundle: Path) -> str:
        """Publish a bundle and make it champion. Returns: its version."""
        version = self.registry.publish(bundle)
        await self.log.promote(read_manifest(bundle), by="operator", reason="a test")
        return version
