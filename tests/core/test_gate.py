"""The gate's statistics against published examples, and its decision against what a reader would say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.core.gate import Evidence, Rule, Trials, decide, evidence_of, mmrv, newcombe, plain, spearman, wilson

GOOD = Evidence(
    Trials(196, 200), {0.5: Trials(60, 64), 1.0: Trials(55, 64), 2.0: Trials(3, 64)}, {"half the step": Trials(62, 64)},
    Trials(197, 200), [(0.9, 0.95), (0.7, 0.8), (0.3, 0.4), (0.1, 0.05)],
)  # fmt: skip


def test_intervals_are_those_of_the_papers() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert newcombe(Trials(56, 70), Trials(48, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert newcombe(Trials(9, 10), Trials(3, 10)) == pytest.approx((0.1705, 0.8090), abs=1e-4)


@given(st.integers(0, 300), st.integers(1, 300))
def test_an_interval_holds_the_rate_and_narrows_with_episodes(successes: int, episodes: int) -> None:
    successes = min(successes, episodes)
    low, high = wilson(successes, episodes)
    assert 0 <= low <= successes / episodes <= high <= 1
    tenfold = wilson(10 * successes, 10 * episodes)
    assert tenfold[1] - tenfold[0] < high - low


def test_rank_correlation_and_violations() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    assert mmrv([0.1, 0.5, 0.9], [0.2, 0.4, 0.8]) == 0
    assert mmrv([0.5, 0.1], [0.2, 0.8]) == pytest.approx(0.6)


def test_a_good_policy_passes_and_says_why() -> None:
    verdict = decide(GOOD, Rule())
    assert verdict.passed
    assert [check.name for check in verdict.checks] == [
        "success", "physics", "stress 0.5", "stress 1", "simulated otherwise: half the step", "regression",
        "rank correlation",
    ]  # fmt: skip
    assert "196 of 200 (98.0%)" in verdict.checks[0].why


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"nominal": Trials(165, 200), "incumbent": None}, "success"),
        ({"broken": 1}, "physics"),
        ({"stress": {1.0: Trials(30, 64)}}, "stress 1"),
        ({"variants": {"half the step": Trials(30, 64)}}, "simulated otherwise: half the step"),
        ({"nominal": Trials(180, 200), "incumbent": Trials(200, 200)}, "regression"),
        ({"random": Trials(60, 64)}, "random actions"),
        ({"ranks": [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]}, "rank correlation"),
    ],
)
def test_each_requirement_can_stop_a_policy(change: dict[str, object], fails: str) -> None:
    verdict = decide(replace(GOOD, **change), Rule())
    assert not verdict.passed
    assert [check.name for check in verdict.checks if not check.passed] == [fails]


@pytest.mark.parametrize("odd", [(1.0, 1.0), (0.95, 1.0), (1.0, 0.98)])
def test_a_policy_that_noise_does_not_harm_has_no_order_to_get_wrong(odd: tuple[float, float]) -> None:
    assert decide(replace(GOOD, ranks=[odd, *[(1.0, 1.0)] * 4]), Rule()).passed


@pytest.mark.parametrize("change", [{"success": -0.1}, {"stress": 1.1}, {"gap": float("nan")}, {"rank": -2.0}])
def test_a_rule_out_of_bounds_is_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"'rule\.") as caught:
        Rule(**change)
    assert caught.value.param == f"rule.{next(iter(change))}"


def test_evidence_is_the_same_read_back() -> None:
    whole = replace(GOOD, random=Trials(1, 64))
    assert evidence_of(json.loads(json.dumps(plain(whole)))) == whole


def test_few_episodes_do_not_show_success() -> None:
    """Ten of ten are 72 % at least, with 95 % confidence."""
    assert not decide(Evidence(Trials(10, 10)), Rule(success=0.8)).passed
    assert decide(Evidence(Trials(30, 30)), Rule(success=0.8)).passed


@given(st.integers(0, 200), st.integers(0, 200))
def test_more_successes_never_turn_a_pass_into_a_fail(first: int, second: int) -> None:
    few, many = sorted((first, second))
    verdicts = [decide(Evidence(Trials(k, 200), incumbent=Trials(150, 200)), Rule()).passed for k in (few, many)]
    assert verdicts[0] <= verdicts[1]
