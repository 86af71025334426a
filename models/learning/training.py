"""Training as the stream is played: encoder and ranker learn from the past alone, in the order in which it happened.

The ranker must learn from scores that the encoder gave to events it had not seen. So the log is played in stages: the
encoder is fitted on what was played, the next stage is played with it, and the lists asked there are what the ranker
learns from. Source: research/joint-ranker.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from models.domain.candidates import SOURCE_COUNT
from models.domain.errors import TrainingError
from models.domain.events import Interaction, Item
from models.domain.features import FEATURES
from models.domain.pipeline import Pipeline
from models.domain.ports import F32, Ranker, UserEncoder, ValueReader
from models.domain.protocol import Player
from models.domain.read_values import read_values
from models.learning.encoder_trainer import EncoderConfig, EncoderTrainer
from models.learning.encoder_weights import EncoderWeights
from models.learning.lists import ListBuffer, Lists
from models.learning.log import LogBuilder
from models.learning.places import hit_rate, mean_ndcg
from models.learning.ranker_trainer import RankerConfig, RankerTrainer
from models.learning.ranker_weights import RankerWeights
from models.learning.reviews import FittedReader, fit_reader
from models.learning.training_state import TrainingState, newest_time, source_worth

# A tenth of it is the first stage; below that no encoder says anything yet.
LEAST_EVENTS = 500
# Latest events on which is measured what an offset for new items costs the others.
COLD_EVENTS = 3_000
# Events right after a fit on which is measured how many of its passes paid off.
PASSES_EVENTS = 4_000
# Batches whose lists are kept at full precision before they are taken over: bounds memory on a long log.
TAKEN_AT_ONCE = 8
# Events whose texts are read in one call: bounds the arrays of a long log.
READ_AT_ONCE = 1_000


@dataclass(frozen=True)
class TrainingConfig:
    """What decides a training; nothing in it is specific to a stream."""

    # Where the encoder is fitted again, as shares of the log: the ranker's history starts at the first one.
    stages: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    epochs: tuple[int, ...] = (10, 8, 5, 5, 9)
    """Passes of each fit, from the weights of the one before. On a log that is known by heart after fewer, each fit
    begins from nothing and keeps what it was after as many as pay off (`EncoderTrainer.choose_passes`)."""
    validation: float = 0.1
    """Share of the log, its latest part, on which is chosen how long the ranker trains."""
    candidates: int = 200
    block: int = 250
    """Events between two online updates."""
    lists: int = 80_000
    """Past lists kept for the ranker at most, the newest ones."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)


def use_threads(count: int) -> None:
    """How many threads torch may take, in the whole process."""
    torch.set_num_threads(count)


class CollectingRanker:
    """Stands in until there is a ranker: asks for every feature and ranks by the encoder's score."""

    features = FEATURES
    initial_weights: F32 | None = None

    def __init__(self, candidates: int, source_weights: F32) -> None:
        self.candidates, self.source_weights = candidates, source_weights

    def score(self, features: F32, weights: F32 | None) -> F32:
        return features[..., 0]


