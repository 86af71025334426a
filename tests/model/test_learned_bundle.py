"""A learned bundle: its graphs compute what was trained, step and sequence agree, known items differ from new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.learned import build_learned, open_towers
from export.learned_graphs import step_graph
from export.review_value import FILE as REVIEW_VALUE
from export.review_value import review_value_graph
from models.domain.errors import BundleError, EncoderError, IncompatibleBundleError, ParityError
from models.domain.features import BASE_COUNT, FEATURES
from models.domain.ports import EventInputs
from models.encoders.bundle import Bundle, load_bundle
from models.encoders.item import OnnxItemEncoder
from models.encoders.manifest import read_manifest
from models.encoders.session import open_session
from models.learning.encoder_weights import GAP_BUCKETS, VALUE_BUCKETS, EncoderWeights
from models.learning.review_value_weights import from_text
from streams.container import read_bundle
from streams.settings import Settings
from tests.model.conftest import event_inputs
from tests.model.test_bundle import replace_file
from tests.model.test_review_value import TEXTS
from tests.model.test_review_value import made_weights as made_head
from tests.model.test_user_encoder import one_by_one

ITEM_IDS = tuple(f"item {n}" for n in range(30))
LEARNED_KINDS = ("", "view", "hide", "search")
# The recurrence fills half of a stored state.
TEXT, STATE, RECURRENCE = 384, 256, 128


def made_weights(seed: int = 0, items: int = 30, width: int = 64) -> EncoderWeights:
    """Weights of usual sizes; the last three items have no event."""
    rng = np.random.default_rng(seed)
    hidden, kinds = 2 * width, len(LEARNED_KINDS)

    def normal(scale: float, *shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    weights = EncoderWeights(
        item_id=normal(0.5, items, width),
        item_bias=normal(1.0, items),
        cold=normal(0.3, width + 1),
        foreseen=normal(0.2, TEXT, width + 1),
        projection=normal(0.2, TEXT, width),
        kind=normal(0.3, kinds, width),
        value=normal(0.3, VALUE_BUCKETS, width),
        gap=normal(0.3, GAP_BUCKETS, width),
        text_scale=normal(0.5, kinds, width),
        take_weight=normal(0.2, width, 3 * RECURRENCE),
        take_bias=normal(0.2, 3 * RECURRENCE),
        recurrent_weight=normal(0.1, RECURRENCE, 2 * RECURRENCE),
        recurrent_bias=normal(0.2, RECURRENCE),
        norm_weight=normal(0.5, RECURRENCE),
        norm_bias=normal(0.2, RECURRENCE),
        skip_weight=normal(0.1, RECURRENCE, width),
        skip_bias=normal(0.1, width),
        hidden_weight=normal(0.1, RECURRENCE, hidden),
        hidden_bias=normal(0.1, hidden),
        out_weight=normal(0.1, hidden, width),
        out_bias=normal(0.1, width),
    )
    weights.item_id[-3:], weights.item_bias[-3:] = weights.cold[:-1], weights.cold[-1]
    return weights


def ranker_graph(features: int = len(FEATURES)) -> bytes:
    """A learned ranker's contract: features in, score out, no weights."""
    from export.onnx_graph import GraphBuilder

    g = GraphBuilder()
    g.op("ReduceSum", "features", g.axes(2), keepdims=0, out="score")
    return g.model("ranker", {"features": ("B", "K", features)}, {"score": ("B", "K")})


@pytest.fixture(scope="module")
def weights() -> EncoderWeights:
    return made_weights()


