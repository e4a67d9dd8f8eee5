"""Recovery: failure in, decision out; budgets that hold; and a verifier that drops exactly what was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.places import Residency
from atoll.core.recover import (
    Action,
    Attempt,
    Budget,
    Continue,
    Differs,
    Failure,
    Fresh,
    GiveUp,
    Hedging,
    Restart,
    Retry,
    Verifier,
    earn,
    hedge,
    recover,
    spend,
)
from atoll.core.types import Policy

FIRST = Attempt(number=1, deadline=100.0)
FAST, HOT = Policy(recovery="fast"), Policy(recovery="hot")
QUEUE = Policy(residency=Residency(("eu",), ("eu",), "queue"))
EMPTY = Budget(balance=0.0)


def decide(attempt: Attempt, failure: Failure, emitted: int, now: float = 10.0, budget: Budget = EMPTY) -> Action:
    return recover(attempt, failure, emitted, now, budget._replace(at=now))[0]


def of(policy: Policy, **changes: object) -> Attempt:
    return replace(FIRST, policy=policy, **changes)


DIED, SAME = Failure("died"), "same"


@pytest.mark.parametrize(
    ("attempt", "failure", "expected"),
    [
        (FIRST, DIED, Retry()),
        (FIRST, Failure("unreachable", "other"), Retry()),
        (FIRST, Failure("overloaded", retry_after=9.0), Retry()),
        (FIRST, Failure("overloaded", "none", 9.0), ("overloaded", 9.0)),
        (FIRST, Failure("died", "none"), ("residency", None)),
        (of(QUEUE), Failure("died", "none"), Retry(0.5)),
        (of(QUEUE), Failure("overloaded", "none", 7.0), Retry(7.0)),
        (of(QUEUE, deadline=16.0), Failure("overloaded", "none", 7.0), ("overloaded", 7.0)),
        (FIRST, Failure("request"), ("request", None)),
        (FIRST, Failure("gone"), ("gone", None)),
        (replace(FIRST, deadline=10.0), DIED, ("deadline", None)),
        (replace(FIRST, number=6), DIED, ("engine", None)),
        (replace(FIRST, number=6), Failure("overloaded", retry_after=3.0), ("overloaded", 3.0)),
        (of(HOT, standby=True), DIED, Continue("hot", 0)),
        (of(Policy(recovery="none")), DIED, Retry()),
    ],
)
def test_before_the_first_token(attempt: Attempt, failure: Failure, expected: object):
    action = decide(attempt, failure, 0, budget=Budget())
    assert (action.why, action.retry_after) == expected if isinstance(action, GiveUp) else action == expected


@pytest.mark.parametrize(
    ("attempt", "failure", "expected"),
    [
        (FIRST, DIED, Continue("exact", 40)),
        (FIRST, Failure("stalled"), Continue("exact", 40)),
        (of(FAST), Failure("garbage"), Continue("fast", 40)),
        (of(FAST, structured=True), DIED, Continue("exact", 40)),
        (of(FAST, choices=2), DIED, Continue("exact", 40)),
        (of(FAST, ids=False), DIED, Continue("exact", 40)),
        (of(HOT, standby=True), DIED, Continue("hot", 40)),
        (of(HOT), DIED, Continue("exact", 40)),
        (of(Policy(recovery="none")), DIED, ("engine", None)),
        (FIRST, Failure("mismatch"), Continue("fast", 40)),
        (replace(FIRST, structured=True), Failure("mismatch"), ("mismatch", None)),
        (of(Policy(on_mismatch="restart"), structured=True), Failure("mismatch"), Restart()),
        (replace(FIRST, drifted=True), DIED, Continue("fast", 40)),
        (replace(FIRST, drifted=True, ids=False), DIED, ("mismatch", None)),
        (replace(FIRST, pace=3.0), DIED, Continue("fast", 40)),
        (replace(FIRST, pace=3.0, structured=True), DIED, Continue("exact", 40)),
        (FIRST, Failure("died", "other"), ("mismatch", None)),
        (of(Policy(on_mismatch="continue")), Failure("died", "other"), Continue("fast", 40, same_weights=False)),
        (of(Policy(on_mismatch="continue"), structured=True), Failure("died", "other"), ("mismatch", None)),
        (of(Policy(on_mismatch="restart")), Failure("died", "other"), Restart()),
        (FIRST, Failure("died", "none"), ("residency", None)),
        (of(QUEUE), Failure("died", "none"), Continue("exact", 40, 0.5)),
        (FIRST, Failure("overloaded", "none", 2.0), Continue("exact", 40, 2.0)),
        (FIRST, Failure("overloaded", "none", 90.0), ("overloaded", 90.0)),
        (FIRST, Failure("gone"), ("gone", None)),
        (replace(FIRST, deadline=10.0), DIED, ("deadline", None)),
        (replace(FIRST, number=4), DIED, Continue("exact", 40)),
        (replace(FIRST, number=5), DIED, Continue("exact", 40, 0.5)),
        (replace(FIRST, number=15), DIED, Continue("exact", 40, 4.0)),
        (replace(FIRST, number=15, deadline=13.0), DIED, ("deadline", None)),
        (replace(FIRST, number=16), DIED, ("engine", None)),
    ],
)
def test_after_the_first_token(attempt: Attempt, failure: Failure, expected: object):
    action = decide(attempt, failure, 40)
    assert (action.why, action.retry_after) == expected if isinstance(action, GiveUp) else action == expected


def test_a_stream_that_breaks_three_times():
    """Each time it brought new tokens, so each time its attempts are counted anew; the last regions differ."""
    attempt = of(Policy(recovery="exact", on_mismatch="continue"))
    assert decide(attempt, DIED, 40) == Continue("exact", 40)
    assert decide(attempt, Failure("stalled"), 41) == Continue("exact", 41)
    assert decide(attempt, Failure("died", "other"), 60) == Continue("fast", 60, same_weights=False)
    assert decide(replace(attempt, drifted=True), DIED, 75) == Continue("fast", 75)


ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1, 30),
    deadline=st.floats(0, 200),
    policy=st.builds(
        Policy,
        residency=st.builds(Residency, on_unavailable=st.sampled_from(["reject", "queue"])),
        recovery=st.sampled_from(["exact", "fast", "hot", "none"]),
        on_mismatch=st.sampled_from(["fail", "continue", "restart"]),
    ),
    ids=st.booleans(),
    structured=st.booleans(),
    choices=st.integers(1, 3),
    drifted=st.booleans(),
    standby=st.booleans(),
    pace=st.floats(0, 2),
)
FAILURES = st.builds(
    Failure,
    st.sampled_from(
        ["unreachable", "died", "stalled", "slow", "garbage", "overloaded", "mismatch", "request", "gone"]
    ),
    st.sampled_from(["same", "other", "none"]),
    st.none() | st.floats(0, 50),
)


@given(ATTEMPTS, FAILURES, st.integers(0, 100), st.floats(-30, 30))
def test_rules_that_always_hold(attempt: Attempt, failure: Failure, emitted: int, balance: float):
    action, budget = recover(attempt, failure, emitted, 10.0, Budget(balance=balance, at=10.0))
    if isinstance(action, GiveUp):
        assert action.reason
        assert budget.balance == balance, "giving up costs nothing"
        return
    assert attempt.number < (attempt.max_resumes if emitted else attempt.max_attempts)
    assert failure.kind not in ("request", "gone")
    assert 10.0 + action.after < attempt.deadline
    if isinstance(action, Retry):
        assert emitted == 0
    if isinstance(action, Restart):
        assert emitted > 0
        assert attempt.policy.on_mismatch == "restart"
    if isinstance(action, Continue):
        assert action.from_token == emitted
        assert emitted == 0 or attempt.policy.recovery != "none"
        assert action.same_weights or attempt.policy.on_mismatch == "continue"
        if action.grade == "fast":
            assert attempt.ids and not attempt.structured and attempt.choices == 1
        if action.grade == "exact":
            assert action.same_weights and not attempt.drifted and failure.kind != "mismatch"


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=200))
def test_failure_does_not_multiply_load(history: list[tuple[float, bool]]):
    """However many fail, retries that have begun by any time are within 30 + 20 % of requests + 3 a second."""
    now, budget, begun = 0.0, Budget(), []
    for requests, (wait, fails) in enumerate(history, 1):
        now += wait
        budget = earn(budget, now)
        for _ in range(5 if fails else 0):
            action, budget = recover(replace(FIRST, deadline=now + 60), DIED, 0, now, budget)
            if isinstance(action, Retry):
                begun.append(now + action.after)
                earned = 30 + 0.2 * requests + 3 * (now + action.after)
                assert sum(at <= now + action.after for at in begun) <= earned + 1e-6
            else:
                assert (action.why, budget.balance < -29) == ("overloaded", True)


def test_an_empty_budget_paces_retries_and_never_holds_up_a_stream():
    budget = Budget(balance=0.0)
    waits = []
    for _ in range(3):
        action, budget = recover(FIRST, DIED, 0, 0.0, budget)
        waits.append(action.after)
    assert waits == pytest.approx([1 / 3, 2 / 3, 1.0])
    action, budget = recover(FIRST, DIED, 7, 0.0, budget)
    assert action == Continue("exact", 7)
    assert spend(Budget(balance=-30.0), 0.0) == (Budget(balance=-30.0), float("inf"))
    assert spend(Budget(per_second=0.0, balance=0.5), 0.0)[1] == float("inf")
    assert spend(Budget(per_second=0.0, balance=1.5), 0.0)[1] == 0.0


def test_a_stream_that_breaks_again_and_again_waits_ever_longer_on_other_weights_too():
    going_on = Policy(on_mismatch="continue")
    waits = [
        decide(replace(FIRST, number=number, deadline=99.0, policy=going_on), replace(DIED, left=left), 7).after
        for left in ("same", "other")
        for number in (1, 4, 5, 6, 15)
    ]
    assert waits == [0.0, 0.0, 0.5, 1.0, 4.0] * 2


def test_streams_that_break_leave_the_budget_to_requests_that_have_not_begun():
    budget, now = Budget(), 0.0
    for request in range(3000):
        now = request / 10
        budget = earn(budget, now)
        action, budget = recover(replace(FIRST, deadline=now + 60), DIED, 7, now, budget)
        assert action == Continue("exact", 7)
    assert recover(replace(FIRST, deadline=now + 60), DIED, 0, now, budget) == (Retry(), budget._replace(balance=29.0))


def test_what_is_earned_and_what_costs_nothing():
    assert earn(Budget(balance=0.0), 1000.0).balance == 30.0
    assert earn(Budget(balance=0.0), 0.0, requests=10).balance == 2.0
    assert recover(FIRST, Failure("overloaded"), 0, 0.0, Budget(balance=3.0))[1].balance == 3.0
    assert recover(FIRST, DIED, 0, 0.0, Budget(balance=3.0))[1].balance == 2.0


WORDS = ["", "a", "b", "ab", "é", " the", "世界", "\n", "{", "}"]
TOKENS = st.lists(st.integers(0, len(WORDS) - 1), max_size=30)


def said(ids: list[int] | tuple[int, ...]) -> str:
    return "".join(WORDS[i] for i in ids)


def pieces(data: st.DataObject, ids: list[int]) -> list[tuple[int, ...]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [tuple(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@given(st.data(), TOKENS, st.integers(0, 30), st.booleans())
def test_what_was_sent_and_what_is_fresh_make_the_unbroken_answer(data, answer, cut, with_ids):
    sent = tuple(answer[:cut])
    verifier = Verifier(sent if with_ids else None, {"content": said(sent)})
    text, ids = said(sent), list(sent)
    for piece in pieces(data, answer):
        verifier, fresh = verifier.feed(piece if with_ids else None, said(piece))
        assert isinstance(fresh, Fresh)
        text += fresh.text
        ids += fresh.ids or ()
    assert verifier.done
    assert verifier.end() is None
    assert text == said(answer)
    assert not with_ids or ids == answer


@given(st.data(), st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=30), st.integers(1, 30))
def test_the_first_difference_is_found_and_nothing_after_it_passes(data, answer, cut):
    sent = answer[:cut]
    at = data.draw(st.integers(0, len(sent) - 1))
    other = list(answer)
    other[at] = data.draw(st.integers(0, len(WORDS) - 1).filter(lambda t: t != answer[at]))
    verifier = Verifier(tuple(sent), {"content": said(sent)})
    for piece in pieces(data, other):
        verifier, fresh = verifier.feed(piece, said(piece))
        if isinstance(fresh, Differs):
            assert fresh.at == at
            break
        assert (fresh.ids, fresh.text) == ((), "")
    assert isinstance(fresh, Differs)


@given(st.data(), TOKENS, TOKENS)
def test_without_ids_text_that_differs_never_passes(data, sent, other):
    """What passes is always what follows the sent text in an answer that begins with it."""
    verifier, passed, fresh = Verifier(None, {"content": said(sent)}), "", None
    for piece in pieces(data, other):
        verifier, fresh = verifier.feed(None, said(piece))
        if isinstance(fresh, Differs):
            assert said(sent)[: fresh.char] == said(other)[: fresh.char]
            assert said(sent)[fresh.char] != said(other)[fresh.char]
            return
        passed += fresh.text
    if verifier.end() is None:
        assert said(sent) + passed == said(other)
    else:
        assert passed == ""
        assert said(sent).startswith(said(other))
        assert said(sent) != said(other)


def test_a_conversation_with_reasoning_and_an_answer():
    verifier = Verifier((1, 2, 3), {"reasoning_content": "hmm", "content": "So"})
    verifier, fresh = verifier.feed((1, 2), "hmm", "reasoning_content")
    assert fresh == Fresh((), "")
    verifier, fresh = verifier.feed((3, 4), "So it", "content")
    assert fresh == Fresh((4,), " it")
    assert verifier.done


def test_an_answer_that_ends_early_differs():
    verifier, _ = Verifier((1, 2, 3), {"content": "abc"}).feed((1, 2), "ab")
    assert verifier.end() == Differs(2, 2, "3 tokens were sent, but the answer ended after 2")


def test_tokens_without_text_must_come_again_too():
    verifier, fresh = Verifier((7, 7)).feed((7,), "")
    assert (fresh, verifier.done) == (Fresh((), ""), False)
    assert verifier.end() is not None
    assert verifier.feed((7, 8), "x")[1] == Fresh((8,), "x")


def test_same_ids_with_another_text_differ():
    _, found = Verifier((1, 2), {"content": "ab"}).feed((1, 2), "aB")
    assert found == Differs(0, 1, "'content' differs at 1")


def test_a_piece_without_ids_makes_it_a_check_of_text():
    verifier = Verifier((1, 2), {"content": "ab"})
    verifier, fresh = verifier.feed(None, "a")
    assert fresh == Fresh(None, "")
    verifier, fresh = verifier.feed((2, 3), "bc")
    assert fresh == Fresh(None, "c")
    assert verifier.feed((4,), "d")[1] == Fresh((4,), "d")


def test_hedging_is_off_unless_asked_for_and_never_in_the_past():
    assert hedge(5.0, 5.0, 0.2, Hedging()) is None
    on = Hedging(enabled=True, factor=3.0, least=0.25)
    assert hedge(5.0, 5.0, 0.2, on) == pytest.approx(5.6)
    assert hedge(5.0, 5.0, 0.01, on) == 5.25
    assert hedge(9.0, 5.0, 0.2, on) == 9.0
