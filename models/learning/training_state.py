"""What training goes on from: both networks as they are served, and what the trainers know beside them.

One safetensors file in a bundle, which no worker reads. Trainers made of it stand where they stand when a fit has just
ended. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.domain.candidates import SOURCE_COUNT
from models.domain.errors import RecommenderError
from models.domain.features import FEATURE_COUNT
from models.domain.ports import F32
from models.learning.encoder_trainer import EncoderConfig, EncoderTrainer
from models.learning.encoder_weights import EncoderWeights
from models.learning.passes import PassEvidence
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.ranker_weights import RankerWeights

SCHEMA = 5
# Of a release whose rankers had their layers alone.
_LAYERS_ALONE = 4
# A source that never reached what was chosen keeps this worth, so that it is still heard and can prove itself.
LEAST_WORTH = 0.05
_META = "state"


class TrainingStateError(RecommenderError):
    """A training file that cannot be read, or that another release wrote."""


@dataclass(frozen=True)
class TrainingState:
    """N items, S candidate sources."""

    item_ids: tuple[str, ...]
    """One a row of the item table."""
    kinds: tuple[str, ...]
    encoder: EncoderWeights
    """As served: averaged weights."""
    trained: npt.NDArray[np.bool_]
    """bool[N], items that a training event named."""
    cold_offset: float
    """Part of the encoder's `cold`: what the biases of new items are lifted by."""
    evidence: npt.NDArray[np.float64]
    """`PassEvidence.sums`."""
    ranker: Mapping[str, npt.NDArray[Any]]
    """`RankerTrainer.tensors`."""
    candidates: int
    """Candidates of a list that the ranker is served with."""
    reached: npt.NDArray[np.float64]
    """float64[S], in how many of `reachable` lists a source came to what was chosen."""
    reachable: float
    events: int
    """It learned from, when all was last fitted as a whole."""
    lists: int
    """The ranker learned from, likewise."""
    until_ms: int
    """Time of the newest event that the last whole fit saw: to the ranker, lists of before are no examples any more."""

    @classmethod
    def of(
        cls,
        encoders: EncoderTrainer,
        rankers: RankerTrainer,
        *,
        item_ids: tuple[str, ...],
        kinds: tuple[str, ...],
        candidates: int,
        reached: npt.NDArray[np.float64],
        reachable: float,
        events: int,
        lists: int,
        until_ms: int,
    ) -> TrainingState:
        weights = encoders.served()
        return cls(
            item_ids=item_ids[: len(weights.item_id)],
            kinds=kinds,
            encoder=weights,
            trained=encoders.trained.copy(),
            cold_offset=encoders.cold_offset,
            evidence=encoders.evidence.sums,
            ranker={name: each.numpy() for name, each in rankers.tensors().items()},
            candidates=candidates,
            reached=reached.copy(),
            reachable=reachable,
            events=events,
            lists=lists,
            until_ms=until_ms,
        )

    def encoders(self, config: EncoderConfig, seed: int) -> EncoderTrainer:
        trainer = EncoderTrainer.of(config, self.encoder, self.trained, seed=seed)
        trainer.cold_offset, trainer.evidence = self.cold_offset, PassEvidence(self.evidence)
        return trainer

    def rankers(self, config: RankerConfig, seed: int) -> RankerTrainer:
        return RankerTrainer.of(config, seed, {name: torch.tensor(each) for name, each in self.ranker.items()})

    def renumbered(self, item_ids: Sequence[str]) -> TrainingState:
        """The same model with its item table in this order.

        Args:
            item_ids: the state's own and others, of which it then knows their text alone.
        """
        if self.item_ids == tuple(item_ids[: len(self.item_ids)]):
            return self
        places = {item_id: row for row, item_id in enumerate(self.item_ids)}
        row = np.array([places.get(item_id, -1) for item_id in item_ids], np.int64)
        known, encoder = row >= 0, self.encoder
        return replace(
            self,
            item_ids=tuple(item_ids),
            trained=self.trained[row] & known,
            encoder=replace(
                encoder,
                item_id=np.where(known[:, None], encoder.item_id[row], encoder.cold[:-1]),
                item_bias=np.where(known, encoder.item_bias[row], encoder.cold[-1]),
            ),
        )

    def ranker_weights(self) -> RankerWeights:
        return self.rankers(RankerConfig(), 0).weights()

    def worth(self) -> F32:
        return source_worth(self.reached, self.reachable)

    def encode(self) -> bytes:
        arrays = {f"encoder.{name}": each for name, each in self.encoder.arrays().items()}
        arrays |= {f"ranker.{name}": each for name, each in self.ranker.items()}
        meta = {
            "schema": SCHEMA,
            "item_ids": self.item_ids,
            "kinds": self.kinds,
            "cold_offset": self.cold_offset,
            "candidates": self.candidates,
            "reachable": self.reachable,
            "events": self.events,
            "lists": self.lists,
            "until_ms": self.until_ms,
        }
        arrays |= {"trained": self.trained, "reached": self.reached, "evidence": self.evidence}
        arrays[_META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        return save({name: np.ascontiguousarray(each).reshape(each.shape) for name, each in arrays.items()})

    @classmethod
    def decode(cls, data: bytes) -> TrainingState:
        """Raises: TrainingStateError."""
        try:
            arrays = load(data)
            meta = json.loads(arrays.pop(_META).tobytes())
            if meta["schema"] == _LAYERS_ALONE:
                arrays |= {
                    f"ranker.{each}.straight": np.zeros_like(arrays["ranker.raw.mean"]) for each in ("raw", "served")
                }
            elif meta["schema"] != SCHEMA:
                raise TrainingStateError(f"training file of schema {meta['schema']}, this release reads {SCHEMA}")
            encoder = EncoderWeights(**{each.name: arrays[f"encoder.{each.name}"] for each in fields(EncoderWeights)})
            ranker = {name.removeprefix("ranker."): each for name, each in arrays.items() if name.startswith("ranker.")}
            state = cls(
                item_ids=tuple(meta["item_ids"]),
                kinds=tuple(meta["kinds"]),
                encoder=encoder,
                trained=arrays["trained"].astype(np.bool_),
                cold_offset=float(meta["cold_offset"]),
                evidence=arrays["evidence"].astype(np.float64),
                ranker=ranker,
                candidates=int(meta["candidates"]),
                reached=arrays["reached"].astype(np.float64),
                reachable=float(meta["reachable"]),
                events=int(meta["events"]),
                lists=int(meta["lists"]),
                until_ms=int(meta["until_ms"]),
            )
            lengths = {len(state.item_ids), len(state.trained), len(encoder.item_id), len(encoder.item_bias)}
            features = len(ranker["raw.mean"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingStateError(f"no training file that can be read: {error!r}") from error
        if (
            len(lengths) != 1
            or len(state.kinds) != len(encoder.kind)
            or len(state.reached) != SOURCE_COUNT
            or state.evidence.shape != PassEvidence().sums.shape
        ):
            raise TrainingStateError("a training file whose parts do not fit each other")
        if features != FEATURE_COUNT:
            raise TrainingStateError(f"a ranker of {features} features, this release has {FEATURE_COUNT}")
        return state


def newest_time(time_ms: npt.NDArray[np.int64]) -> int:
    """But for a thousandth, since one clock that is years ahead must not make all that comes look old; -1 for none."""
    return int(np.quantile(time_ms, 0.999, method="lower")) if len(time_ms) else -1


def source_worth(reached: npt.NDArray[np.float64], reachable: float) -> F32:
    """float32[S], in which share of the lists each source came to what was chosen."""
    if reachable == 0:
        return np.ones(SOURCE_COUNT, np.float32)
    return np.maximum(reached / reachable, LEAST_WORTH).astype(np.float32)