class Training:
    """The two networks on their way through a log. `models.domain.protocol.Learner`.

    Args:
        items: what the catalogue declares.
        make_encoder, make_ranker, make_reader: the serving form of weights.
        report: told what happens, a line each.
    """

    def __init__(
        self,
        builder: LogBuilder,
        config: TrainingConfig,
        *,
        items: Sequence[Item],
        seed: int,
        make_encoder: Callable[[EncoderWeights], UserEncoder],
        make_ranker: Callable[[RankerWeights, int, F32], Ranker],
        make_reader: Callable[[FittedReader], ValueReader],
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.builder, self.config, self.items, self.report = builder, config, items, report
        self.make_encoder, self.make_ranker, self.make_reader = make_encoder, make_ranker, make_reader
        self.fitted_reader: FittedReader | None = None
        self.reader: ValueReader | None = None
        self.block = config.block
        log = builder.until(0)
        self.encoders = EncoderTrainer(
            config.encoder,
            items=log.items,
            kinds=len(log.kinds),
            text_dimension=log.item_text.shape[1],
            seed=seed,
        )
        self.rankers = RankerTrainer(config.ranker, seed)
        self.lists = ListBuffer(config.lists)
        self.reached, self.reachable = np.zeros(SOURCE_COUNT), 0.0
        self.asked = np.empty(0, np.int64)
        """Events before which a list was asked."""
        self.metrics: dict[str, float] = {}
        """Of the latest tenth, before it was trained on."""
        self.versions = 0
        self.fitted = self.fitted_lists = 0
        """Events and lists that the last whole fit saw."""

    # Learner ----------------------------------------------------------------------------------------------------------

    def fit(self, player: Player, end: int) -> None:
        """Play [0, end) and fit both networks on it; the player's pipeline serves them afterwards.

        Raises: TrainingError where there is too little to learn from.
        """
        if end < LEAST_EVENTS:
            raise TrainingError(f"{end} events are too few to train on; it takes at least {LEAST_EVENTS}")
        config, pipeline = self.config, player.pipeline
        options = player.options
        player.options = options._replace(learn=False, publish=False)
        marks = [int(share * end) for share in config.stages]
        for epochs, mark in zip(config.epochs, marks, strict=True):
            fitted_until = player.played
            for _ in player.play_to(mark):
                if len(player.examples) >= TAKEN_AT_ONCE:
                    self._take(player)
            self._fit_reader(player, mark, needed=mark == end)
            log = self.builder.until(mark)
            if 0 < fitted_until < mark:
                # A short log, or one whose items come and go, is known by heart after a few passes, and foresees less.
                self.encoders.choose_passes(log, fitted_until, min(mark, fitted_until + PASSES_EVENTS))
                self.report(f"passes that paid off: {self.encoders.passes or 'all'}")
            if 0 < fitted_until < mark < end:
                # On events that no fit has seen. Not before the last fit: the ranker learns from lists that had the
                # offset it is served with.
                since = max(fitted_until, mark - COLD_EVENTS)
                self.report(f"offset of new items: {self.encoders.choose_cold_offset(log, since, mark):g}")
            if self.encoders.passes is not None:
                # One that goes on has passed over the log's beginning again and again (models/README.md).
                self.encoders = self.encoders.anew(self.encoders.seed)
            # Nobody asks how many passes of the last fit pay off.
            fitted = self.encoders.fit(log, mark, epochs=epochs, looks=mark < end)
            self.report(f"encoder fitted on {mark:,} events in {fitted.seconds:.0f} s")
            self._take(player)
            self._serve(pipeline, CollectingRanker(config.candidates, self.worth()), log.item_text)
            player.options = player.options._replace(examples=True)
        player.options = options
        self._take(player)
        if not len(self.lists):
            raise TrainingError("no list that was asked held what was chosen next: nothing to train a ranker on")
        self._fit_ranker(self.lists.lists, end)
        self.fitted, self.fitted_lists = end, len(self.lists)
        self._serve(pipeline, self._ranker(), self.builder.until(end).item_text)

    def learn(self, player: Player, start: int, end: int) -> None:
        """Both networks learn from the block [start, end), which was scored; the pipeline serves them afterwards."""
        self._read(player, start, end)
        log = self.builder.until(end)
        self.encoders.update(log, start, end)
        self._take(player)
        if len(self.lists):
            lists = self.lists.lists
            seen = lists.before(start)
            self.rankers.update(lists, np.arange(len(seen), len(lists.at)), seen)
        self._serve(player.pipeline, self._ranker(), log.item_text)

    def _fit_ranker(self, lists: Lists, end: int) -> None:
        """Choose on the latest tenth how long to train, then fit on all lists for as long."""
        started, latest = time.monotonic(), int((1.0 - self.config.validation) * end)
        foreseen = self.rankers.fit_latest(lists, len(lists.before(latest)))
        if foreseen is not None:
            found = len(foreseen.places) / max(1, int(np.sum(self.asked >= latest)))
            self.metrics |= {
                "validation_ndcg_at_10": mean_ndcg(foreseen.places) * found,
                "validation_hr_at_10": hit_rate(foreseen.places) * found,
                "validation_recall": found,
            }
            self.report(
                f"ranker after {foreseen.updates:,} updates: nDCG@10 {self.metrics['validation_ndcg_at_10']:.4f} on "
                f"the latest tenth, where {found:.1%} of what was chosen is among the candidates"
            )
        self.report(f"ranker fitted on {len(lists.at):,} lists in {time.monotonic() - started:.0f} s")

    def _fit_reader(self, player: Player, mark: int, *, needed: bool) -> None:
        """Fit the head that reads values from texts on what was played, and fill the gaps of what was played with it.

        Args:
            needed: False fits it only where an event with a text lacks its value.
        """
        events, started = player.events[:mark], time.monotonic()
        if not needed and not any(isinstance(e, Interaction) and e.text and e.value is None for e in events):
            return
        fitted = fit_reader(events, player.texts, player.options, self.items)
        if fitted is not None:
            self.fitted_reader, self.reader = fitted, self.make_reader(fitted)
            of_text, of_past = (
                fitted.weights.metrics[name] * player.options.value_scale for name in ("text_rmse", "state_rmse")
            )
            self.metrics |= {"value_rmse_from_text": of_text, "value_rmse_from_past": of_past}
            self.report(
                f"values read from texts: RMSE {of_text:.3f} on the latest tenth of reviews, from the past alone "
                f"{of_past:.3f} ({time.monotonic() - started:.0f} s)"
            )
        self._read(player, 0, mark)

    def _read(self, player: Player, start: int, end: int) -> None:
        if self.reader is None:
            return
        for at in range(start, end, READ_AT_ONCE):
            events = enumerate(player.events[at : min(at + READ_AT_ONCE, end)], at)
            self.builder.fill(read_values(self.reader, events, player.texts))

    # parts ------------------------------------------------------------------------------------------------------------

    def _ranker(self) -> Ranker:
        return self.make_ranker(self.rankers.weights(), self.config.candidates, self.worth())

    def worth(self) -> F32:
        """float32[SOURCE_COUNT], in which share of the lists each source came to what was chosen."""
        return source_worth(self.reached, self.reachable)

    def state(self) -> TrainingState:
        """What a trainer goes on from."""
        return TrainingState.of(
            self.encoders,
            self.rankers,
            item_ids=tuple(self.builder.item_ids),
            kinds=self.builder.kinds,
            candidates=self.config.candidates,
            reached=self.reached,
            reachable=self.reachable,
            events=self.fitted,
            lists=self.fitted_lists,
            until_ms=newest_time(self.builder.until(self.fitted).time_ms),
        )

    def _serve(self, pipeline: Pipeline, ranker: Ranker, item_text: F32) -> None:
        weights = self.encoders.served()
        self.versions += 1
        pipeline.use(self.make_encoder(weights), ranker, f"training-{self.versions}", self.reader)
        catalogue = pipeline.catalogue
        vectors = weights.item_vectors(item_text)
        cold = weights.item_vectors(np.zeros((1, item_text.shape[1]), np.float32), np.array([-1]))[0]
        catalogue.served.placeholder = lambda _: cold
        catalogue.set_vectors(np.arange(len(vectors), dtype=np.int32), vectors)

    def _take(self, player: Player) -> None:
        """Take over the examples that were played since."""
        taken, player.examples = player.examples, []
        for one in taken:
            self.reached += one.reached
            self.reachable += one.reachable
            self.lists.append(one)
        self.asked = np.concatenate([self.asked, *(one.asked for one in taken)])
