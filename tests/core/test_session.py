"""A session of a policy and a robot: conversations, and a machine that looks for an order of events that lets an action
leave its limits, or the policy move what was stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.core.errors import InvalidRequest
from atoll.core.manifest import ActionLimits, Channel, Manifest
from atoll.core.session import (
    Act,
    Agreed,
    Command,
    Ended,
    Event,
    Infer,
    Inferred,
    Latch,
    Observed,
    Refuse,
    Released,
    Session,
    Stopped,
    Ticked,
    rules_of,
    step,
    token_digest,
)

LIMITS = ActionLimits(low=(-1.0,), high=(1.0,), velocity=(2.0,), acceleration=(20.0,))
MANIFEST = Manifest("reach", "mlp", 50.0, (Channel("q", 1),), (Channel("q", 1, "rad"),), limits=LIMITS)
HOME = replace(MANIFEST, safe=(0.25,))
DT = 0.02
STOP = Latch(token_digest("secret"), "kim", "a hand in the way", 1.0)


class Talk:
    """A session told one event after another. `now` is our clock; the client's is 100 s behind and 1 ms away."""

    def __init__(self, manifest: Manifest = MANIFEST, **seconds: float) -> None:
        self.session = Session(rules_of(manifest, **seconds))
        self.now = 1000.0

    def tell(self, event: Event) -> list[Command]:
        return step(self.session, event)

    def see(self, seq: int, after: float = DT, **how: Any) -> list[Command]:
        self.now += after
        return self.tell(Observed(seq, self.now - 100 - how.pop("late", 0.001), self.now, **how))

    def infer(self, seq: int, *actions: float, after: float = 0.001) -> Any:
        self.now += after
        said = self.tell(Inferred(seq, [(action,) for action in actions] or None, self.now))
        return said[0] if len(said) == 1 else said

    def act(self, seq: int, action: float, **how: Any) -> Act:
        """One whole turn."""
        (asked,) = self.see(seq, **how)
        assert isinstance(asked, Infer), asked
        done = self.infer(seq, action)
        assert isinstance(done, Act), done
        return done


def agreed(manifest: Manifest = MANIFEST, **seconds: float) -> Talk:
    talk = Talk(manifest, **seconds)
    assert talk.tell(Agreed()) == []
    return talk


def test_a_conversation():
    talk = agreed()
    assert talk.see(1, deadline=0.01) == [Infer(1, pytest.approx(talk.now + 0.01))]
    done = talk.infer(1, 0.5)
    assert done == Act(1, talk.session.time, ((0.5,),))
    done = talk.act(2, 0.504)
    assert done.actions == ((0.504,),)


def test_nothing_moves_before_somebody_agrees():
    talk = Talk()
    (refused,) = talk.see(1)
    assert isinstance(refused, Refuse)
    assert refused.code == "consent_required"
    talk.tell(Agreed())
    assert talk.act(2, 0.5).safe == ""


def test_what_comes_out_of_order_is_refused():
    talk = agreed()
    talk.act(5, 0.5)
    (again,) = talk.see(5)
    (older,) = talk.see(4)
    (earlier,) = talk.see(6, late=10.0)
    assert [r.code for r in (again, older, earlier)] == ["out_of_order"] * 3
    assert talk.act(7, 0.5).safe == ""


def test_a_stale_observation_is_answered_with_safety():
    talk = agreed(max_age=0.1)
    talk.act(1, 0.5)
    (done,) = talk.see(2, after=0.3, late=0.2)
    assert isinstance(done, Act)
    assert (done.seq, done.safe, done.actions[-1]) == (2, "stale", (0.5,))


def test_clocks_that_drift_apart_make_nothing_stale():
    talk = agreed(max_age=0.1)
    for seq in range(1, 400):
        assert talk.act(seq, 0.0, after=10.0, late=0.001 + seq * 10.0 * 5e-5).safe == ""


def test_a_simulation_may_stand_still():
    talk = Talk()
    talk.tell(Agreed(simulated=True))
    talk.act(1, 0.5)
    assert talk.act(2, 0.5, after=60.0, late=59.0).safe == ""
    assert talk.session.wake() is None


def test_a_late_answer_is_not_carried_out():
    talk = agreed(HOME)
    talk.act(1, 0.5)
    talk.see(2, deadline=0.005)
    (done,) = talk.tell(Ticked(talk.now + 0.005))
    assert (done.seq, done.safe) == (2, "deadline")
    assert done.actions[-1] == (0.25,)
    assert talk.infer(2, -0.5, after=0.01) == []
    assert talk.act(3, 0.45).safe == ""


def test_the_newest_observation_wins_and_the_others_are_told():
    talk = agreed()
    talk.act(1, 0.0)
    talk.see(2)
    assert talk.see(3, after=0.001) == []
    assert talk.see(4, after=0.001) == []
    done, asked = talk.infer(2, 0.01)
    assert (done.seq, done.dropped) == (2, (3,))
    assert asked.seq == 4
    done = talk.infer(4, 0.01)
    assert (done.seq, done.dropped) == (4, ())


