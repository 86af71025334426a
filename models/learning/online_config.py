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
    user_limit: int = 400
    """Records of one user that are learned from among the latest `user_span`."""
    user_span: int = 4_000
    first_events: int = 500
    """Records from which the first model is fitted, where the deployment began without a trained one."""
    # Where the encoder is fitted again in a first fit: what it foresees between two marks the ranker learns from.
    first_stages: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    first_epochs: tuple[int, ...] = (10, 8, 5, 9)
    refit_growth: float = 0.125
    """Share of the events that the last whole fit saw, after which as many new ones call for another: of a challenger
    that was judged."""
    ranker_growth: float = 2.0
    """Past lists, in those that the ranker was last fitted on, from which a whole fit fits it anew, too: one that was
    fitted on many learns on as well."""
    ahead: int = 4_000
    """Newest records that a whole fit leaves out, a quarter of the log at most: they tell how many passes pay off, and
    a ranker gets to know the new encoder's scores by them."""
    catch_up: int = 8
    """Rounds that a fitted rival learns from between two others."""
    contest: int = 2_000
    """Records after which the better of challenger and rival stays, though neither is surely better."""
    most_missed: int = 20_000
    """Records that came while a whole fit went on and are kept for it; of a stream that brings more the newest."""
    rival_lists: int = 12_000
    """Past lists of the rival's own at most, two thirds of them the challenger's at first."""
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
