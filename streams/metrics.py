"""The Prometheus metrics of a worker, in seconds and bytes. It must not know who measures, nor serve HTTP.

Methods take a whole chunk's totals, since a counter per event costs more than the event's share of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

from prometheus_client import Counter

from models.domain.batch import ScoredList
from streams.metric_base import MetricSet

STAGES = (
    "decode",
    "state_load",
    "fold",
    "text_encode",
    "user_encode",
    "retrieve",
    "rank",
    "delta",
    "tell",
    "upsert",
    "publish",
)
# A chunk's stage takes from tens of microseconds (decode of one event) to seconds (a store that is away).
STAGE_BUCKETS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
# The promise is a p99 under 100 ms: buckets are dense around it, so that the quantile is worth reading.
EVENT_TO_LIST_BUCKETS = (
    0.002,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.08,
    0.1,
    0.125,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
    5.0,
    15.0,
    60.0,
)
# A switch's pause is to be milliseconds; its preparation takes from a second to the time that a catalogue's texts take.
SWITCH_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1800.0,
)
# Version labels of the quality counters at a time. A version's figures reach Prometheus within a scrape; twenty of them
# are an hour's at a promotion every three minutes.
ONLINE_VERSIONS = 20
# Scores are logits: only their differences mean something. A state has some hundred numbers of one at most.
SPREAD_BUCKETS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
NORM_BUCKETS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 25.0, 50.0)
CHUNK_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)

OnlineUser = Literal["cold", "warm"]


class Metrics(MetricSet):
    """Everything the worker counts. Label values come from closed sets (declared kinds, topics), never from a user."""

    def __init__(self) -> None:
        super().__init__()
        self._events = self._counter("events", "Events consumed, by type and what became of them.", "type", "outcome")
        self._dead_letters = self._counter("dead_letters", "Messages that went to the dead letters.", "reason")
        self._chunk = self._histogram("chunk_events", "Events processed together.", CHUNK_BUCKETS)
        self._stage = self._histogram("stage_seconds", "Time a chunk spent in a stage.", STAGE_BUCKETS, "stage")
        self._event_to_list = self._histogram(
            "event_to_list_seconds",
            "From an event's Kafka timestamp to the broker's acknowledgement of its list.",
            EVENT_TO_LIST_BUCKETS,
        )
        self._lists = self._counter("lists", "Lists published, by cause: event, request, replay.", "cause")
        self._published_bytes = self._counter("published_bytes", "Bytes of values published.", "topic")
        self._superseded = self._counter("superseded", "Lists not published since a newer one of the user was.")
        self._forwarded = self._counter("forwarded", "Events sent on to the partition of their user.")
        self._items = self._counter("items", "Catalogue messages: encoded, unchanged, removed, placeholder.", "outcome")
        self._filled = self._counter(
            "filled_items",
            "Vectors made for a version that is not served yet, by its items' texts: encoded, reused.",
            "outcome",
        )
        self._deltas = self._counter("deltas", "Deltas of item statistics: sent, applied, rejected.", "outcome")
        self._delta_bytes = self._counter("delta_bytes", "Bytes of deltas of item statistics.", "direction")
        self._feedback = self._counter("feedback", "Feedback records for training: sent, too_large.", "outcome")
        self._cache = self._counter("cache_lookups", "Look-ups by cache (user, text): hit, miss.", "cache", "result")
        self._retries = self._counter("retries", "Calls tried again after a failure.", "operation")
        self._rebalances = self._counter("rebalances", "Times that partitions were assigned to this worker.")
        self._lag = self._gauge("consumer_lag_records", "Records not consumed yet.", "topic", "partition")
        self._paused = self._gauge("partition_paused", "1 while a partition waits for a service.", "topic", "partition")
        self._catalogue = self._gauge("catalogue_items", "Items known, placeholders included.")
        self._users_cached = self._gauge("users_cached", "User states in memory.")
        self._model = self._gauge("model_info", "1 for the bundle that is served.", "version")
        self._sequence = self._gauge("model_sequence", "Sequence of the release that is served, 0 before the first.")
        self._model_age = self._gauge("model_age_seconds", "Time since the served release was made.")
        self._switches = self._counter("model_switches", "Releases taken up: switched, refused, failed.", "outcome")
        self._switch = self._histogram(
            "model_switch_seconds",
            "Time a switch took: to prepare it beside the events, and the pause of the events.",
            SWITCH_BUCKETS,
            "phase",
        )
        self._trial = self._gauge(
            "trial_share",
            "Share of users on whom a released version is tried; none outside a trial.",
            "version",
            "mode",
        )
        self._refolded = self._counter("refolded_states", "User states of another model version that were rebuilt.")
        self._malformed = self._counter("malformed_releases", "Messages of the topic `models` that say nothing.")
        self._provider = self._gauge("provider_info", "1 for the ONNX execution provider in use.", "provider")
        self._spread = self._histogram(
            "list_score_spread", "Score of a published list's first item less that of its last one.", SPREAD_BUCKETS
        )
        self._state_norm = self._histogram("state_norm", "Euclidean norm of a folded user's state.", NORM_BUCKETS)
        online = ("model_version", "user", "list")
        self._online_scored = self._counter("online_scored_events", "Interactions compared with a list.", *online)
        self._online_hits = self._counter("online_hits", "Those whose item was among the first ten.", *online)
        self._online_ndcg = self._counter("online_ndcg_sum", "Sum of their nDCG@10.", *online)
        # The children of a chunk's road are bound once: `labels()` costs a lock and a tuple of strings each time.
        self._stage_children = {name: self._stage.labels(name) for name in STAGES}
        self._event_children: dict[tuple[str, str], Counter] = {}
        self._online_versions: dict[str, None] = {}
        for outcome in ("switched", "refused", "failed"):
            self._switches.labels(outcome)
        for outcome in ("encoded", "reused"):
            self._filled.labels(outcome)
        for phase in ("prepare", "pause"):
            self._switch.labels(phase)

    # What happened to a chunk

    def stage(self, name: str) -> StageTimer:
        """Times a block: `with metrics.stage("fold"): ...`. Raises: KeyError for a name outside STAGES."""
        return StageTimer(self._stage_children[name])

    def observe_stage(self, name: str, seconds: float) -> None:
        self._stage_children[name].observe(seconds)

    def observe_chunk(self, events: int) -> None:
        self._chunk.observe(events)

    def count_events(self, counts: Mapping[tuple[str, str], int]) -> None:
        """
        Args:
            counts: (type, outcome) -> events; the type is a declared one, else "unknown".
        """
        for key, count in counts.items():
            child = self._event_children.get(key)
            if child is None:
                child = self._event_children[key] = self._events.labels(*key)
            child.inc(count)

    def count_dead_letters(self, reason: str, count: int = 1) -> None:
        self._dead_letters.labels(reason).inc(count)

    def observe_event_to_list(self, seconds: Iterable[float]) -> None:
        # A producer's clock ahead of the broker's gives a negative time, which would make the sum fall.
        observe = self._event_to_list.observe
        for value in seconds:
            observe(max(0.0, value))

    def count_lists(self, cause: Literal["event", "request", "replay"], count: int = 1) -> None:
        self._lists.labels(cause).inc(count)

    def observe_drift(self, spreads: Iterable[float], norms: Iterable[float]) -> None:
        """
        Args:
            spreads: of the scores of each list published.
            norms: of the state of each user folded.
        """
        for spread in spreads:
            self._spread.observe(spread)
        for norm in norms:
            self._state_norm.observe(norm)

    def count_published_bytes(self, topic: str, size: int) -> None:
        self._published_bytes.labels(topic).inc(size)

    def count_superseded(self, count: int = 1) -> None:
        self._superseded.inc(count)

    def count_forwarded(self, count: int = 1) -> None:
        self._forwarded.inc(count)

    def count_cache(self, cache: Literal["user", "text"], hits: int, misses: int) -> None:
        self._cache.labels(cache, "hit").inc(hits)
        self._cache.labels(cache, "miss").inc(misses)

    # Item statistics and the catalogue

    def count_deltas(self, outcome: Literal["sent", "applied", "rejected"], count: int, size: int) -> None:
        """
        Args:
            size: bytes of these deltas; those of `applied` and `rejected` were received.
        """
        self._deltas.labels(outcome).inc(count)
        self._delta_bytes.labels("sent" if outcome == "sent" else "received").inc(size)

    def count_feedback(self, outcome: Literal["sent", "too_large"], count: int) -> None:
        self._feedback.labels(outcome).inc(count)

    def count_items(self, outcome: Literal["encoded", "unchanged", "removed", "placeholder"], count: int = 1) -> None:
        self._items.labels(outcome).inc(count)

    def count_filled_items(self, outcome: Literal["encoded", "reused"], count: int) -> None:
        self._filled.labels(outcome).inc(count)

    def set_catalogue_items(self, count: int) -> None:
        self._catalogue.set(count)

    def set_users_cached(self, count: int) -> None:
        self._users_cached.set(count)

    # Kafka and services

    def set_lag(self, topic: str, partition: int, records: int) -> None:
        self._lag.labels(topic, partition).set(max(0, records))

    def set_paused(self, topic: str, partition: int, paused: bool) -> None:
        self._paused.labels(topic, partition).set(paused)

    def drop_partition(self, topic: str, partition: int) -> None:
        """Forget a revoked partition, whose lag would stand still here while another worker reads on."""
        for gauge in (self._lag, self._paused):
            gauge.remove_by_labels({"topic": topic, "partition": str(partition)})

    def count_rebalance(self) -> None:
        self._rebalances.inc()

    def count_retry(self, operation: str) -> None:
        self._retries.labels(operation).inc()

    # The model

    def set_model(self, version: str) -> None:
        """Show the served version, with its quality counters at zero, so that rates exist before the first event."""
        self._model.clear()
        self._model.labels(version).set(1)
        self._show_version(version)
        for user in ("cold", "warm"):
            for shown in ("last_published", "asked"):
                for counter in (self._online_scored, self._online_hits, self._online_ndcg):
                    counter.labels(version, user, shown)

    def set_model_sequence(self, sequence: int) -> None:
        self._sequence.set(sequence)

    def set_model_age(self, seconds: float) -> None:
        self._model_age.set(max(0.0, seconds))

    def count_switch(self, outcome: Literal["switched", "refused", "failed"]) -> None:
        self._switches.labels(outcome).inc()

    def set_trial(self, version: str, mode: str, share: float) -> None:
        self._trial.labels(version, mode).set(share)

    def end_trial(self) -> None:
        self._trial.clear()

    def observe_switch(self, phase: Literal["prepare", "pause"], seconds: float) -> None:
        self._switch.labels(phase).observe(seconds)

    def count_refolded(self, count: int) -> None:
        self._refolded.inc(count)

    def count_malformed_releases(self, count: int) -> None:
        self._malformed.inc(count)

    def set_provider(self, provider: str) -> None:
        self._provider.clear()
        self._provider.labels(provider).set(1)

    def count_online(
        self, model_version: str, user: OnlineUser, shown: ScoredList, *, scored: int, hits: int, ndcg_sum: float
    ) -> None:
        """Add a chunk's quality: of `scored` interactions, `hits` had their item among the first ten of the list."""
        self._show_version(model_version)
        labels = (model_version, user, shown)
        self._online_scored.labels(*labels).inc(scored)
        self._online_hits.labels(*labels).inc(hits)
        self._online_ndcg.labels(*labels).inc(ndcg_sum)

    def _show_version(self, version: str) -> None:
        """Versions come for as long as the worker runs: the quality counters of the latest ones are kept."""
        self._online_versions.pop(version, None)
        self._online_versions[version] = None
        if len(self._online_versions) > ONLINE_VERSIONS:
            oldest = next(iter(self._online_versions))
            del self._online_versions[oldest]
            for counter in (self._online_scored, self._online_hits, self._online_ndcg):
                counter.remove_by_labels({"model_version": oldest})


class StageTimer:
    """Times one block; a new one a block, since two partitions' chunks may be in the same stage at once."""

    __slots__ = ("_child", "_started")

    def __init__(self, child: Any) -> None:
        self._child = child
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.observe(perf_counter() - self._started)
