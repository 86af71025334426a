"""The catalogue: numbering, placeholders, removal, and what decides an item's content hash."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.domain.catalogue import Catalogue, content_hash, content_text, item_hash
from models.domain.events import Item
from tests import strategies
from tests.domain.helpers import catalogue_of, declare


@settings(max_examples=50, deadline=None)
@given(st.lists(strategies.ids, max_size=60))
def test_items_are_numbered_in_order_of_appearance(ids: list[str]) -> None:
    catalogue = Catalogue(3, capacity=1)
    indices = catalogue.intern_many(ids)
    assert catalogue.ids == list(dict.fromkeys(ids))
    assert [catalogue.ids[at] for at in indices] == ids
    assert all(catalogue.index_by_hash[item_hash(i)] == catalogue.index[i] for i in ids)
    assert len(catalogue.available) >= len(catalogue) == len(catalogue.titles) == len(catalogue.hashes)


def test_growing_keeps_what_is_known() -> None:
    catalogue = Catalogue(3, capacity=1)
    for n in range(9):
        at = catalogue.declare(Item(item_id=f"i{n}", title=f"title {n}"))
        catalogue.set_vectors([at], np.full((1, 3), n + 1, np.float32))
    assert catalogue.available[:9].all()
    assert catalogue.known[:9].all()
    np.testing.assert_array_equal(catalogue.vectors[:9, 0], np.arange(1, 10))
    assert catalogue.titles[8] == "title 8"


def test_an_id_alone_makes_no_item() -> None:
    catalogue = Catalogue(3)
    at = catalogue.intern("a")
    assert not catalogue.known[at]
    assert not catalogue.available[at]


def test_a_touch_makes_a_placeholder_and_says_what_was_known_before() -> None:
    catalogue = Catalogue(3)
    at = catalogue.intern("a")
    assert catalogue.touch(at) is False
    assert catalogue.touch(at) is True
    assert catalogue.available[at]


def test_a_touch_does_not_bring_back_what_is_unavailable_or_removed() -> None:
    catalogue = catalogue_of(2)
    declare(catalogue, "i0", available=False)
    catalogue.remove("i1")
    assert catalogue.touch(0) is True
    assert catalogue.touch(1) is False
    assert not catalogue.available[:2].any()


def test_a_removed_item_keeps_its_number_and_comes_back_when_declared() -> None:
    catalogue = catalogue_of(3)
    catalogue.remove("i1")
    assert not catalogue.available[1]
    assert not catalogue.has_vector[1]
    assert not catalogue.vectors[1].any()
    assert declare(catalogue, "i1", title="again") == 1
    assert catalogue.available[1]
    assert catalogue.has_vector[1]
    assert catalogue.titles[1] == "again"


def test_removing_an_item_nobody_knew_is_remembered() -> None:
    catalogue = Catalogue(3)
    catalogue.remove("a")
    catalogue.touch(catalogue.index["a"])
    assert not catalogue.available[catalogue.index["a"]]


def test_an_untitled_item_is_called_by_its_id() -> None:
    catalogue = catalogue_of(["a"], title="first")
    catalogue.declare(Item(item_id="a"))
    assert catalogue.titles[0] == "a"


def test_a_vector_without_direction_is_none() -> None:
    catalogue = catalogue_of(2)
    catalogue.set_vectors([0], np.array([[0.0] * 8 + [5.0]], np.float32))
    assert catalogue.has_vector[:2].tolist() == [False, True]


def test_the_text_of_an_item_is_title_categories_and_text() -> None:
    assert content_text(Item(item_id="a", title=" Heat ", categories=("Crime", "Drama"), text="A film.")) == (
        "Heat. Crime, Drama. A film."
    )
    assert content_text(Item(item_id="a")) == ""


def test_the_content_hash_follows_exactly_what_is_encoded() -> None:
    item = Item(item_id="a", title="Heat", text="A film.", categories=("Crime",))
    same = Item(item_id="b", title="Heat", text="A film.", categories=("Crime",), price=3.0, available=False)
    assert content_hash(item) == content_hash(same)
    for other in (
        Item(item_id="a", title="Heat 2", text="A film.", categories=("Crime",)),
        Item(item_id="a", title="Heat", text="A film.", categories=("Drama",)),
        Item(item_id="a", title="Heat", text="A film.", categories=("Crime",), vector=(1.0,)),
    ):
        assert content_hash(item) != content_hash(other)


def test_attached_vectors_keep_step_and_take_the_place_of_the_served_ones() -> None:
    catalogue = catalogue_of(3)
    served = catalogue.served
    coming = catalogue.attach(lambda item_id: np.full(catalogue.dimension, float(len(item_id)), np.float32))
    coming.put([0, 1], np.full((2, catalogue.dimension), 7.0, np.float32))
    catalogue.remove("i1")
    late = catalogue.intern("newest")
    for number in range(3_000):
        catalogue.intern(f"more-{number}")
    assert catalogue.served is served
    assert catalogue.vectors[0].any()
    assert catalogue.vectors[0].tolist() != [7.0] * catalogue.dimension
    assert len(coming.rows) == len(catalogue.vectors) == len(catalogue.available), "they grow together"

    catalogue.serve(coming)
    assert catalogue.vectors is coming.rows
    assert catalogue.vectors[0].tolist() == [7.0] * catalogue.dimension
    assert not catalogue.vectors[1].any(), "a removed item has no vector"
    assert not catalogue.vectors[2].any(), "what was there before is the caller's to fill in"
    assert catalogue.vectors[late].tolist() == [6.0] * catalogue.dimension
    assert catalogue.has_vector[: late + 1].tolist() == [True, False, False, True]
    before = served.rows.copy()
    catalogue.remove("i0")
    np.testing.assert_array_equal(served.rows, before)


def test_detached_vectors_are_left_alone_and_served_ones_stay() -> None:
    catalogue = catalogue_of(2)
    coming = catalogue.attach(lambda _: np.ones(catalogue.dimension, np.float32))
    catalogue.detach(coming)
    catalogue.detach(catalogue.served)
    at = catalogue.intern("new")
    assert not coming.rows[at].any()
    catalogue.set_vectors([at], np.ones((1, catalogue.dimension), np.float32))
    assert catalogue.has_vector[at]
