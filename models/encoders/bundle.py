"""Opens a bundle: a directory with everything that serves one model version. Verifies it before anything uses it.

Knows how graphs must fit each other and the caller; not what a feature or an event means, and not how bundles are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.domain.errors import BundleError, EncoderError, IncompatibleBundleError, ParityError
from models.domain.ports import EventInputs
from models.encoders.item import OnnxItemEncoder, decode_item_ids, decode_table
from models.encoders.manifest import Manifest, items_version, read_files, read_manifest, same_text_model, text_version
from models.encoders.onnx_file import graph_opset
from models.encoders.ranker import OnnxRanker
from models.encoders.review_value import OnnxReviewValue
from models.encoders.session import open_session, static_shape
from models.encoders.text import OnnxTextEncoder
from models.encoders.user import OnnxUserEncoder

# float32 sums in another order differ by a few 1e-7 of their size at this length; a wrong graph by far more than 1e-5.
PARITY_TOLERANCE = 1e-5
PARITY_USERS, PARITY_EVENTS = 3, 7
# Batch sizes of a worker's waves: one event, a usual chunk, a full one.
WARM_UP_BATCHES = (1, 8, 64, 256)
WARM_UP_CANDIDATES = 100


@dataclass(frozen=True)
class Bundle:
    """One model version, ready to serve."""

    manifest: Manifest
    user_encoder: OnnxUserEncoder
    item_encoder: OnnxItemEncoder
    text_encoder: OnnxTextEncoder
    ranker: OnnxRanker
    providers: tuple[str, ...]
    """What ONNX Runtime really gave, first choice first."""
    missing_providers: tuple[str, ...]
    """Requested, and not given: not in this build, or it failed to start and fell back."""
    review_value: OnnxReviewValue | None = None

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def items_version(self) -> str:
        """Names the collection of its items' vectors."""
        return items_version(self.manifest)

    @property
    def text_version(self) -> str:
        """Bundles with one name for it encode a text alike."""
        return text_version(self.manifest)

    def warm_up(self) -> None:
        """Run every graph at the sizes that a worker uses, so that the first event pays for no allocation."""
        user, dimensions = self.user_encoder, self.manifest.dimensions
        self.text_encoder.encode_many(
            ["a short title", "a longer text, as somebody might write it in a review of a thing"]
        )
        self.item_encoder.encode_many(["warm-up"], np.zeros((1, dimensions.text), np.float32))
        if self.review_value is not None:
            self.review_value.read_many(["warm up"], np.zeros((1, dimensions.text), np.float32))
        features = len(self.ranker.features)
        weights = self.ranker.initial_weights
        for batch in WARM_UP_BATCHES:
            user.step(*_sample(user, (batch,), seed=batch))
            self.ranker.score(
                np.zeros((batch, WARM_UP_CANDIDATES, features), np.float32),
                None if weights is None else np.tile(weights, (batch, 1)),
            )


def load_bundle(
    path: Path,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    *,
    features: Sequence[str] | None = None,
    dimension: int | None = None,
    state_size: int | None = None,
    text_cache_size: int = 20_000,
    text_from: Bundle | None = None,
) -> Bundle:
    """Read, verify and open the bundle in the directory `path`.

    Args:
        providers: execution providers, best first; what is missing falls to the CPU (`Bundle.missing_providers`).
        threads: intra-op threads of every session.
        features: those that the caller computes, in its order, of which the ranker reads the first; None accepts any.
        dimension, state_size: those that the caller's stores hold; None accepts any.
        text_from: a bundle whose text encoder, with all that it remembers, is taken where both have the same one.
    Raises: BundleError for a damaged or inconsistent bundle, IncompatibleBundleError for a sound one that does not fit,
        ParityError when its sequence graph and its step graph disagree.
    """
    manifest = read_manifest(path)
    _check_fit(path, manifest, features, dimension, state_size)
    files = read_files(path, manifest, manifest.files())
    try:
        text = text_from.text_encoder if text_from and same_text_model(text_from.manifest, manifest) else None
        bundle = _open(manifest, files, providers, threads, text_cache_size, text)
        _check_parity(path, bundle.user_encoder)
    except EncoderError as error:
        raise BundleError(f"{path}: {error}") from error
    return bundle