def test_a_policy_that_hangs_gets_nothing_more_to_do():
    talk = agreed(deadline=0.1)
    talk.see(1)
    assert talk.tell(Ticked(talk.now + 0.1))[0].safe == "deadline"
    talk.now += 0.1
    assert talk.see(2) == []
    assert talk.tell(Ticked(talk.now + 0.1))[0].seq == 2
    assert talk.session.wake() is None
    assert talk.infer(1, 0.5, after=1.0) == []
    assert talk.act(3, 0.5).safe == ""


def test_a_policy_that_fails_is_made_up_for():
    talk = agreed()
    talk.act(1, 0.5)
    talk.see(2)
    assert talk.infer(2).safe == "policy_failed"


def test_the_watchdog_brings_the_robot_to_rest_and_then_rests_itself():
    talk = agreed(watchdog=0.2)
    talk.act(1, 0.0)
    talk.act(2, 0.008)
    talk.act(3, 0.024)
    assert talk.session.wake() == pytest.approx(talk.now + 0.2)
    assert talk.tell(Ticked(talk.now + 0.1)) == []
    (done,) = talk.tell(Ticked(talk.now + 0.2))
    assert (done.seq, done.safe) == (None, "watchdog")
    assert done.actions[0] > (0.024,)
    assert talk.session.plan.motions[-1].velocity == (0.0,)
    assert talk.session.wake() is None


def test_a_stop_is_at_once_and_holds_until_its_token():
    talk = agreed()
    talk.act(1, 0.0)
    talk.act(2, 0.008)
    talk.see(3)
    (done,) = talk.tell(Stopped(STOP, talk.now))
    assert (done.seq, done.safe) == (3, "stopped")
    assert talk.infer(3, 0.9) == []
    (done,) = talk.see(4)
    assert done.safe == "stopped"
    assert talk.tell(Released("guess", talk.now)) == []
    assert talk.see(5)[0].safe == "stopped"
    talk.tell(Released("secret", talk.now))
    assert talk.see(6)[0].code == "consent_required"
    talk.tell(Agreed())
    assert talk.act(7, 0.01).safe == ""


def test_one_that_polls_is_stopped_by_the_next_answer_from_where_it_is():
    talk = Talk(replace(MANIFEST, chunk=50), watchdog=0.2)
    talk.tell(Agreed(polls=True))
    talk.see(1, measured=(0.0,))
    told = talk.infer(1, *[1.0] * 50)
    assert len(told.actions) == 10, "no more than the watchdog's time"
    assert talk.session.wake() is None
    talk.now += DT
    assert talk.tell(Stopped(STOP, talk.now)) == []
    (held,) = talk.see(2, after=9 * DT)
    assert (held.seq, held.safe) == (2, "stopped")
    assert held.actions[0] > told.actions[-1]
    assert held.actions[0] == pytest.approx(told.actions[-1], abs=2.0 * DT)


def test_a_stop_answers_the_one_that_waits_behind_a_late_answer():
    talk = agreed()
    talk.act(1, 0.0)
    talk.see(2, deadline=0.005)
    talk.tell(Ticked(talk.now + 0.005))
    assert talk.see(3) == []
    (done,) = talk.tell(Stopped(STOP, talk.now))
    assert (done.seq, done.safe, done.dropped) == (3, "stopped", ())


def test_a_session_that_is_ended_leaves_the_robot_at_rest():
    talk = agreed()
    assert talk.tell(Ended(talk.now)) == []
    talk.tell(Agreed())
    talk.act(1, 0.0)
    talk.act(2, 0.008)
    (done,) = talk.tell(Ended(talk.now))
    assert (done.seq, done.safe) == (None, "ended")
    assert done.actions[-1] > (0.008,)
    assert talk.see(3)[0].code == "consent_required"


def test_a_session_that_begins_while_stopped_is_stopped():
    talk = Talk()
    talk.session.latch = STOP
    talk.tell(Agreed())
    (done,) = talk.see(1)
    assert (done.safe, len(done.actions)) == ("stopped", 0)


def test_the_first_action_starts_where_the_robot_is():
    talk = agreed()
    talk.see(1, measured=(-0.5,))
    done = talk.infer(1, 0.5)
    assert done.actions[0] == pytest.approx((-0.5 + 20.0 * DT * DT,))
    assert [hit.limit for hit in done.hits] == ["velocity"]


def test_a_chunk_goes_on_from_the_action_that_was_reached():
    talk = agreed(replace(MANIFEST, chunk=4))
    talk.see(1, measured=(0.0,))
    first = talk.infer(1, 0.008, 0.024, 0.04, 0.056)
    talk.see(2, after=2 * DT - 0.001)
    second = talk.infer(2, 9, 9, 9, 9)
    (one,), (two,) = first.actions[:2]
    assert second.actions[0] == pytest.approx((two + ((two - one) / DT + 20.0 * DT) * DT,))


