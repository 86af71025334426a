"""The reviews of a log: when they are enough to learn reading from, and the reader that they give.

Only events that were played are given to it, so that nothing is learned from later ones. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.domain.batch import PipelineOptions
from models.domain.errors import TrainingError
from models.domain.events import Event, Interaction, Item, encoded_text
from models.domain.ports import F32
from models.learning.past_values import NO_KIN, Kin, PastValues
from models.learning.review_value import fit_review_value
from models.learning.review_value_weights import ReviewValueWeights

# With 250 reviews the error is that of everybody's mean (.90 of five stars against .92), with 500 it is .85, with 1,000
# .76, with 8,000 .68; and the latest tenth of 500 is the least on which penalties can be chosen.
LEAST_REVIEWS = 500
# Bounds the fit to some half a minute; from 4,000 reviews to 8,000 the error fell by .04.
MOST_REVIEWS = 20_000
VALIDATION = 0.1
# Latest reviews on which export compares graph and weights.
SAMPLE = 256


class FittedReader(NamedTuple):
    weights: ReviewValueWeights
    texts: Sequence[str]
    """Some of the reviews, for parity."""
    embeddings: F32
    """float32[len(texts), E]."""


def fit_reader(
    events: Sequence[Event], texts: Mapping[str, F32], options: PipelineOptions, items: Sequence[Item] = ()
) -> FittedReader | None:
    """Fit on the events' reviews, choosing on their latest tenth.

    Args:
        events: in time order.
        texts: embedding of each text that they carry.
        items: what the catalogue declares.
    Returns: None where reviews are too few, all of one value, or read no better than the value's past foresees.
    """
    past, kin = PastValues(), {str(item.item_id): Kin.of(item) for item in items}
    found: list[tuple[str, F32, float, F32]] = []
    for event in events:
        if not isinstance(event, Interaction):
            continue
        vector = texts.get(encoded_text(event) or "")
        user, item, text = str(event.user_id), str(event.item_id), event.text or ""
        share = None if event.value is None else options.share(event.value)
        shared = kin.get(item, NO_KIN)
        if share is not None and vector is not None:
            found.append((text, vector, share, past.row(user, item, event.event_time_ms, shared)))
        past.update(user, item, event.event_time_ms, share, len(text), shared)
    found = found[-MOST_REVIEWS:]
    fit_end = int((1.0 - VALIDATION) * len(found))
    if len(found) < LEAST_REVIEWS:
        return None
    words, embeddings = [text for text, _, _, _ in found], np.stack([vector for _, vector, _, _ in found])
    values, rows = np.array([share for _, _, share, _ in found], np.float32), np.stack([row for _, _, _, row in found])
    try:
        weights = fit_review_value(words, embeddings, values, rows, fit_end=fit_end, validation_end=len(found))
    except TrainingError:  # all values are the same
        return None
    if weights.metrics["text_rmse"] >= weights.metrics["state_rmse"]:
        return None
    return FittedReader(weights, words[-SAMPLE:], embeddings[-SAMPLE:])
