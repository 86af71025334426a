"""Made-up training logs for tests of training."""

from __future__ import annotations

import numpy as np

from models.learning.log import TrainingLog
from models.learning.passes import LOOKS, PassEvidence

TEXT = 12


def made_log(users: int = 12, events: int = 300, items: int = 20, seed: int = 0, cycle: bool = False) -> TrainingLog:
    """Events of several kinds: ties in time, searches without an item, hides, repeated touches, some texts.

    Args:
        cycle: instead every user goes around all items in order, from a place of his own.
    """
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, events).astype(np.int32)
    time = np.cumsum(rng.integers(0, 2, events)) * 60_000
    if cycle:
        items = 40
        own = rng.integers(0, items, users)
        nth = np.array([(user[:k] == user[k]).sum() for k in range(events)])
        item = ((own[user] + nth) % items).astype(np.int32)
        kind, strength = np.ones(events, np.int32), np.ones(events, np.float32)
        time = np.arange(events) * 60_000
    else:
        item = rng.integers(0, items - 3, events).astype(np.int32)
        item[events * 2 // 3 :] = rng.integers(0, items, events - events * 2 // 3)
        kind = rng.integers(0, 4, events).astype(np.int32)
        item[kind == 3] = -1
        strength = np.array([1.0, 1.0, -1.0, 1.0], np.float32)[kind]
    seen: set[tuple[int, int]] = set()
    target = np.zeros(events, np.bool_)
    for k, pair in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        target[k] = pair[1] >= 0 and pair not in seen
        seen.add(pair)
    texts = rng.normal(size=(events // 4, TEXT)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    text = np.full(events, -1, np.int32)
    told = rng.permutation(events)[: len(texts)]
    text[told] = np.arange(len(texts))
    if not cycle:
        bare = np.flatnonzero((item < 0) & (text < 0))
        text[bare] = rng.integers(0, len(texts), len(bare))
    item_text = rng.normal(size=(items, TEXT)).astype(np.float32)
    item_text /= np.linalg.norm(item_text, axis=1, keepdims=True)
    return TrainingLog(
        user=user,
        item=item,
        kind=kind,
        strength=strength,
        value=rng.choice([-1, 0.2, 0.6, 1.0], events).astype(np.float32),
        time_ms=time.astype(np.int64),
        text=text,
        target=target,
        item_text=item_text,
        event_text=texts,
        kinds=("", "view", "hide", "search"),
    )


def evidence_for(passes: int | None) -> PassEvidence:
    """That so many of twelve passes are enough; None: all."""
    evidence, every = PassEvidence(), 12
    evidence.add({each: np.full(9, 1.0 + (each != (passes or every))) for each in (*LOOKS, every)})
    assert evidence.enough() == passes
    return evidence
