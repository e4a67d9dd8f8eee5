"""bench/route.py, made small: it still runs, and its policies still decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atoll.core.policies import POLICIES
from atoll.core.route import OBJECTIVES

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def route(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import route

    fleet = route.fleet
    monkeypatch.setattr(route, "fleet", lambda regions, each: fleet(min(regions, 9), min(each, 2)))
    monkeypatch.setattr(route, "ENTRIES", 600)
    monkeypatch.setattr(route, "BATCH", 10)
    return route


def test_the_speed_of_every_policy_is_measured(route: Any) -> None:
    told = route.speed(1)
    assert set(told["policies 29x64"]) == POLICIES.keys() - {"atoll"}
    assert all(row["per_cpu_s"] > 0 for name, row in told.items() if name.startswith("29x"))
    assert told["best_score_as_score_all"] == 1.0 and told["bytes_per_prefix"] > 0


def test_every_policy_serves_the_simulated_world(route: Any) -> None:
    sim = route.route_sim
    where = sim.world(each=1)
    arrivals = sim.conversations(where, 5.0, 4.0, hot=1.0)
    outcomes = [sim.Run(where, arrivals, policy, OBJECTIVES["fastest"]).outcome() for policy in POLICIES.values()]
    assert {told["requests"] for told in outcomes} == {len(arrivals)} and arrivals
    assert all(0 < told["ttft_p50_s"] <= told["ttft_p99_s"] for told in outcomes)
