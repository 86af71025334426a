"""What is learned from lists asked just before a choice: the candidates as they stood, and what was chosen of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.domain.batch import Examples
from models.domain.candidates import Lists
from models.domain.feedback import Candidates, pack_features


class AskedList(NamedTuple):
    """A list asked just before a choice."""

    position: int
    """Of the choice in the batch."""
    row: int
    item: int
    """What was chosen."""
    fresh: bool
    """False where the list published just before stands for it."""


def place_among(lists: Lists, row: int, item: int) -> int:
    """Place of `item` among the candidates of list `row`, from 0; -1 = not among them."""
    found = np.flatnonzero(lists.item[row, : lists.size[row]] == item)
    return int(found[0]) if len(found) else -1


def examples_of(lists: Lists, asked: Sequence[AskedList]) -> Examples:
    """For a ranker trained on the spot: the asked lists that hold what was chosen then."""
    places = [place_among(lists, one.row, one.item) for one in asked]
    found = [(one, place) for one, place in zip(asked, places, strict=True) if place >= 0]
    rows = [one.row for one, _ in found]
    fresh = [one.row for one in asked if one.fresh]
    return Examples(
        position=np.array([one.position for one, _ in found], np.int64),
        features=lists.features[rows],
        size=lists.size[rows],
        chosen=np.array([place for _, place in found], np.int32),
        asked=np.array([one.position for one in asked], np.int64),
        reached=lists.reached[fresh].sum(axis=0),
        reachable=len(fresh),
    )


def candidates_of(lists: Lists, row: int, item: int, ids: Sequence[str], place: int) -> Candidates:
    """For a trainer elsewhere.

    Args:
        ids: of every item, by index.
        place: 1-based place of the item in the list as served, 0 = not in it.
    """
    size = int(lists.size[row])
    chosen = place_among(lists, row, item)
    return Candidates(
        items=tuple([ids[at] for at in lists.item[row, :size].tolist()]),
        features=pack_features(lists.features[row, :size]) if chosen >= 0 else b"",
        chosen=chosen,
        reached=tuple(lists.reached[row].astype(np.int8).tolist()),
        place=place,
    )
