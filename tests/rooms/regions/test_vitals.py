"""Gray failures: an endpoint that answers, but far more slowly than its peers, is left out for a while."""

from __future__ import annotations

from atoll.core.view import Spot, Ticket, View
from atoll.regions.vitals import Watch


def answered(view: View, watch: Watch, name: str, ttft: float, now: float, failed: bool = False) -> None:
    spot = view.groups["m"].spots[name]
    ticket: Ticket = view.begin("m", spot, 10, now)
    view.first(ticket, now + ttft)
    watch.examine(ticket, 20, failed, now + ttft + 0.5)
    view.finish(ticket, now + ttft + 0.5, 20, not failed)


def test_one_that_is_ten_times_slower_than_its_peers_is_ejected_and_comes_back() -> None:
    view, watch = View(), Watch()
    for name in "abcd":
        view.join("m", Spot(name, "r"))
    for at in range(10):
        for name in "abcd":
            answered(view, watch, name, 2.0 if name == "d" else 0.2, float(at))
    ejected = watch.eject(10.0)
    assert list(ejected) == ["d"] and "first token after" in ejected["d"].reason
    assert watch.eject(11.0) == {}, "told once"
    assert ejected["d"].until > 10.0


def test_when_all_get_slow_nobody_is_to_blame() -> None:
    view, watch = View(), Watch()
    for name in "abc":
        view.join("m", Spot(name, "r"))
    for at in range(20):
        for name in "abc":
            answered(view, watch, name, 0.2 if at < 10 else 3.0, float(at))
    assert watch.eject(30.0) == {}


def test_one_that_errs_is_ejected_and_forgotten_when_it_leaves() -> None:
    view, watch = View(), Watch()
    for name in "abcd":
        view.join("m", Spot(name, "r"))
    for at in range(10):
        for name in "abcd":
            answered(view, watch, name, 0.2, float(at), failed=name == "a")
    assert list(watch.eject(10.0)) == ["a"]
    watch.forget("a")
    assert watch.eject(11.0) == {}