def _open(
    manifest: Manifest,
    files: dict[str, bytes],
    providers: Sequence[str],
    threads: int,
    text_cache_size: int,
    text_encoder: OnnxTextEncoder | None,
) -> Bundle:
    graphs, ranker, text, sizes = manifest.graphs, manifest.ranker, manifest.text_model, manifest.dimensions
    head = () if manifest.review_value is None else (manifest.review_value,)
    for graph in (graphs.step, graphs.sequence, graphs.item, ranker.graph, *head):
        found = graph_opset(graph, files[graph])
        if found != manifest.opset:
            raise EncoderError(f"{graph}: opset {found}, the manifest says {manifest.opset}")

    def session(graph: str, **options: bool) -> Any:
        return open_session(graph, files[graph], providers, threads, **options)

    step, sequence, item, score = (
        session(graphs.step),
        session(graphs.sequence),
        session(graphs.item),
        session(ranker.graph),
    )
    free: list[int | None] = [None]
    sides = {
        "item": sizes.item,
        "user": sizes.item,
        "text": sizes.text,
        "state": sizes.state,
        "next_state": sizes.state,
    }
    for graph, opened, axes in ((graphs.step, step, 1), (graphs.sequence, sequence, 2), (graphs.item, item, 1)):
        wanted = {
            name: [*free * (1 if name in ("state", "next_state", "user") else axes), size]
            for name, size in sides.items()
        }
        _check_shapes(graph, opened, wanted)
    _check_shapes(
        ranker.graph, score, {"features": [None, None, len(ranker.features)], "weights": [None, len(ranker.features)]}
    )

    text_encoder = text_encoder or OnnxTextEncoder(
        session(text.graph, shapes_vary=True),
        files[text.tokenizer],
        pooling=text.pooling,
        max_tokens=text.max_tokens,
        cache_size=text_cache_size,
    )
    if text_encoder.dimension != sizes.text:
        raise EncoderError(f"{text.graph}: embeddings of {text_encoder.dimension}, the manifest says {sizes.text}")
    review_value = None
    if manifest.review_value is not None:
        review_value = OnnxReviewValue(session(manifest.review_value, shapes_vary=True))
        if review_value.text_dimension != sizes.text:
            raise EncoderError(f"{manifest.review_value}: texts of {review_value.text_dimension}, not {sizes.text}")
    given = tuple(step.get_providers())
    table = manifest.item_table
    ids: list[str] = [] if table is None else decode_item_ids(files[table.ids])
    return Bundle(
        manifest=manifest,
        user_encoder=OnnxUserEncoder(
            step,
            sequence,
            kinds=manifest.kinds,
            state_size=sizes.state,
            dimension=sizes.item,
            text_dimension=sizes.text,
        ),
        item_encoder=OnnxItemEncoder(
            item,
            dimension=sizes.item,
            item_ids=ids,
            table=None if table is None else decode_table(files[table.vectors]),
        ),
        text_encoder=text_encoder,
        ranker=OnnxRanker(
            score,
            features=ranker.features,
            initial_weights=ranker.initial_weights,
            candidates=ranker.candidates,
            source_weights=ranker.source_weights,
        ),
        providers=given,
        missing_providers=tuple(name for name in providers if name not in given),
        review_value=review_value,
    )


def _check_fit(
    path: Path, manifest: Manifest, features: Sequence[str] | None, dimension: int | None, state_size: int | None
) -> None:
    for what, wanted, found in (
        ("item and user dimension", dimension, manifest.dimensions.item),
        ("state size", state_size, manifest.dimensions.state),
    ):
        if wanted is not None and wanted != found:
            raise IncompatibleBundleError(f"{path}: {what} is {found}, needed {wanted}")
    own = manifest.ranker.features
    if features is not None and own != tuple(features)[: len(own)]:
        unknown, absent = sorted(set(own) - set(features)), sorted(set(features) - set(own))
        what = f"unknown here {unknown}, absent there {absent}" if unknown or absent else "same names in another order"
        raise IncompatibleBundleError(f"{path}: the ranker's features are not those of this release: {what}")


def _check_shapes(graph: str, session: Any, wanted: dict[str, list[int | None]]) -> None:
    """Raises: EncoderError where a declared axis contradicts the manifest; an axis left free agrees with anything."""
    for node in (*session.get_inputs(), *session.get_outputs()):
        shape = wanted.get(node.name)
        if shape is None:
            continue
        found = static_shape(node)
        fits = len(found) == len(shape) and all(
            None in pair or pair[0] == pair[1] for pair in zip(found, shape, strict=True)
        )
        if not fits:
            raise EncoderError(f"{graph}: `{node.name}` has shape {found}, the manifest says {shape}")


def _check_parity(path: Path, encoder: OnnxUserEncoder) -> None:
    """Fold made-up histories of unequal length both ways."""
    state, inputs = _sample(encoder, (PARITY_USERS, PARITY_EVENTS), seed=0)
    lengths = np.linspace(0, PARITY_EVENTS, PARITY_USERS).round().astype(np.int64)
    mask = np.arange(PARITY_EVENTS) < lengths[:, None]
    in_one = encoder.sequence(state, inputs, mask)
    users = np.zeros_like(in_one[1])
    for time in range(PARITY_EVENTS):
        live = mask[:, time]
        state[live], users[live] = encoder.step(state[live], EventInputs(*(field[live, time] for field in inputs)))
    some = lengths > 0
    differences = [
        np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
        for found, wanted in ((in_one[0], state), (in_one[1][some], users[some]))
    ]
    worst = float(np.max(differences))  # a NaN on either side stays a NaN here and fails below
    if not worst <= PARITY_TOLERANCE:
        raise ParityError(f"{path}: sequence and step differ by {worst:.2g}, allowed {PARITY_TOLERANCE:.0e}")


def _sample(encoder: OnnxUserEncoder, lead: tuple[int, ...], seed: int) -> tuple[np.ndarray[Any, Any], EventInputs]:
    """A state [B, S] and made-up inputs [*lead, ...] of usual sizes."""
    rng = np.random.default_rng(seed)

    def unit(size: int) -> np.ndarray[Any, Any]:
        rows = rng.normal(size=(*lead, size)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    state = np.tile(encoder.initial_state(), (lead[0], 1)) + rng.normal(0, 0.1, (lead[0], encoder.state_size))
    inputs = EventInputs(
        item=unit(encoder.dimension),
        text=unit(encoder.text_dimension),
        kind=rng.integers(0, len(encoder.kinds), lead),
        strength=rng.choice([-1.0, 0.0, 1.0, 3.0], lead).astype(np.float32),
        value=rng.choice([-1.0, 0.0, 0.3, 1.0], lead).astype(np.float32),
        log2_gap=rng.uniform(-1, 20, lead).astype(np.float32),
    )
    return state.astype(np.float32), inputs