@pytest.fixture(scope="module")
def learned_directory(
    bundle_directory: Path, weights: EncoderWeights, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return build(tmp_path_factory.mktemp("learned") / "bundle", bundle_directory, weights)


def build(
    out: Path, parent: Path, weights: EncoderWeights, review_value: bytes | None = None, features: int = len(FEATURES)
) -> Path:
    return build_learned(
        out,
        parent="bootstrap-0",
        text_model=parent,
        weights=weights,
        item_ids=ITEM_IDS,
        ranker_graph=ranker_graph(features),
        features=FEATURES[:features],
        kinds=LEARNED_KINDS,
        candidates=300,
        source_weights=(1.0, 0.5),
        value_scale=5.0,
        review_value=review_value,
        metrics={"ndcg": 0.13},
    )


@pytest.fixture(scope="module")
def learned(learned_directory: Path) -> Bundle:
    return load_bundle(learned_directory)


def test_the_bundle_says_what_it_is(learned: Bundle, bundle: Bundle) -> None:
    manifest = learned.manifest
    sizes = manifest.dimensions
    assert (sizes.item, sizes.state, sizes.text) == (65, STATE, TEXT)
    assert (manifest.kinds, manifest.value_scale, manifest.parent) == (LEARNED_KINDS, 5.0, "bootstrap-0")
    assert (learned.ranker.candidates, learned.ranker.initial_weights) == (300, None)
    assert learned.item_encoder.known_items == 27
    assert learned.version.startswith("learned-")
    np.testing.assert_array_equal(
        learned.text_encoder.encode_many(["a film"]), bundle.text_encoder.encode_many(["a film"])
    )
    learned.warm_up()


def test_a_head_that_reads_values_is_one_more_file_and_reads_as_it_was_fitted(
    learned_directory: Path, bundle_directory: Path, weights: EncoderWeights, tmp_path: Path
) -> None:
    head = made_head(TEXT)
    directory = build(tmp_path / "bundle", bundle_directory, weights, review_value_graph(head))
    bundle = load_bundle(directory)
    bundle.warm_up()
    assert bundle.review_value is not None
    found = bundle.review_value.expect_many(TEXTS, vectors := bundle.text_encoder.encode_many(TEXTS))
    np.testing.assert_allclose(found, from_text(head, TEXTS, vectors), atol=1e-5)
    plain = read_manifest(learned_directory)
    assert plain.review_value is None
    assert "review_value" not in (learned_directory / "manifest.json").read_text(), "its version is what it was"
    assert set(bundle.manifest.checksums) == {*plain.checksums, REVIEW_VALUE}
    assert bundle.version != plain.version
    assert load_bundle(learned_directory).review_value is None

    for spoilt, reason in (
        (b"no graph", REVIEW_VALUE),
        (ranker_graph(), "review value"),
        (review_value_graph(made_head(TEXT - 1)), "texts of 383"),
    ):
        replace_file(directory, REVIEW_VALUE, spoilt)
        with pytest.raises(BundleError, match=reason):
            load_bundle(directory)
    (directory / REVIEW_VALUE).write_bytes(review_value_graph(head))
    with pytest.raises(BundleError, match="is damaged"):
        load_bundle(directory)
    (directory / REVIEW_VALUE).unlink()
    with pytest.raises(BundleError, match="cannot read"):
        load_bundle(directory)


def test_the_same_weights_are_the_same_version_and_others_another(
    learned_directory: Path, bundle_directory: Path, weights: EncoderWeights, tmp_path: Path
) -> None:
    version = read_manifest(learned_directory).version
    assert read_manifest(build(tmp_path / "again", bundle_directory, weights)).version == version
    other = replace(weights, item_bias=weights.item_bias + 1)
    assert read_manifest(build(tmp_path / "other", bundle_directory, other)).version != version


def test_a_ranker_of_a_former_release_reads_the_first_features(
    bundle_directory: Path, weights: EncoderWeights, tmp_path: Path
) -> None:
    former = build(tmp_path / "former", bundle_directory, weights, features=61)
    assert read_bundle(Settings(), former).ranker.features == FEATURES[:61]
    narrow = build(tmp_path / "narrow", bundle_directory, weights, features=BASE_COUNT - 1)
    with pytest.raises(IncompatibleBundleError, match=f"reads {BASE_COUNT - 1} features, not {BASE_COUNT} to"):
        read_bundle(Settings(), narrow)


@pytest.mark.parametrize("batch", [1, 2, 17])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_a_sequence_equals_its_steps(learned: Bundle, batch: int, length: int) -> None:
    encoder, rng = learned.user_encoder, np.random.default_rng(batch * 100 + length)
    inputs = event_inputs(rng, batch, length)
    state = rng.normal(0, 0.3, (batch, STATE)).astype(np.float32)
    mask = np.arange(length) < rng.integers(0, length + 1, batch)[:, None]
    next_state, user = encoder.sequence(state, inputs, mask)
    expected_state, expected_user = one_by_one(encoder, state, inputs, mask)
    np.testing.assert_allclose(next_state, expected_state, atol=1e-5 * max(1, float(np.abs(expected_state).max())))
    some = mask.any(axis=1)
    scale = float(np.abs(user).max())
    np.testing.assert_allclose(user[some], expected_user[some], atol=1e-5 * scale)


def test_a_masked_place_changes_nothing_whatever_it_holds(learned: Bundle) -> None:
    encoder, rng = learned.user_encoder, np.random.default_rng(3)
    inputs, state = event_inputs(rng, 4, 6), rng.normal(0, 0.3, (4, STATE)).astype(np.float32)
    mask = np.arange(6) < np.array([[0], [2], [4], [6]])
    spoilt = EventInputs(*(field.copy() for field in inputs))
    for field in (spoilt.item, spoilt.text, spoilt.strength, spoilt.value, spoilt.log2_gap):
        field[~mask] = np.nan
    spoilt.kind[~mask] = 99
    for left, right in zip(encoder.sequence(state, inputs, mask), encoder.sequence(state, spoilt, mask), strict=True):
        np.testing.assert_array_equal(left, right)


def test_an_event_that_says_nothing_leaves_the_state_as_it_is(learned: Bundle) -> None:
    encoder, rng = learned.user_encoder, np.random.default_rng(5)
    state = rng.normal(0, 0.3, (8, STATE)).astype(np.float32)
    bare = event_inputs(rng, 8)._replace(item=np.zeros((8, 65), np.float32), text=np.zeros((8, TEXT), np.float32))
    weightless = event_inputs(rng, 8)._replace(strength=np.zeros(8, np.float32))
    for inputs in (bare, weightless):
        np.testing.assert_array_equal(encoder.step(state, inputs)[0], state)


def test_a_user_without_events_has_a_vector_of_his_own(learned: Bundle, weights: EncoderWeights) -> None:
    user = learned.user_encoder.initial_user()
    assert user.shape == (65,)
    assert user[64] == 1
    assert np.abs(user[:64]).max() > 0.01


def test_a_known_item_has_its_own_part_and_a_new_one_what_its_text_says(
    learned: Bundle, weights: EncoderWeights
) -> None:
    text = event_inputs(np.random.default_rng(6), 4).text
    found = learned.item_encoder.encode_many(["item 3", "never seen", "item 29", "item 0"], text)
    np.testing.assert_allclose(found, weights.item_vectors(text, np.array([3, -1, 29, 0])), atol=1e-5)
    np.testing.assert_allclose(found[1:3, 64], weights.cold[64] + text[1:3] @ weights.foreseen[:, 64], atol=1e-5)


def test_values_and_gaps_count_and_strength_has_only_a_sign(learned: Bundle) -> None:
    encoder, rng = learned.user_encoder, np.random.default_rng(7)
    state, inputs = rng.normal(0, 0.3, (6, STATE)).astype(np.float32), event_inputs(rng, 6)
    inputs = inputs._replace(strength=np.ones(6, np.float32), kind=np.ones(6, np.int64))
    base = encoder.step(state, inputs)[1]
    for field, low, high in (("value", 0.1, 0.9), ("log2_gap", 3, 21.5)):
        users = [encoder.step(state, inputs._replace(**{field: np.full(6, x, np.float32)}))[1] for x in (low, high)]
        assert (users[0] != users[1]).any()
    np.testing.assert_array_equal(encoder.step(state, inputs._replace(strength=np.full(6, 3, np.float32)))[1], base)


def test_a_table_that_does_not_fit_is_refused(learned_directory: Path, weights: EncoderWeights, tmp_path: Path) -> None:
    import shutil

    from models.encoders.item import encode_item_ids, encode_table

    for name, data in (
        ("item_table.npy", encode_table(weights.item_id)),
        ("item_table.npy", b"no table"),
        ("item_ids.msgpack", encode_item_ids(["one"])),
        ("item_ids.msgpack", b"\xc1"),
        ("item_ids.msgpack", encode_item_ids(["twice"] * 27)),
    ):
        copy = Path(shutil.copytree(learned_directory, tmp_path / "copy", dirs_exist_ok=True))
        replace_file(copy, name, data)
        with pytest.raises(BundleError):
            load_bundle(copy)
        shutil.rmtree(copy)


def test_a_pickled_table_is_refused() -> None:
    import io

    from models.encoders.item import decode_table

    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(EncoderError):
        decode_table(out.getvalue())


def test_rows_and_ids_must_be_as_many(bundle_directory: Path, weights: EncoderWeights, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="rows"):
        build(tmp_path / "bundle", bundle_directory, replace(weights, item_id=weights.item_id[:5]))


@pytest.mark.train
def test_the_graphs_compute_what_torch_computes(weights: EncoderWeights) -> None:
    pytest.importorskip("torch")
    from export.parity import check_parity

    for seed in range(3):
        made = made_weights(seed)
        user, items = open_towers(made, ITEM_IDS, LEARNED_KINDS)
        found = check_parity(made, user, items, ITEM_IDS, seed=seed)
        assert found.worst < 1e-5
        assert found.top_overlap > 0.99


@pytest.mark.train
def test_an_export_that_differs_from_torch_fails(weights: EncoderWeights) -> None:
    pytest.importorskip("torch")
    from export.parity import check_parity

    user, items = open_towers(weights, ITEM_IDS, LEARNED_KINDS)
    for name in ("gap", "text_scale", "out_bias", "item_bias", "foreseen", "recurrent_weight", "recurrent_bias"):
        wrong = replace(weights, **{name: getattr(weights, name) * np.float32(0.999)})
        with pytest.raises(ParityError):
            check_parity(wrong, user, items, ITEM_IDS)


@pytest.mark.train
def test_weights_and_network_turn_into_each_other(weights: EncoderWeights) -> None:
    pytest.importorskip("torch")
    from models.learning.encoder import EncoderNetwork, to_weights

    network = EncoderNetwork.of(weights)
    tensors = {name: parameter.detach() for name, parameter in network.named_parameters()}
    again = to_weights(network, tensors, (weights.item_id != weights.cold[:-1]).any(1))
    for name, array in weights.arrays().items():
        np.testing.assert_allclose(again.arrays()[name], array, atol=1e-6, err_msg=name)


def test_the_towers_open_without_a_bundle(weights: EncoderWeights, learned: Bundle) -> None:
    user, items = open_towers(weights, ITEM_IDS, LEARNED_KINDS)
    inputs, state = event_inputs(np.random.default_rng(8), 5), np.zeros((5, STATE), np.float32)
    for left, right in zip(user.step(state, inputs), learned.user_encoder.step(state, inputs), strict=True):
        np.testing.assert_array_equal(left, right)
    assert isinstance(items, OnnxItemEncoder)
    assert open_session("step", step_graph(weights), [], 1).get_inputs()
