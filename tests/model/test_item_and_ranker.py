"""Item tower and rankers: shapes, zero rows, weights given and weights learned."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.projection import random_projection
from models.domain.errors import EncoderError
from models.encoders.bundle import Bundle
from models.encoders.ranker import OnnxRanker
from models.encoders.session import CPU, open_session
from tests.model.conftest import FEATURES, WEIGHTS, unit_rows


def test_item_vectors_are_unit_long_with_a_zero_bias(bundle: Bundle) -> None:
    text = unit_rows(np.random.default_rng(0), 17, 384)
    items = bundle.item_encoder.encode_many([str(i) for i in range(17)], text)
    assert items.shape == (17, 65)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(items[:, 64], 0.0)


def test_an_item_without_text_has_a_zero_vector(bundle: Bundle) -> None:
    np.testing.assert_array_equal(bundle.item_encoder.encode_many(["a"], np.zeros((1, 384), np.float32)), 0.0)
    assert bundle.item_encoder.encode_many([], np.zeros((0, 384), np.float32)).shape == (0, 65)


def test_ids_and_texts_must_be_as_many(bundle: Bundle) -> None:
    with pytest.raises(EncoderError, match="2 ids and 1 texts"):
        bundle.item_encoder.encode_many(["a", "b"], np.zeros((1, 384), np.float32))


def test_the_projection_keeps_inner_products_nearly() -> None:
    projection = random_projection(384, 64).astype(float)
    np.testing.assert_allclose(projection.T @ projection, np.eye(64), atol=1e-4)
    rows = unit_rows(np.random.default_rng(1), 200, 384)
    exact = rows @ rows.T
    kept = (rows @ projection) @ (rows @ projection).T * 384 / 64
    assert np.abs(kept - exact).mean() < 0.15
    assert random_projection(32, 64).shape == (32, 64)


@pytest.mark.parametrize(("batch", "candidates"), [(1, 1), (2, 100), (17, 300), (1, 0), (0, 5)])
def test_the_log_linear_score_is_the_weighted_sum(bundle: Bundle, batch: int, candidates: int) -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(batch, candidates, 3)).astype(np.float32)
    weights = rng.normal(size=(batch, 3)).astype(np.float32)
    scores = bundle.ranker.score(features, weights)
    assert scores.shape == (batch, candidates)
    np.testing.assert_allclose(scores, np.einsum("bkf,bf->bk", features, weights), atol=1e-5)


def test_the_ranker_names_its_features_and_hands_out_copies_of_its_weights(bundle: Bundle) -> None:
    first = bundle.ranker.initial_weights
    assert first is not None
    first += 1
    assert tuple(bundle.ranker.features) == FEATURES
    np.testing.assert_allclose(bundle.ranker.initial_weights, WEIGHTS)


def test_weights_must_be_given_one_set_a_list(bundle: Bundle) -> None:
    features = np.zeros((2, 4, 3), np.float32)
    for weights in (None, np.zeros(3, np.float32), np.zeros((1, 3), np.float32)):
        with pytest.raises(EncoderError, match="weights"):
            bundle.ranker.score(features, weights)
    with pytest.raises(EncoderError, match="features"):
        bundle.ranker.score(np.zeros((2, 4, 5), np.float32), np.zeros((2, 5), np.float32))


def learned_ranker() -> bytes:
    """A graph with weights of its own: score = relu(features W) v."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["score"]),
    ]
    weights = [
        numpy_helper.from_array(rng.normal(size=(3, 8)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=8).astype(np.float32), "v"),
    ]
    graph = helper.make_graph(
        nodes,
        "ranker",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ("B", "K", 3))],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ("B", "K"))],
        weights,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_a_learned_ranker_takes_no_weights() -> None:
    session = open_session("ranker", learned_ranker(), [CPU], threads=1)
    ranker = OnnxRanker(session, features=FEATURES, initial_weights=None)
    assert ranker.initial_weights is None
    assert ranker.score(np.ones((2, 5, 3), np.float32), None).shape == (2, 5)
    with pytest.raises(EncoderError, match="its own"):
        ranker.score(np.ones((2, 5, 3), np.float32), np.ones((2, 3), np.float32))
    with pytest.raises(EncoderError, match="initial_weights"):
        OnnxRanker(session, features=FEATURES, initial_weights=WEIGHTS)
