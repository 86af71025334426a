"""The gate: what it promotes, keeps and throws away, and that no single user decides."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.learning.gate import MISSED, Evidence, GateRule, WatchRule, gains, octaves, within_list
from models.learning.user_shares import UserShares

RULE = GateRule()


def evidence(difference: float, *, users: int = 40, each: int = 30, seed: int = 0) -> Evidence:
    """Users whose tastes differ; the challenger lists what is chosen higher by `difference` octaves, with noise."""
    rng = np.random.default_rng(seed)
    found = Evidence(RULE.memory)
    names = [f"u{user}" for user in range(users) for _ in range(each)]
    champion = 2.0 ** rng.uniform(0.5, 7.5, len(names))
    challenger = champion * 2.0 ** (0.1 * rng.normal(size=len(names)) - difference)
    found.add(names, champion, np.maximum(challenger, 1.0))
    return found


def test_a_gain_is_one_over_the_logarithm_of_the_place_and_nothing_beyond_the_tenth() -> None:
    found = gains(np.array([1.0, 3.0, 1.5, 10.0, 10.5, np.inf]))
    np.testing.assert_allclose(found, [1.0, 0.5, 1 / np.log2(2.5), 1 / np.log2(11), 0.0, 0.0])


def test_octaves_are_halvings_of_the_place_and_a_miss_is_beyond_every_list() -> None:
    np.testing.assert_allclose(octaves(np.array([1.0, 2.0, 8.0, np.inf])), [0.0, 1.0, 3.0, np.log2(MISSED)])
    np.testing.assert_array_equal(within_list(np.array([1.0, 10.0, 10.5])), [1.0, 10.0, np.inf])


@pytest.mark.parametrize(("difference", "verdict"), [(0.02, "promote"), (0.0, "keep"), (-0.02, "discard")])
def test_a_better_challenger_is_promoted_an_equal_one_kept_a_worse_one_thrown_away(
    difference: float, verdict: str
) -> None:
    assert evidence(difference).judge(RULE, seed=0).verdict == verdict


def test_a_gain_that_is_sure_and_not_worth_a_switch_is_waited_with() -> None:
    found = Evidence(RULE.memory)
    found.add([f"u{n % 50}" for n in range(2_000)], np.full(2_000, 8.0), np.full(2_000, 7.999))
    decision = found.judge(RULE, seed=0)
    assert (decision.verdict, decision.better, decision.enough) == ("keep", 1.0, 0.0)


def test_a_challenger_that_lists_less_among_the_first_ten_is_not_promoted_for_what_it_gains_below() -> None:
    found = Evidence(RULE.memory)
    deep, first = np.full(2_000, 160.0), np.arange(2_000) % 20 == 0
    found.add([f"u{n % 50}" for n in range(2_000)], np.where(first, 9.0, deep), np.where(first, 11.0, 0.9 * deep))
    decision = found.judge(RULE, seed=0)
    assert (decision.verdict, decision.enough) == ("keep", 1.0)
    assert decision.difference < 0


def test_models_that_rank_alike_are_neither_promoted_nor_thrown_away() -> None:
    same = Evidence(RULE.memory)
    same.add([f"u{n % 50}" for n in range(2_000)], np.full(2_000, 9.0), np.full(2_000, 9.0))
    decision = same.judge(RULE, seed=0)
    assert (decision.verdict, decision.better, decision.difference) == ("keep", 0.5, 0.0)


def test_nothing_is_decided_on_few_records_or_few_users() -> None:
    assert evidence(0.1, users=10, each=RULE.least_records // 10 - 1).judge(RULE, seed=0).verdict == "keep"
    assert evidence(0.1, users=RULE.least_users - 1, each=500).judge(RULE, seed=0).verdict == "keep"
    assert Evidence(RULE.memory).judge(RULE, seed=0).verdict == "keep"


def test_a_user_who_sends_ten_thousand_records_weighs_as_much_as_one_who_sends_a_few() -> None:
    flooded, rng = Evidence(20_000), np.random.default_rng(0)
    flooded.add(["robot"] * 10_000, np.full(10_000, np.inf), np.ones(10_000))
    flooded.add([f"u{user}" for user in range(40) for _ in range(25)], np.full(1_000, 8.0), 8.0 + rng.random(1_000))
    decision = flooded.judge(RULE, seed=0)
    assert decision.verdict != "promote"
    assert decision.difference < 50 / 1_050


def test_decisions_are_the_same_for_the_same_seed_and_after_being_kept() -> None:
    found = evidence(0.002)
    found.add(["late"], np.array([np.inf]), np.array([3.0]))
    again = Evidence.restored(RULE.memory, msgspec.json.decode(msgspec.json.encode(found.state())))
    assert found.judge(RULE, seed=3) == found.judge(RULE, seed=3) == again.judge(RULE, seed=3)


def test_a_new_champion_that_is_clearly_worse_has_to_go_and_one_within_the_noise_may_stay() -> None:
    assert evidence(-0.5).failed(WatchRule(), RULE, seed=0).verdict == "discard"
    assert evidence(-0.01).failed(WatchRule(), RULE, seed=0).verdict == "keep"
    assert evidence(0.1).failed(WatchRule(), RULE, seed=0).verdict == "keep"


def test_a_forgotten_user_leaves_the_evidence_and_old_records_leave_by_themselves() -> None:
    found = Evidence(100)
    found.add(["a", "b"] * 60, np.full(120, 2.0), np.ones(120))
    assert len(found) == 100
    found.forget("a")
    assert len(found) == 50
    assert found.judge(RULE, seed=0).users == 1


def test_a_user_is_let_in_up_to_his_share_of_the_latest_and_again_once_others_came() -> None:
    shares = UserShares(3, 6)
    assert [shares.admit("robot") for _ in range(5)] == [True] * 3 + [False] * 2
    again = UserShares.restored(3, 6, shares.state())
    for each in (shares, again):
        assert [each.admit(f"u{n}") for n in range(4)] == [True] * 4
        assert each.admit("robot"), "one of his left the span"
        assert not UserShares(0, 6).admit("robot")
