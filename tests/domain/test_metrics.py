"""What the worker counts is what Prometheus reads, under the names that others rely on."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.metrics import ONLINE_VERSIONS, STAGES, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_two_owners_do_not_meet(metrics: Metrics) -> None:
    metrics.count_forwarded(3)
    assert metrics.value("streamrec_forwarded_total") == 3
    assert Metrics().value("streamrec_forwarded_total") == 0


def test_events_are_counted_by_type_and_outcome(metrics: Metrics) -> None:
    metrics.count_events({("rating", "folded"): 5, ("rating", "duplicate"): 1})
    metrics.count_events({("rating", "folded"): 2})
    assert metrics.value("streamrec_events_total", type="rating", outcome="folded") == 7
    assert metrics.value("streamrec_events_total", type="rating", outcome="duplicate") == 1


def test_a_stage_is_timed_even_when_it_fails(metrics: Metrics) -> None:
    with pytest.raises(RuntimeError), metrics.stage("fold"):
        raise RuntimeError
    with metrics.stage("fold"):
        pass
    assert metrics.value("streamrec_stage_seconds_count", stage="fold") == 2


def test_two_chunks_may_be_in_one_stage_at_once(metrics: Metrics) -> None:
    with metrics.stage("upsert"), metrics.stage("upsert"):
        pass
    assert metrics.value("streamrec_stage_seconds_count", stage="upsert") == 2


def test_an_unknown_stage_is_a_programming_error(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.stage("breakfast")


def test_every_stage_is_there_before_the_first_event(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    assert all(f'streamrec_stage_seconds_count{{stage="{stage}"}} 0.0' in text for stage in STAGES)


def test_latencies_are_seconds_and_never_negative(metrics: Metrics) -> None:
    metrics.observe_event_to_list([0.004, 0.09, -1.0])
    assert metrics.value("streamrec_event_to_list_seconds_count") == 3
    assert metrics.value("streamrec_event_to_list_seconds_sum") == pytest.approx(0.094)
    assert metrics.value("streamrec_event_to_list_seconds_bucket", le="0.1") == 3
    assert metrics.value("streamrec_event_to_list_seconds_bucket", le="0.005") == 2


def test_one_version_and_one_provider_are_shown_at_a_time(metrics: Metrics) -> None:
    metrics.set_model("bootstrap-1")
    metrics.set_model("learned-2")
    metrics.set_provider("CPUExecutionProvider")
    assert metrics.value("streamrec_model_info", version="learned-2") == 1
    assert metrics.registry.get_sample_value("streamrec_model_info", {"version": "bootstrap-1"}) is None
    assert metrics.value("streamrec_provider_info", provider="CPUExecutionProvider") == 1


def test_quality_counters_start_at_zero_and_add_up(metrics: Metrics) -> None:
    metrics.set_model("m1")
    metrics.set_trial("m2", "canary", 0.1)
    labels = {"model_version": "m1", "user": "warm", "list": "asked"}
    assert metrics.registry.get_sample_value("streamrec_online_scored_events_total", labels) == 0
    metrics.count_online("m1", "warm", "asked", scored=10, hits=2, ndcg_sum=1.5)
    metrics.count_online("m1", "warm", "asked", scored=1, hits=1, ndcg_sum=1.0)
    assert metrics.value("streamrec_online_scored_events_total", **labels) == 11
    assert metrics.value("streamrec_online_hits_total", **labels) == 3
    assert metrics.value("streamrec_online_ndcg_sum_total", **labels) == 2.5


def test_a_revoked_partition_leaves_no_lag_behind(metrics: Metrics) -> None:
    metrics.set_lag("events", 0, 5)
    metrics.set_lag("events", 1, 7)
    metrics.set_paused("events", 1, True)
    metrics.drop_partition("events", 0)
    metrics.drop_partition("events", 9)
    text = metrics.exposition().decode()
    assert 'streamrec_consumer_lag_records{partition="0"' not in text
    assert metrics.value("streamrec_consumer_lag_records", topic="events", partition="1") == 7
    assert metrics.value("streamrec_partition_paused", topic="events", partition="1") == 1


def fill(metrics: Metrics) -> None:
    """Use every method once, so that every metric has a sample."""
    metrics.count_events({("view", "folded"): 1})
    metrics.count_dead_letters("invalid_json")
    metrics.observe_chunk(128)
    metrics.observe_stage("rank", 0.001)
    metrics.observe_event_to_list([0.01])
    metrics.observe_drift([3.5, 0.5], [4.5])
    metrics.count_lists("event", 2)
    metrics.count_published_bytes("recommendations", 1_000)
    metrics.count_superseded()
    metrics.count_forwarded()
    metrics.count_cache("user", 3, 1)
    metrics.count_feedback("sent", 5)
    metrics.count_deltas("sent", 1, 200)
    metrics.count_deltas("applied", 2, 400)
    metrics.count_items("encoded", 3)
    metrics.set_catalogue_items(1_682)
    metrics.set_users_cached(943)
    metrics.set_lag("events", 0, 5)
    metrics.set_paused("events", 0, False)
    metrics.count_rebalance()
    metrics.count_retry("upsert")
    metrics.set_model("m1")
    metrics.set_trial("m2", "canary", 0.1)
    metrics.set_provider("CPUExecutionProvider")
    metrics.count_online("m1", "cold", "last_published", scored=1, hits=1, ndcg_sum=1.0)


def test_what_is_served_is_what_is_described(metrics: Metrics) -> None:
    fill(metrics)
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    served = {family.name + ("_total" if family.type == "counter" else "") for family in families if family.samples}
    described = {info.name for info in metrics.described}
    assert described <= served
    assert all(name.startswith("streamrec_") for name in served)
    for family in families:
        for info in metrics.described:
            if info.name.removesuffix("_total") == family.name:
                assert set(family.samples[0].labels) - {"le"} == set(info.labels)


def test_scores_of_lists_and_lengths_of_states_tell_of_drift(metrics: Metrics) -> None:
    fill(metrics)
    assert metrics.value("streamrec_list_score_spread_sum") == 4.0
    assert metrics.value("streamrec_list_score_spread_bucket", le="0.5") == 1
    assert metrics.value("streamrec_state_norm_bucket", le="4.0") == 0
    assert metrics.value("streamrec_state_norm_bucket", le="5.0") == 1


def test_bytes_of_deltas_are_told_by_direction(metrics: Metrics) -> None:
    fill(metrics)
    assert metrics.value("streamrec_delta_bytes_total", direction="sent") == 200
    assert metrics.value("streamrec_delta_bytes_total", direction="received") == 400


def test_the_table_for_the_readme_names_every_metric(metrics: Metrics) -> None:
    rows = re.findall(r"^\| `(streamrec_\w+)` \| (counter|gauge|histogram) \|", metrics.markdown(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == [info.name for info in metrics.described]


def test_switches_are_counted_by_outcome_and_timed_by_phase(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    assert all(
        f'streamrec_model_switches_total{{outcome="{name}"}} 0.0' in text for name in ("switched", "refused", "failed")
    )
    metrics.count_switch("refused")
    metrics.observe_switch("pause", 0.004)
    metrics.set_model_sequence(7)
    metrics.set_model_age(-2.0)
    assert metrics.value("streamrec_model_switches_total", outcome="refused") == 1
    assert metrics.value("streamrec_model_switch_seconds_bucket", phase="pause", le="0.005") == 1
    assert metrics.value("streamrec_model_sequence") == 7
    assert metrics.value("streamrec_model_age_seconds") == 0


def test_quality_counters_of_versions_long_gone_are_let_go(metrics: Metrics) -> None:
    for number in range(ONLINE_VERSIONS + 5):
        metrics.set_model(f"m{number}")
        metrics.count_online("m0", "warm", "asked", scored=1, hits=1, ndcg_sum=1.0)
    shown = set(re.findall(r'online_hits_total\{[^}]*model_version="(m\d+)"', metrics.exposition().decode()))
    assert len(shown) == ONLINE_VERSIONS
    assert {"m0", f"m{ONLINE_VERSIONS + 4}"} <= shown, "who is spoken of stays"
    assert (
        metrics.value("streamrec_online_hits_total", model_version="m0", user="warm", list="asked")
        == ONLINE_VERSIONS + 5
    )
