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
from models.learning.recent_rounds import RecentRounds, Window
from models.learning.rescoring import Histories, ServedLists, histories_of, served_lists
from models.learning.rounds import Action, Champion, Observed, Round, Scene
from models.learning.training_state import TrainingState
from models.learning.user_shares import UserShares

F64 = npt.NDArray[np.float64]


class OnlineTrainer:
    """Champion, challenger, and all that they learn from. Deterministic by seed and by the order of records.

    Args:
        version: served now.
        state: what training goes on from, of that version; None where there is nothing: a first model is fitted.
        kinds: those that the first model is to know, the empty name first; others keep their own.
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
    ) -> None:
        self.config = config = config or OnlineConfig()
        self.options, self.serving, self.seed = options, serving, seed
        ids = () if state is None else state.item_ids
        self.log = FeedbackLog(kinds if state is None else state.kinds, options, text_dimension, ids)
        self.lists = ListBuffer(config.lists)
        self.champion = self._champion(version, state)
        self.former: Champion | None = None
        """Champion before, while the new one is watched."""
        self.challenger: Challenger | None = None if state is None else self._new_challenger(state)
        self.evidence, self.watch = Evidence(config.gate.memory), Evidence(config.gate.memory)
        self.shares = UserShares(config.user_limit, config.user_span)
        self.recent = RecentRounds(config.ahead)
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
            self.recent.clear()  # it holds what he did, and numbers of the log as it was
        self._pending = [
            record for record in self._pending if record.user_id != user_id or record.event_time_ms > until_ms
        ]
        self._pending_ids = {event_hash(record.event_id) for record in self._pending}
        self.evidence.forget(user_id)
        self.watch.forget(user_id)

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
            self.recent.clear()  # the log's events have other numbers now
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
        self.recent.seen()

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
            "windows": self.recent.write(directory),
        }
        known = {name: model for name, model in models.items() if model is not None}
        write_whole(
            directory,
            self._saves,
            lambda into: write_round(into, state, arrays, known, self.challenger),
            [*(name for name, _ in self._saved_lists.files), *self.recent.files],
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
    ) -> OnlineTrainer | None:
        """The trainer that was saved last; records after its `position` are to be handed in again.

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
        saved.read_recent(trainer.recent, trainer._histories)
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
        return Round(self.rounds, "first", None, None, len(records), len(bad), served, nan, nan, nan, 0.0, seconds)

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
        places, features = Contender(state, self.serving).rank(log, *scene)
        own, as_served = places[asked], _served_places([records[at] for at in asked])
        champion = self._places(self.champion, scene, asked, as_served)
        comparable = challenger.windows > 0 and challenger.unsettled == 0
        if comparable or self.champion.contender is None:
            self._weigh(users, champion, own)
        if self.former is not None:
            self.watch.add(users, self._places(self.former, scene, asked, as_served), champion)
        action, decision = self._decide()
        evaluated = time.monotonic()
        if action == "promote":
            self._candidate = state
        elif action == "discard":
            self._restart()
        lists = served._replace(features=features).lists()
        loss = math.nan
        # A challenger that begins anew begins with this window: described by its former self, which had not seen it.
        if self.challenger is not None and action != "rollback":
            ranker = self.challenger.rankers.tensors()
            self.recent.add(
                Window(self.rounds, scene, start, len(self.log), np.array(asked, np.int64), champion, ranker)
            )
            self.challenger.count(records)
            loss = self.challenger.learn(log.log, start, records, lists)
            if action != "promote" and self._due_for_refit(self.challenger):
                renewed = self._renew(self.challenger)
                action, decision = self._decide()
                if action == "promote":
                    self._candidate = renewed
                elif action == "discard":
                    self._restart()
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
            loss=loss,
            evaluation_seconds=evaluated - started,
            training_seconds=time.monotonic() - evaluated,
        )

    def _due_for_refit(self, challenger: Challenger) -> bool:
        """Whether the log has grown enough, and the challenger been judged: on a short log it would never be, since the
        log grows by a quarter before there is evidence.

        Not on a log that tells less than the last fit saw, such as a trainer's that came after its model: what it was
        taught before would be forgotten.
        """
        grown = challenger.learned >= self.config.refit_growth * challenger.events
        whole = len(self.log) >= min(challenger.events, self.log.capacity)
        return grown and whole and len(self.evidence) >= self.config.gate.least_records

    def _renew(self, challenger: Challenger) -> TrainingState:
        """Fit the challenger anew on all but the newest rounds, and let it meet these one by one, as if they came now.

        Evaluated before it learns from each, it has its evidence at once: nothing of it has seen them, since the
        encoder begins from nothing and the ranker from what it was before them.

        Returns: it as it was evaluated last.
        """
        config, whole, windows = self.config, self.log.log, list(self.recent)
        self.evidence.clear()  # it speaks of another one
        challenger.put_back(windows[0].ranker)
        challenger.refit(
            whole,
            windows[0].start,
            sum(len(window.scene.served.row) for window in windows),
            validation=config.validation,
            settling=min(config.settling, len(whole) // 4),
            seed=self.seed + self.rounds,
        )
        for window in windows:
            scene, state = window.scene, challenger.state(self.log)
            places, features = Contender(state, self.serving).rank(self.log, *scene)
            if challenger.unsettled == 0 and window.champion is not None:
                self._weigh(window.users, window.champion, places[window.asked])
            lists = scene.served._replace(features=features).lists()
            challenger.learn(whole.until(window.end), window.start, scene.records, lists)
        challenger.settled(len(whole))
        return state

    def _weigh(self, users: Sequence[str], champion: F64, challenger: F64) -> None:
        """Places of both on some records. Of what was served only the places in the list are known: the challenger's
        count as far, where that is what it is compared with."""
        self.evidence.add(users, champion, within_list(challenger) if self.champion.contender is None else challenger)

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
        self.recent.seen()

    def _restart(self) -> None:
        """A challenger that goes on from the champion; without one, a first model is fitted again."""
        state = self.champion.state
        self.challenger = None if state is None else self._new_challenger(state)
        self.evidence.clear()

    def _champion(self, version: str, state: TrainingState | None) -> Champion:
        if state is None:
            return Champion(version, None, None)
        self.log.number_items(state.item_ids)
        state = state.renumbered(self.log.item_ids)
        return Champion(version, state, Contender(state, self.serving))

    def _new_challenger(self, state: TrainingState) -> Challenger:
        return Challenger(state, self.config.encoder, self.config.ranker, self.lists, self.seed)


def _served_places(records: Sequence[Feedback]) -> F64:
    places = [0 if record.candidates is None else record.candidates.place for record in records]
    found = np.array(places, np.float64)
    return within_list(np.where(found > 0, found, np.inf))


def _ndcg(places: F64) -> float:
    return float(gains(places).mean()) if len(places) else math.nan
