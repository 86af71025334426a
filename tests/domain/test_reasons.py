"""Reasons in words, and every source has one."""

from __future__ import annotations

import pytest

from models.domain.candidates import SOURCES
from models.domain.events import INTERACTION_STRENGTHS
from models.domain.reasons import MAX_TITLE, because_of, of_source, short_title


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_has_words(source: str) -> None:
    assert of_source(source)
    assert "_" not in of_source(source)


@pytest.mark.parametrize("kind", sorted(INTERACTION_STRENGTHS))
def test_every_built_in_kind_has_a_verb(kind: str) -> None:
    words = because_of("Heat", kind, None)
    assert words.startswith("because you ")
    assert "Heat" in words
    assert words != because_of("Heat", "some kind of your own", None)


def test_a_rating_is_told_with_its_value_and_other_kinds_without() -> None:
    assert because_of("Heat (1995)", "rating", 5.0) == "because you rated Heat (1995) 5"
    assert because_of("Heat (1995)", "rating", 4.5) == "because you rated Heat (1995) 4.5"
    assert because_of("Heat (1995)", "rating", None) == "because you rated Heat (1995)"
    assert because_of("Heat (1995)", "purchase", 30.0) == "because you bought Heat (1995)"


def test_a_kind_of_the_settings_is_a_choice() -> None:
    assert because_of("Heat", "tip", None) == "because you chose Heat"


@pytest.mark.parametrize("length", [0, 1, MAX_TITLE, MAX_TITLE + 1, 1_000])
def test_long_titles_are_cut(length: int) -> None:
    title = "x" * length
    assert len(short_title(title)) <= MAX_TITLE
    assert (short_title(title) == title) is (length <= MAX_TITLE)
