"""Learning while the product runs, without Kafka: records in, rounds of evaluating and training, a model to publish.

A round compares challenger and champion on the records since the last one, before either has learned from them, and
decides by a written rule; then the challenger learns from them. What is published is what was evaluated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.domain.batch import PipelineOptions
from models.domain.feedback import Feedback
from models.domain.ports import F32
from models.domain.state import event_hash
from models.learning.contenders import Challenger, Contender, Serving
from models.learning.feedback_log import FeedbackLog
from models.learning.first_fit import fit_first
from models.learning.gate import Decision, Evidence, gains, within_list
from models.learning.lists import ListBuffer
from models.learning.online_checkpoint import SavedLists, SavedRound, newest, write_round, write_whole
from models.learning.online_config import OnlineConfig
from models.learning.recent_rounds import Window
from models.learning.rescoring import Histories, ServedLists, histories_of, served_lists
from models.learning.rival import Rival
from models.learning.rounds import Action, Champion, FitNews, Observed, Round, Scene
from models.learning.succession import Succession
from models.learning.training_state import TrainingState
from models.learning.user_shares import UserShares
from models.learning.whole_fit import Fits, FitsInline

F64 = npt.NDArray[np.float64]


class OnlineTrainer:
    """Champion, challenger, and all that they learn from. Deterministic by seed and by the order of records.

    Args:
        version: served now.
        state: what training goes on from, of that version; None where there is nothing: a first model is fitted.
        kinds: those that the first model is to know, the empty name first; others keep their own.
        fits: where whole fits are done; None: here and at once.
    """

    def __init__(
        self,
        version: str,
        state: TrainingState | None,
        *,
        kinds: Sequence[str],
        text_dimension: int,
        options: PipelineOptions,
        serving: Serving,
        config: OnlineConfig | None = None,
        seed: int = 0,
        fits: Fits | None = None,
    ) -> None:
        self.config = config = config or OnlineConfig()
        self.options, self.serving, self.seed = options, serving, seed
        ids = () if state is None else state.item_ids
        self.log = FeedbackLog(kinds if state is None else state.kinds, options, text_dimension, ids)
        self.lists = ListBuffer(config.lists)
        self.champion = self._champion(version, state)
        self.former: Champion | None = None
        """Champion before, while the new one is watched."""
        self.challenger: Challenger | None = None if state is None else self._new_challenger(state, self.lists)
        self.evidence, self.watch = Evidence(config.gate.memory), Evidence(config.gate.memory)
        self.succession = Succession(config, fits or FitsInline(), serving, self.lists, self._new_challenger, seed)
        self.shares = UserShares(config.user_limit, config.user_span)
        self.rounds = 0
        self.position = 0
        """Of the records that the rounds so far have taken in, in whatever counts them: whoever loads a save hands in
        again what came later."""
        self._observed = 0
        self._settled_shares: Sequence[str] = ()
        """As the last round left them: what came later comes again."""
        self._saved_lists, self._saves = SavedLists(), 0
        self._pending: list[Feedback] = []
        self._pending_ids: set[int] = set()
        self._texts: dict[str, F32] = {}
        self._candidate: TrainingState | None = None

    # records ----------------------------------------------------------------------------------------------------------

    def declare(self, item_ids: Sequence[str], item_text: F32, marks: Sequence[int] | None = None) -> None:
        """Items of the catalogue; see `FeedbackLog.declare`."""
        self.log.declare(item_ids, item_text, marks)

    def observe(self, records: Sequence[Feedback], texts: Mapping[str, F32], position: int = 0) -> Observed:
        """Take records for the next round.

        Args:
            texts: embedding of each text that they carry.
            position: of the last of them, such as a replay buffer's segment; see `position`.
        """
        self._observed = max(position, self._observed)
        taken = known = refused = 0
        old: list[Feedback] = []
        until_ms = -1 if self.champion.state is None or self.rounds else self.champion.state.until_ms
        for record in records:
            hashed = event_hash(record.event_id)
            if hashed in self._pending_ids or self.log.knows(record):
                known += 1
            elif not self.shares.admit(record.user_id):
                self.log.refuse(record)
                refused += 1
            elif record.event_time_ms <= until_ms:
                old.append(record)
                self._pending_ids.add(hashed)
            else:
                taken += 1
                self._pending.append(record)
                self._pending_ids.add(hashed)
                if record.text and (embedding := texts.get(record.text)) is not None:
                    self._texts[record.text] = embedding
        if old:
            self.log.add(old, texts)
            self._pending_ids -= {event_hash(record.event_id) for record in old}
        return Observed(taken, known, refused, len(old))

    def forget(self, user_id: str, until_ms: int) -> None:
        """Learn from nothing that the user did at or before that time. What was learned already stays."""
        if self.log.forget(user_id, until_ms):
            self.succession.renumbered()  # what a fit that goes on was given holds what he did
        self._pending = [
            record for record in self._pending if record.user_id != user_id or record.event_time_ms > until_ms
        ]
        self._pending_ids = {event_hash(record.event_id) for record in self._pending}
        self.evidence.forget(user_id)
        self.watch.forget(user_id)
        self.succession.forget(user_id)

    @property
    def pending(self) -> int:
        """Records that wait for the next round."""
        return len(self._pending)

    @property
    def due(self) -> bool:
        """Whether there are enough for a round."""
        return len(self._pending) >= (self.config.first_events if self.challenger is None else self.config.window)

    # rounds -----------------------------------------------------------------------------------------------------------

    def round(self) -> Round:
        """Evaluate, decide, learn. With fewer records than are `due` too, for a stream that is slow."""
        started, self._candidate = time.monotonic(), None
        records, texts, log = self._pending, self._texts, self.log
        self._pending, self._pending_ids, self._texts = [], set(), {}
        if log.trim():
            self.succession.renumbered()
        start = log.add(records, texts)
        served, bad = served_lists(records, log.number_items)
        log.number_items([past[0] for record in records for past in record.history])
        self.rounds += 1
        self.position, self._settled_shares = self._observed, self.shares.state()
        if self.challenger is None:
            found = self._first(records, start, bad, started)
        else:
            found = self._compare(records, start, served, bad, started)
        return found

    def promoted(self, version: str) -> None:
        """The model of the last round is published and champion; the former one is watched against it."""
        if self._candidate is None:
            raise ValueError("the last round promoted nothing")
        self._succeed(version, self._candidate)
        self._candidate = None

    def adopt(self, version: str, state: TrainingState | None) -> None:
        """Somebody else made another version champion: it is watched too, and the challenger begins anew from it.

        Args:
            state: what training goes on from; without it, or where it knows other kinds or other texts than the log,
                the champion is judged by what it serves, and the challenger stays who it is.
        """
        fits = (
            state is not None
            and state.kinds == self.log.kinds
            and len(state.encoder.projection) == self.log.log.item_text.shape[1]
        )
        self._succeed(version, state if fits else None)
        if fits:
            self._restart()

    def rolled_back(self) -> None:
        """The former champion serves again; the challenger begins anew from it."""
        if self.former is None:
            raise ValueError("there is no former champion")
        self.champion, self.former = self.former, None
        self._restart()
        self.watch.clear()
        self.succession.meets_another_champion()

    # keeping ----------------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Keep all as the last round left it, and what was forgotten since; records that wait are not kept.

        Raises: OSError.
        """
        self._saves += 1
        self._saved_lists.write(directory, self.lists, self._saves)
        arrays, names = self.log.state()
        champion, former = self.champion, self.former
        models = {"champion": champion.state, "former": None if former is None else former.state}
        state = {
            "version": champion.version,
            "former_version": None if former is None else former.version,
            "kinds": self.log.kinds,
            "names": names,
            "evidence": self.evidence.state(),
            "watch": self.watch.state(),
            "shares": self._settled_shares,
            "rounds": self.rounds,
            "position": self.position,
            "saves": self._saves,
            "lists": len(self.lists),
            "list_files": self._saved_lists.files,
            "lists_appended": self._saved_lists.appended,
        }
        known = {name: model for name, model in models.items() if model is not None}
        write_whole(
            directory,
            self._saves,
            lambda into: write_round(into, state, arrays, known, self.challenger),
            [name for name, _ in self._saved_lists.files],
        )

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        options: PipelineOptions,
        serving: Serving,
        config: OnlineConfig | None = None,
        seed: int = 0,
        fits: Fits | None = None,
    ) -> OnlineTrainer | None:
        """The trainer that was saved last; records after its `position` are to be handed in again, and a whole fit that
        went on begins anew.

        Returns: None where nothing was saved.
        Raises: CheckpointError; OtherReleaseError.
        """
        where = newest(directory)
        if where is None:
            return None
        saved = SavedRound(where)
        state = saved.state
        trainer = cls(
            state["version"],
            saved.model("champion"),
            kinds=state["kinds"],
            text_dimension=saved.log["item_text"].shape[1],
            options=options,
            serving=serving,
            config=config,
            seed=seed,
            fits=fits,
        )
        config = trainer.config
        trainer.log = FeedbackLog.restored(state["kinds"], options, saved.log, state["names"])
        files = [(name, rows) for name, rows in state["list_files"]]
        trainer._saved_lists, trainer._saves = SavedLists(files, state["lists_appended"]), state["saves"]
        trainer._saved_lists.read(directory, trainer.lists, state["lists"])
        trainer.challenger = saved.challenger(trainer.lists, config)
        if state["former_version"] is not None:
            trainer.former = trainer._champion(state["former_version"], saved.model("former"))
        trainer.evidence = Evidence.restored(config.gate.memory, state["evidence"])
        trainer.watch = Evidence.restored(config.gate.memory, state["watch"])
        trainer.shares = UserShares.restored(config.user_limit, config.user_span, state["shares"])
        trainer._settled_shares = state["shares"]
        trainer.rounds = state["rounds"]
        trainer.position = trainer._observed = state["position"]
        return trainer

    # parts ------------------------------------------------------------------------------------------------------------

    def _first(self, records: Sequence[Feedback], start: int, bad: Sequence[int], started: float) -> Round:
        self.challenger = fit_first(self.log, records, start, self.lists, self.config, self.seed)
        nan = math.nan
        seconds = time.monotonic() - started
        served = _ndcg(_served_places([r for at, r in enumerate(records) if at not in set(bad)]))
        return Round(
            self.rounds, "first", None, None, len(records), len(bad), served, nan, nan, nan, "", nan, 0.0, seconds
        )

    def _compare(
        self, records: Sequence[Feedback], start: int, served: ServedLists, bad: Sequence[int], started: float
    ) -> Round:
        challenger = self.challenger
        assert challenger is not None
        unreadable = set(bad)
        asked = [at for at, r in enumerate(records) if r.candidates is not None and at not in unreadable]
        users = [records[at].user_id for at in asked]
        log = self.log
        state = challenger.state(log)
        scene = Scene(records, served, self._histories(records))
        rival = self.succession.contestant
        places, features = Contender(state, self.serving).rank(log, *scene)
        own, as_served = places[asked], _served_places([records[at] for at in asked])
        champion = self._places(self.champion, scene, asked, as_served)
        if challenger.windows > 0 or self.champion.contender is None:
            self._weigh(self.evidence, users, champion, own)
        fitted_own, fitted_features = np.empty(0), features
        if rival is not None:
            fitted, fitted_features = rival.rank(log, self.serving, scene)
            fitted_own = fitted[asked]
            rival.contest.add(users, own, fitted_own)
            self._weigh(rival.evidence, users, champion, fitted_own)
        if self.former is not None:
            self.watch.add(users, self._places(self.former, scene, asked, as_served), champion)
        action, decision = self._decide()
        evaluated = time.monotonic()
        if action == "promote":
            self._candidate = state
        elif action == "discard":
            self._restart()
        loss = math.nan
        news: FitNews = ""
        # A challenger that begins anew begins with this window: described by its former self, which had not seen it.
        if self.challenger is not None and action != "rollback":
            window = Window(scene, start, len(log))
            self.challenger.count(records)
            loss = self.challenger.learn(log.log, start, records, served._replace(features=features).lists())
            if rival is not None:
                rival.challenger.count(records)
                rival.learn(log, window, fitted_features)
            judged = len(self.evidence) >= self.config.gate.least_records
            news = self.succession.attend(self.challenger, log, window, judged=judged, number=self.rounds)
            if news == "won":
                self._hand_over(self.succession.take_winner())
        return Round(
            number=self.rounds,
            action=action,
            decision=decision,
            model=self._candidate,
            records=len(records),
            unreadable=len(bad),
            served_ndcg=_ndcg(as_served),
            champion_ndcg=_ndcg(champion),
            challenger_ndcg=_ndcg(own),
            rival_ndcg=_ndcg(fitted_own),
            fit=news,
            loss=loss,
            evaluation_seconds=evaluated - started,
            training_seconds=time.monotonic() - evaluated,
        )

    def _hand_over(self, rival: Rival) -> None:
        """The rival is challenger; what it was compared with the champion by counts."""
        if (own := rival.own_lists()) is not None:
            self.lists.extend(own)
        rival.challenger.lists = self.lists
        self.challenger, self.evidence = rival.challenger, rival.evidence

    def _weigh(self, evidence: Evidence, users: Sequence[str], champion: F64, challenger: F64) -> None:
        """Places of both on some records. Of what was served only the places in the list are known: the challenger's
        count as far, where that is what it is compared with."""
        evidence.add(users, champion, within_list(challenger) if self.champion.contender is None else challenger)

    def _decide(self) -> tuple[Action, Decision]:
        config, seed = self.config, self.seed + self.rounds
        if self.former is not None:
            watched = self.watch.failed(config.watch, config.gate, seed)
            if watched.verdict == "discard":
                return "rollback", watched
        decision = self.evidence.judge(config.gate, seed)
        return decision.verdict, decision

    def _places(self, model: Champion, scene: Scene, asked: Sequence[int], as_served: F64) -> F64:
        """What was served stands for a champion that cannot be run here: a bundle without training weights."""
        if model.contender is None:
            return as_served
        return model.contender.rank(self.log, *scene)[0][asked]

    def _histories(self, records: Sequence[Feedback]) -> list[Histories]:
        return histories_of(records, self.options, self.log.number_items, self.log.past_text)

    def _succeed(self, version: str, state: TrainingState | None) -> None:
        self.former = self.champion if self.champion.contender is not None else None
        self.champion = self._champion(version, state)
        self.evidence.clear()
        self.watch.clear()
        self.succession.meets_another_champion()

    def _restart(self) -> None:
        """A challenger that goes on from the champion; without one, a first model is fitted again."""
        state = self.champion.state
        self.challenger = None if state is None else self._new_challenger(state, self.lists)
        self.evidence.clear()
        self.succession.meets_another_challenger()

    def _champion(self, version: str, state: TrainingState | None) -> Champion:
        if state is None:
            return Champion(version, None, None)
        self.log.number_items(state.item_ids)
        state = state.renumbered(self.log.item_ids)
        return Champion(version, state, Contender(state, self.serving))

    def _new_challenger(self, state: TrainingState, lists: ListBuffer) -> Challenger:
        return Challenger(state, self.config.encoder, self.config.ranker, lists, self.seed)


def _served_places(records: Sequence[Feedback]) -> F64:
    places = [0 if record.candidates is None else record.candidates.place for record in records]
    found = np.array(places, np.float64)
    return within_list(np.where(found > 0, found, np.inf))


def _ndcg(places: F64) -> float:
    return float(gains(places).mean()) if len(places) else math.nan
