"""Values read from texts, for interactions whose users wrote and gave no value. Knows no state and no model.

Serving and training fill the same gaps with the same reader through this file alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from models.domain.events import Event, Interaction, Request, encoded_text
from models.domain.ports import F32, ValueReader


def read_values(
    reader: ValueReader, events: Iterable[tuple[int, Event | Request]], texts: Mapping[str, F32]
) -> dict[int, float]:
    """What the texts say, by position, as shares of the value scale, 0 to 1; one call of the reader, or none.

    Args:
        events: positions and events; those with a value, without a text or without a word in it have no entry.
        texts: embedding (float32[E]) of what the text encoder reads of each text.
    """
    found = [
        (position, event.text, vector)
        for position, event in events
        if isinstance(event, Interaction)
        and event.value is None
        and event.text
        and (vector := texts.get(encoded_text(event) or "")) is not None
    ]
    if not found:
        return {}
    shares = reader.read_many([text for _, text, _ in found], np.stack([vector for _, _, vector in found]))
    return {position: share for (position, _, _), share in zip(found, shares.tolist(), strict=True) if share >= 0}
