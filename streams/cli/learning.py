"""Composition of the trainer: the learner of `models.learning` over bundles, with a replay buffer on disk.

With `streams.cli.training` the only module that loads torch, and only when it is asked to train.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.learned import build_learned, open_towers
from export.parity import check_parity
from export.ranker_graph import ranker_graph
from models.domain.batch import PipelineOptions
from models.domain.errors import SettingsError
from models.domain.features import FEATURES, PRESENCE
from models.domain.feedback import Feedback, Forgotten, Record
from models.domain.ports import TextEncoder
from models.encoders.manifest import read_files, read_manifest
from models.learning.checkpoint import OtherReleaseError
from models.learning.fit_process import FitProcess
from models.learning.online import OnlineTrainer
from models.learning.online_config import OnlineConfig
from models.learning.replay_buffer import ReplayBuffer
from models.learning.rounds import Observed
from models.learning.rounds import Round as LearnerRound
from models.learning.training import use_threads
from models.learning.training_state import TrainingState, TrainingStateError
from streams.cli.training import serving
from streams.learning_port import Round

if TYPE_CHECKING:
    from typing import IO

log = logging.getLogger(__name__)


class BundleLearner:
    """`streams.learning_port.OnlineLearner`.

    Args:
        directory: of this trainer alone.
        text_encoder: the bundles' own: all of a deployment have the same one.
        text_version: its name, of which another text model would have another.
    Raises: SettingsError when another process has the directory; ReplayBufferError, CheckpointError.
    """

    def __init__(
        self,
        directory: Path,
        options: PipelineOptions,
        text_encoder: TextEncoder,
        text_version: str,
        *,
        config: OnlineConfig,
        replay_bytes: int,
        seed: int = 0,
    ) -> None:
        use_threads(1)  # both networks are small: a second thread gains a fifth and takes a core
        self.options, self.text_encoder, self.config, self.seed = options, text_encoder, config, seed
        self._text_version = text_version
        self._lock = _locked(directory)
        self._rounds = directory / "rounds"
        self._fits = FitProcess(directory / "fit")
        self.buffer = ReplayBuffer(directory / "replay", capacity_bytes=replay_bytes)
        for name in self.buffer.damaged:
            log.warning("%s of the replay buffer was damaged and is set aside", name)
        self.bundle: Path
        self._fresh: list[Feedback] = []
        self._offsets: dict[int, int] = {}
        self._outcomes: Counter[str] = Counter()
        self._last: LearnerRound | None = None
        self._trainer = self._saved()
        if self._trainer is not None:
            # What is on disk and was in no round that ended: a kill came before.
            for number, records in self.buffer.after(self._trainer.position):
                self._observe(records, number)

    def _saved(self) -> OnlineTrainer | None:
        """What another release saved is set aside: the served bundle and the replay buffer tell all that is needed."""
        try:
            return OnlineTrainer.load(
                self._rounds,
                options=self.options,
                serving=serving(),
                config=self.config,
                seed=self.seed,
                fits=self._fits,
            )
        except OtherReleaseError as error:
            aside = self._rounds.with_name(f"{self._rounds.name}-of-another-release")
            log.warning(
                "%s; set aside as %s: learning goes on from the served model and the replay buffer", error, aside
            )
            shutil.rmtree(aside, ignore_errors=True)
            self._rounds.rename(aside)
            return None

    @property
    def trainer(self) -> OnlineTrainer:
        assert self._trainer is not None, "`adopt` comes first"
        return self._trainer

    def adopt(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        self.bundle = bundle
        if self._trainer is not None and self._trainer.champion.version == manifest.version:
            return
        state: TrainingState | None = None
        if manifest.training is not None:
            try:
                state = TrainingState.decode(read_files(bundle, manifest, [manifest.training])[manifest.training])
            except TrainingStateError as error:
                log.warning("%s is compared by what it served, and not learned on from: %s", manifest.version, error)
        if self._trainer is not None:
            self._trainer.adopt(manifest.version, state)
            self._trainer.save(self._rounds)
            return
        self._trainer = OnlineTrainer(
            manifest.version,
            state,
            kinds=manifest.kinds,
            text_dimension=self.text_encoder.dimension,
            options=self.options,
            serving=serving(),
            config=self.config,
            seed=self.seed,
            fits=self._fits,
        )
        for number, records in self.buffer.after(0):
            self._observe(records, number)

    def declare(self, item_ids: Sequence[str], texts: Sequence[str]) -> None:
        # A restart reads the whole catalogue again; what the last save holds of it is not encoded anew.
        marks = [self._mark(text) for text in texts]
        new = [at for at, item_id in enumerate(item_ids) if not self.trainer.log.has_text(item_id, marks[at])]
        if new:
            found = self.text_encoder.encode_many([texts[at] for at in new])
            self.trainer.declare([item_ids[at] for at in new], found, [marks[at] for at in new])

    def _mark(self, text: str) -> int:
        """63 bits of what an embedding is made of."""
        data = f"{self._text_version}\x00{text}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1

    def append(self, records: Sequence[Record], offsets: Mapping[int, int]) -> None:
        for record in records:
            if isinstance(record, Forgotten):
                self._keep()
                self.buffer.forget(record.user_id, record.event_time_ms)
                self.trainer.forget(record.user_id, record.event_time_ms)
            else:
                self._fresh.append(record)
        self._offsets |= offsets

    def flush(self) -> Mapping[str, int]:
        self._keep()
        found, self._outcomes = self._outcomes, Counter()
        return found

    def _keep(self) -> None:
        if not self._fresh and not self._offsets:
            return
        number = self.buffer.append(self._fresh, self._offsets)
        self._outcomes.update(self._observe(self._fresh, number)._asdict())
        self._fresh, self._offsets = [], {}

    def _observe(self, records: Sequence[Feedback], number: int) -> Observed:
        texts = list(dict.fromkeys(record.text for record in records if record.text))
        embeddings = dict(zip(texts, self.text_encoder.encode_many(texts), strict=True)) if texts else {}
        return self.trainer.observe(records, embeddings, number)

    @property
    def offsets(self) -> Mapping[int, int]:
        return self.buffer.offsets

    @property
    def waiting(self) -> int:
        return self.trainer.pending

    @property
    def needed(self) -> int:
        return self.config.first_events if self.trainer.challenger is None else self.config.window

    @property
    def buffered(self) -> tuple[int, int]:
        return len(self.buffer), self.buffer.bytes

    def round(self) -> Round:
        done = self._last = self.trainer.round()
        self.trainer.save(self._rounds)
        reason = "" if done.decision is None else done.decision.reason
        return Round(done.action, reason, figures_of(done), done.fit)

    def write(self, out: Path) -> Path:
        done = self._last
        if done is None or done.model is None:
            raise ValueError("the last round promoted nothing")
        state = done.model
        found = check_parity(state.encoder, *open_towers(state.encoder, state.item_ids, state.kinds), state.item_ids)
        log.info("parity of torch and ONNX", extra={"difference": found.worst, "top_10_overlap": found.top_overlap})
        parent = read_manifest(self.bundle)
        head = parent.review_value
        return build_learned(
            out,
            parent=parent.version,
            text_model=self.bundle,
            weights=state.encoder,
            item_ids=state.item_ids,
            ranker_graph=ranker_graph(state.ranker_weights(), PRESENCE),
            features=FEATURES,
            kinds=state.kinds,
            candidates=state.candidates,
            source_weights=state.worth().tolist(),
            value_scale=self.options.value_scale,
            review_value=None if head is None else read_files(self.bundle, parent, [head])[head],
            training=state.encode(),
            metrics=figures_of(done),
        )

    def promoted(self, bundle: Path) -> None:
        self.trainer.promoted(read_manifest(bundle).version)
        self.bundle = bundle
        self.trainer.save(self._rounds)

    def rolled_back(self) -> None:
        self.trainer.rolled_back()
        self.trainer.save(self._rounds)

    def close(self) -> None:
        self._fits.abandon()
        self._lock.close()


def figures_of(done: LearnerRound) -> dict[str, float]:
    """A round's figures by name, those that are numbers."""
    figures = {
        "records": float(done.records),
        "unreadable_records": float(done.unreadable),
        "served_ndcg_at_10": done.served_ndcg,
        "champion_ndcg_at_10": done.champion_ndcg,
        "challenger_ndcg_at_10": done.challenger_ndcg,
        "rival_ndcg_at_10": done.rival_ndcg,
        "encoder_loss": done.loss,
        "evaluation_seconds": done.evaluation_seconds,
        "training_seconds": done.training_seconds,
    }
    if done.decision is not None:
        found = done.decision
        figures |= {
            "margin": found.difference,
            "margin_low": found.low,
            "margin_high": found.high,
            "compared": float(found.records),
        }
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _locked(directory: Path) -> IO[str]:
    """Hold the directory for this process. Raises: SettingsError when another one does."""
    directory.mkdir(parents=True, exist_ok=True)
    held = (directory / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise SettingsError(f"another trainer works in {directory}: give this one a `data_dir` of its own") from error
    return held
