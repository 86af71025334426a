"""What decides online learning. Nothing in it is specific to a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.learning.encoder_config import EncoderConfig
from models.learning.gate import GateRule, WatchRule
from models.learning.ranker_trainer import RankerConfig


@dataclass(frozen=True)
class OnlineConfig:
    """Figures beside the choices stand in models/README.md."""

    window: int = 500
    """Records between two rounds."""
    user_limit: int = 200
    """Records of one user that are learned from among the latest `user_span`."""
    user_span: int = 2_000
    first_events: int = 500
    """Records from which the first model is fitted, where the deployment began without a trained one."""
    # Where the encoder is fitted again in a first fit: what it foresees between two marks the ranker learns from.
    first_stages: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    first_epochs: tuple[int, ...] = (10, 8, 5, 9)
    refit_growth: float = 0.25
    """Share of the events that the last whole fit saw, after which as many new ones call for another: of a challenger
    that was judged."""
    settling: int = 2_000
    """Records that a challenger learns from after a whole fit before it is compared, a quarter of the log at most: its
    ranker has to get to know the new encoder's scores."""
    ahead: int = 4_000
    """Newest records that a whole fit leaves out, so that the challenger meets them as if they came now and has its
    evidence at once."""
    validation: float = 0.1
    """Latest share of past lists, on which is chosen how long the ranker trains in a whole fit."""
    candidates: int = 200
    """Of a list, for a first model; a later one keeps its predecessor's."""
    lists: int = 40_000
    """Past lists kept for the ranker at most, the newest ones: 22 KB each in memory, and once on disk."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    gate: GateRule = field(default_factory=GateRule)
    watch: WatchRule = field(default_factory=WatchRule)
