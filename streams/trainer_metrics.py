"""The Prometheus metrics of a trainer: what it learned from, what it decided and by how much. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from streams.learning_port import Decision, FitNews
from streams.metric_base import MetricSet

# An update of a thousand records takes seconds, a first fit of a long buffer minutes.
ROUND_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0, 600.0, 1_800.0)
# `known`: told before; `refused`: beyond a user's share; `remembered`: of before the champion's fit.
RECORDS = ("taken", "known", "refused", "remembered", "bad")
DECISIONS: tuple[str, ...] = get_args(Decision)
FITS = tuple(news for news in get_args(FitNews) if news)


class TrainerMetrics(MetricSet):
    """Everything a trainer counts. Versions are the only open label: the two that are compared, no others."""

    def __init__(self) -> None:
        super().__init__()
        self._records = self._counter(
            "trainer_records", "Records of `feedback`: taken, known, refused, remembered, bad.", "outcome"
        )
        self._round = self._histogram(
            "trainer_round_seconds", "Time of a round: compare, decide, train.", ROUND_BUCKETS
        )
        self._decisions = self._counter("trainer_decisions", "Rounds by what was decided.", "decision")
        self._fits = self._counter("trainer_whole_fits", "Whole fits: begun, failed, won, lost.", "outcome")
        self._loss = self._gauge("trainer_loss", "Mean loss of the encoder over the last round, nats.")
        self._ndcg = self._gauge(
            "trainer_ndcg_at_10", "nDCG@10 on the newest round's records, before training on them.", "model"
        )
        self._margin = self._gauge("trainer_margin", "Challenger's nDCG@10 less the champion's, on the same records.")
        self._margin_low = self._gauge("trainer_margin_low", "Lower end of the margin's 95% interval by user.")
        self._margin_high = self._gauge("trainer_margin_high", "Upper end of it.")
        self._compared = self._gauge("trainer_compared_records", "Records that the margin stands on.")
        self._buffer = self._gauge("trainer_buffer_records", "Records in the replay buffer.")
        self._buffer_bytes = self._gauge("trainer_buffer_bytes", "Their bytes on disk.")
        self._lag = self._gauge("trainer_lag_records", "Records of `feedback` not read yet.")
        self._leads = self._gauge("trainer_leads", "1 where this trainer has the partitions, 0 where it stands by.")
        self._champion = self._gauge("trainer_champion_info", "1 for the version that is champion.", "version")
        self._champion_since = self._gauge("trainer_champion_since_seconds", "Unix time of the champion's release.")
        self._failures = self._counter("trainer_failures", "Releases that could not be made, by step.", "step")
        for decision in DECISIONS:
            self._decisions.labels(decision)
        for outcome in RECORDS:
            self._records.labels(outcome)
        for news in FITS:
            self._fits.labels(news)

    def count_records(self, outcomes: Mapping[str, int]) -> None:
        """
        Args:
            outcomes: of RECORDS -> how many.
        """
        for outcome, count in outcomes.items():
            self._records.labels(outcome).inc(count)

    def observe_round(self, decision: str, fit: str, seconds: float, figures: Mapping[str, float]) -> None:
        """
        Args:
            fit: what became of a whole fit, of FITS, empty for nothing.
            figures: of the round, by name: `served_ndcg_at_10`, `champion_ndcg_at_10`, `challenger_ndcg_at_10`,
                `rival_ndcg_at_10`, `margin`, `margin_low`, `margin_high`, `compared`, `encoder_loss`; those that are
                not there keep their value.
        """
        self._decisions.labels(decision).inc()
        if fit:
            self._fits.labels(fit).inc()
        self._round.observe(seconds)
        for name, gauge in (
            ("margin", self._margin),
            ("margin_low", self._margin_low),
            ("margin_high", self._margin_high),
            ("compared", self._compared),
        ):
            if name in figures:
                gauge.set(figures[name])
        for model in ("served", "champion", "challenger", "rival"):
            if f"{model}_ndcg_at_10" in figures:
                self._ndcg.labels(model).set(figures[f"{model}_ndcg_at_10"])
        if "encoder_loss" in figures:
            self._loss.set(figures["encoder_loss"])

    def set_buffer(self, records: int, size: int) -> None:
        self._buffer.set(records)
        self._buffer_bytes.set(size)

    def set_lag(self, records: int) -> None:
        self._lag.set(records)

    def set_leads(self, leads: bool) -> None:
        self._leads.set(leads)

    def set_champion(self, version: str, since_seconds: float) -> None:
        self._champion.clear()
        self._champion.labels(version).set(1)
        self._champion_since.set(since_seconds)

    def count_failure(self, step: str) -> None:
        self._failures.labels(step).inc()