def test_asking_faster_than_the_rate_does_not_move_faster():
    talk = agreed()
    talk.see(1, measured=(0.0,))
    talk.infer(1, 0.0)
    moved = [talk.act(seq, 1.0, after=0.001).actions[0][0] for seq in range(2, 102)]
    assert moved[-1] <= 100 * 0.002 * 2.0 + 1e-9


@pytest.mark.parametrize("safe", [(0.0, 0.0), (2.0,)])
def test_a_safe_action_that_makes_no_sense_is_refused(safe: tuple[float, ...]):
    with pytest.raises(InvalidRequest, match="safe"):
        rules_of(replace(MANIFEST, safe=safe))


class Machine(RuleBasedStateMachine):
    """Any order of events, any action asked for, any clock that does not go backwards."""

    @initialize(safe=st.sampled_from([(), (0.25,)]), chunk=st.integers(1, 3))
    def start(self, safe: tuple[float, ...], chunk: int) -> None:
        manifest = replace(MANIFEST, safe=safe, chunk=chunk)
        self.session = Session(rules_of(manifest, max_age=0.1, watchdog=0.1, deadline=0.05))
        self.now, self.seq, self.tokens = 10.0, 0, 0
        self.stopped: str | None = None
        self.asked: set[int] = set()
        self.owed: set[int] = set()
        self.last: Act | None = None

    def tell(self, event: Event) -> None:
        fresh = self.session.fresh
        for command in step(self.session, event):
            match command:
                case Infer(seq=seq):
                    assert self.stopped is None
                    assert not self.asked, "two inferences at once"
                    self.asked = {seq}
                case Act():
                    self.answer(command.seq, *command.dropped)
                    self.check(command, moved=not fresh)
                case Refuse():
                    self.answer(command.seq)

    def answer(self, *seqs: int | None) -> None:
        for seq in seqs:
            if seq is not None:
                assert seq in self.owed, "answered twice"
                self.owed.remove(seq)

    def check(self, act: Act, moved: bool) -> None:
        """Within the limits, from one action to the next, and from the one that was reached to the first."""
        assert self.stopped is None or act.safe == "stopped"
        told = np.reshape(act.actions, -1)
        assert (np.abs(told) <= 1).all()
        speeds = np.diff(told) / DT
        assert (np.abs(speeds) <= 2.0 + 1e-9).all()
        assert (np.abs(np.diff(speeds)) <= 20.0 * DT + 1e-6).all()
        if self.last is not None and moved:
            assert abs(told[0] - self.reached(act.time)) <= 2.0 * DT + 1e-9
        self.last = act if act.actions else None

    def reached(self, time: float) -> float:
        """What the robot was told to do at `time`. It begins with the first action, however late it hears of it."""
        begun = [i for i in range(len(self.last.actions)) if i == 0 or self.last.time + i * DT <= time + 0.1 * DT]
        return self.last.actions[begun[-1]][0]

    @rule(after=st.floats(0.0001, 0.2), late=st.floats(0, 0.2), measured=st.none() | st.floats(-2, 2))
    def observe(self, after: float, late: float, measured: float | None) -> None:
        self.now += after
        self.seq += 1
        self.owed.add(self.seq)
        where = None if measured is None else (measured,)
        self.tell(Observed(self.seq, self.now - late, self.now, 0.04, where))

    @precondition(lambda self: self.asked)
    @rule(after=st.floats(0, 0.1), actions=st.lists(st.floats(width=32), min_size=1, max_size=3))
    def infer(self, after: float, actions: list[float]) -> None:
        self.now += after
        (seq,), self.asked = self.asked, set()
        self.tell(Inferred(seq, [(action,) for action in actions], self.now))

    @precondition(lambda self: self.asked)
    @rule()
    def fail(self) -> None:
        (seq,), self.asked = self.asked, set()
        self.tell(Inferred(seq, None, self.now))

    @rule(after=st.floats(0, 0.3))
    def tick(self, after: float) -> None:
        self.now += after
        self.tell(Ticked(self.now))

    @rule(polls=st.booleans())
    def agree(self, polls: bool) -> None:
        self.tell(Agreed(polls=polls))

    @rule()
    def stop(self) -> None:
        self.tokens += 1
        self.stopped = f"token {self.tokens}"
        self.tell(Stopped(Latch(token_digest(self.stopped), "kim", "", self.now), self.now))

    @rule(right=st.booleans())
    def release(self, right: bool) -> None:
        token = (self.stopped if right else f"token {self.tokens - 1}") or "none"
        self.tell(Released(token, self.now))
        self.stopped = None if right else self.stopped

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Whatever was not answered is with the policy, waits, or was replaced and will be told."""
        if not hasattr(self, "session"):
            return
        held = {o.seq for o in (self.session.waiting,) if o is not None} | set(self.session.replaced)
        if self.session.asked is not None and not self.session.late:
            held.add(self.session.asked.seq)
        assert self.owed == held
        assert (self.session.latch is None) == (self.stopped is None)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
