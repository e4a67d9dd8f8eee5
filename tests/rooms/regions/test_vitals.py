"""Gray failures: an endpoint that answers, but far more slowly than its peers, is left out for a while."""

from __future__ import annotations

from atoll.core.view import Spot, Ticket, View
from atoll.regions.vitals import Watch


def fleet(names: str) -> tuple[View, Watch]:
    view = View()
    for name in names:
        view.join("m", Spot(name, "r"))
    return view, Watch()


def answered(view: View, watch: Watch, name: str, ttft: float, now: float, failed: bool = False) -> None:
    spot = view.groups["m"].spots[name]
    ticket: Ticket = view.begin("m", spot, 10, now)
    view.first(ticket, now + ttft)
    watch.examine(ticket, 20, failed, now + ttft + 0.5)
    view.finish(ticket, now + ttft + 0.5, 20, not failed)


def test_one_that_is_ten_times_slower_than_its_peers_is_ejected_and_comes_back() -> None:
    view, watch = fleet("abcd")
    for at in range(10):
        for name in "abcd":
            answered(view, watch, name, 2.0 if name == "d" else 0.2, float(at))
    ejected = watch.eject(10.0)
    assert list(ejected) == ["d"] and "first token after" in ejected["d"].reason
    assert watch.eject(11.0) == {}, "told once"
    assert ejected["d"].until > 10.0


def test_when_all_get_slow_nobody_is_to_blame() -> None:
    view, watch = fleet("abc")
    for at in range(20):
        for name in "abc":
            answered(view, watch, name, 0.2 if at < 10 else 3.0, float(at))
    assert watch.eject(30.0) == {}


def test_one_that_errs_is_ejected_and_forgotten_when_it_leaves() -> None:
    view, watch = fleet("abcd")
    for at in range(10):
        for name in "abcd":
            answered(view, watch, name, 0.2, float(at), failed=name == "a")
    assert list(watch.eject(10.0)) == ["a"]
    watch.forget("a")
    assert watch.eject(11.0) == {}


def test_a_stretch_of_an_answer_is_held_against_those_under_way_elsewhere() -> None:
    view, watch = fleet("abc")
    for at in range(10):
        for name in "abc":
            answered(view, watch, name, 0.2, float(at))
    assert not watch.lags("a", 12, 5.0, 20.0), "no other is under way"
    assert not watch.lags("b", 12, 5.0, 21.0) and not watch.lags("c", 12, 5.0, 22.0), "all are slow"
    assert not watch.lags("b", 200, 5.0, 25.0) and not watch.lags("c", 200, 5.0, 26.0)
    assert watch.lags("a", 12, 5.0, 27.0)
    assert not watch.lags("a", 12, 5.0, 40.0), "the others have ended"
