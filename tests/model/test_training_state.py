"""What a bundle carries for trainers: they go on where they stood, and no worker reads it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

from safetensors.numpy import load, save

from export.learned import TRAINING, build_learned
from export.ranker_graph import ranker_graph
from models.domain.candidates import SOURCE_COUNT
from models.domain.errors import BundleError
from models.domain.features import FEATURE_COUNT, FEATURES, PRESENCE
from models.encoders.bundle import load_bundle
from models.encoders.manifest import MANIFEST, encode_manifest, read_files, read_manifest
from models.learning.encoder_trainer import EncoderConfig, EncoderTrainer
from models.learning.lists import Lists
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.training_state import TrainingState, TrainingStateError, source_worth
from tests.model.logs import TEXT, evidence_for, made_log

pytestmark = pytest.mark.train
CONFIG, RANKER = EncoderConfig(), RankerConfig(batch=16, sampled=4)
REACHED = np.arange(SOURCE_COUNT) * 10.0


def made_lists(count: int = 80, seed: int = 0) -> Lists:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 12, FEATURE_COUNT)).astype(np.float16)
    return Lists(np.arange(count), features, np.full(count, 12, np.int32), rng.integers(0, 12, count).astype(np.int32))


@pytest.fixture(scope="module")
def trained() -> tuple[EncoderTrainer, RankerTrainer]:
    log = made_log()
    encoders = EncoderTrainer(CONFIG, items=log.items, kinds=len(log.kinds), text_dimension=TEXT, seed=0)
    encoders.fit(log, 200, epochs=2)
    encoders.choose_cold_offset(log, 200, 250)
    encoders.evidence = evidence_for(3)
    rankers = RankerTrainer(RANKER, 0)
    rankers.fit(made_lists(), np.arange(80), updates=20)
    return encoders, rankers


def state_of(trained: tuple[EncoderTrainer, RankerTrainer]) -> TrainingState:
    log = made_log()
    ids = tuple(f"i{n}" for n in range(log.items))
    return TrainingState.of(
        *trained,
        item_ids=ids,
        kinds=log.kinds,
        candidates=40,
        reached=REACHED,
        reachable=100.0,
        events=200,
        lists=80,
        until_ms=1_000,
    )


def test_trainers_of_a_kept_state_go_on_as_those_whose_fit_has_just_ended(
    trained: tuple[EncoderTrainer, RankerTrainer],
) -> None:
    encoders, rankers = trained
    state = TrainingState.decode(state_of(trained).encode())
    again, ranked = state.encoders(CONFIG, 5), state.rankers(RANKER, 5)
    np.testing.assert_array_equal(again.network.cold, encoders.network.cold)
    assert again.cold_offset == encoders.cold_offset
    assert again.passes == 3
    for name, wanted in encoders.served().arrays().items():
        np.testing.assert_array_equal(again.served().arrays()[name], wanted, err_msg=name)
    for own, wanted in zip(ranked.tensors().items(), rankers.tensors().items(), strict=True):
        assert own[0] == wanted[0]
        np.testing.assert_array_equal(own[1].numpy(), wanted[1].numpy())
    # Both pairs learn the same from here on, with the same draws.
    log, lists = made_log(), made_lists(seed=1)
    encoders._rng, rankers.rng = np.random.default_rng(9), np.random.default_rng(9)
    again._rng, ranked.rng = np.random.default_rng(9), np.random.default_rng(9)
    again.network.dropout._rng, encoders.network.dropout._rng = again._rng, encoders._rng
    for one in (encoders, again):
        assert np.isfinite(one.update(log, 200, 300))
    for each in (rankers, ranked):
        each.update(lists, np.arange(40, 80), np.arange(40))
    for name, wanted in encoders.served().arrays().items():
        np.testing.assert_array_equal(again.served().arrays()[name], wanted, err_msg=name)
    np.testing.assert_array_equal(ranked.scores(lists, np.arange(80)), rankers.scores(lists, np.arange(80)))


def test_a_file_of_the_release_before_is_the_same_model(trained: tuple[EncoderTrainer, RankerTrainer]) -> None:
    state = state_of(trained)
    layers = {name: each for name, each in state.ranker.items() if not name.endswith(".straight")}
    none = np.zeros(FEATURE_COUNT, np.float32)
    state = replace(state, ranker=layers | {"raw.straight": none, "served.straight": none})
    arrays = load(replace(state, ranker=layers).encode())
    arrays["state"] = np.frombuffer(arrays["state"].tobytes().replace(b'"schema": 5', b'"schema": 4'), np.uint8)
    read = TrainingState.decode(save(arrays))
    lists = made_lists()
    again, rankers = read.rankers(RANKER, 7), state.rankers(RANKER, 7)
    for _ in range(2):
        np.testing.assert_array_equal(again.scores(lists, np.arange(80)), rankers.scores(lists, np.arange(80)))
        for each in (again, rankers):
            each.update(lists, np.arange(40, 80), np.arange(40))
    with pytest.raises(TrainingStateError, match="schema 3"):
        arrays["state"] = np.frombuffer(arrays["state"].tobytes().replace(b'"schema": 4', b'"schema": 3'), np.uint8)
        TrainingState.decode(save(arrays))


def test_a_table_in_another_order_is_the_same_model(trained: tuple[EncoderTrainer, RankerTrainer]) -> None:
    state = state_of(trained)
    assert state.renumbered([*state.item_ids, "new"]) is state
    order = [*reversed(state.item_ids), "new"]
    other = state.renumbered(order)
    text = made_log().item_text
    was, now = state.encoder.item_vectors(text), other.encoder.item_vectors(np.vstack([text[::-1], text[:1]]))
    np.testing.assert_allclose(now[-2::-1], was, atol=1e-6)
    np.testing.assert_allclose(now[-1], state.encoder.item_vectors(text[:1], np.array([-1]))[0], atol=1e-6)
    assert other.trained.tolist() == [*state.trained[::-1].tolist(), False]


def test_sources_have_the_worth_that_was_counted(trained: tuple[EncoderTrainer, RankerTrainer]) -> None:
    state = TrainingState.decode(state_of(trained).encode())
    np.testing.assert_allclose(state.worth(), np.maximum(REACHED / 100, 0.05), rtol=1e-6)
    np.testing.assert_array_equal(source_worth(np.zeros(SOURCE_COUNT), 0.0), np.ones(SOURCE_COUNT))


def test_what_is_no_training_file_is_refused(trained: tuple[EncoderTrainer, RankerTrainer]) -> None:
    whole = state_of(trained).encode()
    for data in (b"", b"not this", whole[: len(whole) // 2], whole[:-1]):
        with pytest.raises(TrainingStateError):
            TrainingState.decode(data)


def learned(out: Path, text_model: Path, state: TrainingState, *, training: bool) -> Path:
    weights = state.encoder
    more = ((0, 384 - TEXT),)  # the text encoder of the test's bundle is wider than the made-up texts
    projection, foreseen = (np.pad(each, (*more, (0, 0))) for each in (weights.projection, weights.foreseen))
    return build_learned(
        out,
        parent=None,
        text_model=text_model,
        weights=replace(weights, projection=projection, foreseen=foreseen),
        item_ids=state.item_ids,
        ranker_graph=ranker_graph(state.ranker_weights(), PRESENCE),
        features=FEATURES,
        kinds=state.kinds,
        candidates=40,
        training=state.encode() if training else None,
    )


def test_a_bundle_carries_it_for_trainers_alone_and_is_the_same_version_without_it(
    trained: tuple[EncoderTrainer, RankerTrainer], bundle_directory: Path, tmp_path: Path
) -> None:
    state = state_of(trained)
    plain = learned(tmp_path / "plain", bundle_directory, state, training=False)
    whole = learned(tmp_path / "whole", bundle_directory, state, training=True)
    manifest = read_manifest(whole)
    assert manifest.version == read_manifest(plain).version
    assert manifest.training == TRAINING
    assert TRAINING not in manifest.files()
    assert TRAINING not in read_files(whole, manifest, manifest.files())
    found = TrainingState.decode(read_files(whole, manifest, [TRAINING])[TRAINING])
    assert found.item_ids == state.item_ids
    (whole / TRAINING).write_bytes(b"damaged")
    assert load_bundle(whole).version == manifest.version, "a worker does not look at it"
    with pytest.raises(BundleError, match="damaged"):
        read_files(whole, manifest, [TRAINING])
    (whole / TRAINING).unlink()
    assert load_bundle(whole).version == manifest.version, "nor need it be there"


def test_a_manifest_whose_training_file_is_not_listed_or_is_served_is_refused(
    trained: tuple[EncoderTrainer, RankerTrainer], bundle_directory: Path, tmp_path: Path
) -> None:
    whole = learned(tmp_path / "whole", bundle_directory, state_of(trained), training=True)
    manifest = read_manifest(whole)
    checksums = {name: each for name, each in manifest.checksums.items() if name != TRAINING}
    for changed, reason in (
        (msgspec.structs.replace(manifest, checksums=checksums), "no checksum"),
        (msgspec.structs.replace(manifest, training="item.onnx"), "cannot be served"),
        (
            msgspec.structs.replace(
                manifest, training="../out", checksums={**checksums, "../out": hashlib.sha256(b"").hexdigest()}
            ),
            "no plain file name",
        ),
    ):
        (whole / MANIFEST).write_bytes(encode_manifest(changed))
        with pytest.raises(BundleError, match=reason):
            read_manifest(whole)
