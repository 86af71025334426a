"""The text encoder: meaning, independence of the batch, any text at all, and a cache that stays small."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.domain.errors import EncoderError
from models.encoders.bundle import Bundle
from models.encoders.session import CPU, open_session
from models.encoders.text import MAX_BATCH, OnnxTextEncoder

TEXTS = ("Toy Story (1995)", "a", "wireless headphones, black, noise cancelling", "the night was dark " * 30, "Größe")


def fresh(directory: Path, **options: int) -> OnnxTextEncoder:
    session = open_session("text", (directory / "text.onnx").read_bytes(), [CPU], threads=1, shapes_vary=True)
    return OnnxTextEncoder(session, (directory / "tokenizer.json").read_bytes(), **options)


@pytest.fixture(scope="module")
def uncached(bundle_directory: Path) -> OnnxTextEncoder:
    return fresh(bundle_directory, cache_size=0)


def test_texts_near_in_meaning_are_near_in_space(bundle: Bundle) -> None:
    queries = bundle.text_encoder.encode_many(["a film about space travel", "cheap running shoes", "guitar strings"])
    answers = bundle.text_encoder.encode_many(["astronauts fly to Mars", "sneakers on sale", "steel string set"])
    similarity = queries @ answers.T
    assert (similarity.argmax(axis=1) == np.arange(3)).all(), similarity


def test_embeddings_are_unit_long(uncached: OnnxTextEncoder) -> None:
    rows = uncached.encode_many(TEXTS)
    assert rows.shape == (len(TEXTS), 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_a_text_has_the_same_bytes_alone_and_in_any_batch(uncached: OnnxTextEncoder) -> None:
    texts = [f"{text} {number}" for number in range(16) for text in TEXTS]
    together = uncached.encode_many(texts)
    backwards = uncached.encode_many(texts[::-1])[::-1]
    alone = np.concatenate([uncached.encode_many([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(backwards, alone)


@pytest.mark.parametrize("text", ["", " ", "\t\n\r ", "\u200b", "\x00", "\U0001f600\U0001f389", "\ud800", "[UNK]"])
def test_a_text_without_a_known_token_is_a_zero_row(uncached: OnnxTextEncoder, text: str) -> None:
    np.testing.assert_array_equal(uncached.encode_many([text, "word"])[0], 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 20_000,
        "word " * 4_000,
        "\n" * 19_000 + "late",
        "a\u0301" * 3_000,
        "東京タワー" * 500,
        "مرحبا بالعالم",
        "good \ud83d lone surrogate",
        "nul \x00 inside",
        "\u202eright to left\u202c",
        "[CLS] [SEP] [PAD] literally",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 family",
    ],
)
def test_any_text_gives_a_finite_row_and_leaves_its_neighbours_alone(uncached: OnnxTextEncoder, text: str) -> None:
    rows = uncached.encode_many(["before", text, "after"])
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows[[0, 2]], uncached.encode_many(["before", "after"]))


def test_text_beyond_the_token_limit_is_cut(uncached: OnnxTextEncoder) -> None:
    head = "one two three four five six seven eight nine ten " * 26
    rows = uncached.encode_many([head + "completely different ending", head + "and another"])
    np.testing.assert_array_equal(rows[0], rows[1])


def test_nothing_to_encode_is_no_row(uncached: OnnxTextEncoder) -> None:
    assert uncached.encode_many([]).shape == (0, 384)


def test_the_cache_counts_and_stays_bounded(bundle_directory: Path) -> None:
    encoder = fresh(bundle_directory, cache_size=3)
    first = encoder.encode_many(["one", "two", "one"])
    assert (encoder.cache_hits, encoder.cache_misses, encoder.cache_entries) == (1, 2, 2)
    np.testing.assert_array_equal(encoder.encode_many(["one"])[0], first[0])
    assert (encoder.cache_hits, encoder.cache_misses) == (2, 2)
    encoder.encode_many(["three", "four"])  # "two" is the least recently used
    assert encoder.cache_entries == 3
    encoder.encode_many(["one"])
    assert (encoder.cache_hits, encoder.cache_misses) == (3, 4)
    encoder.encode_many(["two"])
    assert (encoder.cache_hits, encoder.cache_misses) == (3, 5)


def test_what_is_remembered_is_told_without_the_model(bundle_directory: Path) -> None:
    encoder = fresh(bundle_directory, cache_size=3)
    one, empty = encoder.encode_many(["one", ""])
    found = encoder.remembered(["two", "one", ""])
    assert (encoder.cache_hits, encoder.cache_misses, encoder.cache_entries) == (2, 2, 2)
    assert found[0] is None
    for told, right in zip(found[1:], (one, empty), strict=True):
        assert told is not None
        np.testing.assert_array_equal(told, right)
        told[:] = 7
    np.testing.assert_array_equal(encoder.encode_many(["one"])[0], one)
    encoder.encode_many(["three", "four"])
    assert encoder.remembered([""]) == [None], "the oldest goes"


def test_what_is_handed_out_is_not_what_is_remembered(bundle_directory: Path) -> None:
    encoder = fresh(bundle_directory, cache_size=3)
    kept = encoder.encode_many(["one"]).copy()
    encoder.encode_many(["one"])[:] = 7
    np.testing.assert_array_equal(encoder.encode_many(["one"]), kept)


def test_several_threads_may_encode_at_once(bundle_directory: Path) -> None:
    encoder = fresh(bundle_directory, cache_size=10)
    texts = [f"title number {n % 25}" for n in range(MAX_BATCH)]
    expected = encoder.encode_many(texts)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: encoder.encode_many(texts), range(12)):
            np.testing.assert_array_equal(rows, expected)
    assert encoder.cache_entries <= 10


def test_a_broken_tokenizer_is_an_encoder_error(bundle_directory: Path) -> None:
    session = open_session("text", (bundle_directory / "text.onnx").read_bytes(), [CPU], threads=1)
    with pytest.raises(EncoderError, match="tokenizer"):
        OnnxTextEncoder(session, b"{}")
    with pytest.raises(EncoderError, match="pooling"):
        OnnxTextEncoder(session, (bundle_directory / "tokenizer.json").read_bytes(), pooling="none")
