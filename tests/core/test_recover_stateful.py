"""One answer whose regions fail in any way, at any token, any number of times: `recover` decides and `Verifier` checks,
as the gateway has them do, and what the client holds is compared with the unbroken answer."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_recover import FAILURES

from atoll.core.places import Residency
from atoll.core.recover import Attempt, Budget, Continue, Differs, Failure, GiveUp, Restart, Retry, Verifier, recover
from atoll.core.types import Policy

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=12)
running = precondition(lambda self: not self.over)


def said(ids: list[int] | tuple[int, ...]) -> str:
    return "".join(map(str, ids))


class Stream(RuleBasedStateMachine):
    """`serving` is what the region at work makes in all, `sent` what the client has of it. `drifted` and `restarted`
    say that it is no longer the answer which was begun."""

    @initialize(
        answer=TOKENS, other=TOKENS, structured=st.booleans(), waits=st.booleans(), balance=st.floats(-30, 30),
        grade=st.sampled_from(["exact", "fast", "hot", "none"]),
        mismatch=st.sampled_from(["fail", "continue", "restart"]),
    )  # fmt: skip
    def begin(self, answer, other, structured, waits, balance, grade, mismatch):
        self.policy = Policy(Residency((), (), "queue" if waits else "reject"), grade, mismatch)
        self.answer = self.serving = answer
        self.other = other
        self.sent: list[int] = []
        self.before = self.fruitless = 0
        self.now = 10.0
        self.over = self.restarted = False
        self.budget = Budget(balance=balance, at=self.now)
        self.attempt = Attempt(0, 110.0, self.policy, structured=structured, standby=grade == "hot")

    @running
    @rule(more=st.integers(1, 4))
    def tokens(self, more: int):
        self.sent = self.serving[: len(self.sent) + more]
        self.over = len(self.sent) == len(self.serving)

    @running
    @rule(failure=FAILURES, after=st.floats(0, 5), differs=st.booleans(), tail=TOKENS)
    def fails(self, failure: Failure, after: float, differs: bool, tail: list[int]):
        """`differs`: the region that makes the answer again makes another one. `tail`: how `fast` goes on."""
        self.now += after
        self.fruitless = 1 if len(self.sent) > self.before else self.fruitless + 1
        self.before = len(self.sent)
        self.attempt = replace(self.attempt, number=self.fruitless)
        action, budget = recover(self.attempt, failure, len(self.sent), self.now, self.budget)
        assert -budget.most <= budget.balance <= budget.most
        if failure.kind == "overloaded" or isinstance(action, GiveUp):
            assert budget == self.budget, "to be refused and to give up cost nothing"
        self.budget = budget
        if isinstance(action, GiveUp):
            self.over = True
            return
        assert self.fruitless < (self.attempt.max_resumes if self.sent else self.attempt.max_attempts)
        assert failure.kind not in ("gone", "request")
        self.now += action.after
        assert self.now < self.attempt.deadline
        if isinstance(action, Retry):
            assert not self.sent, "nothing is asked anew behind a client that has tokens"
        elif isinstance(action, Restart):
            assert self.policy.on_mismatch == "restart"
            self.sent, self.serving, self.before, self.restarted = [], self.other, 0, True
            self.attempt = replace(self.attempt, drifted=False)
        else:
            self.onward(action, differs, tail)

    def onward(self, action: Continue, differs: bool, tail: list[int]):
        assert action.from_token == len(self.sent)
        assert not self.sent or self.policy.recovery != "none"
        assert self.attempt.standby if action.grade == "hot" else True
        self.attempt = replace(self.attempt, standby=False)
        if action.grade == "fast":
            assert not self.attempt.structured, "the state of a schema or a tool call cannot be carried over"
            assert action.same_weights or self.policy.on_mismatch == "continue"
            self.serving = self.sent + (tail if action.same_weights else self.other)
            self.attempt = replace(self.attempt, drifted=True)
            return
        assert action.same_weights
        if not self.attempt.drifted:
            self.made_again(differs)

    def made_again(self, differs: bool):
        """Only what is new reaches the client; one that differs in what was sent never adds a token."""
        again = list(self.serving)
        if differs and self.sent:
            again[len(self.sent) // 2] += 1
        verifier, passed = Verifier(tuple(self.sent), {"content": said(self.sent)}), []
        for token in again:
            verifier, found = verifier.feed((token,), said([token]))
            if isinstance(found, Differs):
                assert differs and not passed
                self.fails(Failure("mismatch"), 0.0, False, again)
                return
            passed += found.ids or ()
        assert not (differs and self.sent) and self.sent + passed == self.serving

    @precondition(lambda self: self.over)
    @rule()
    def ends(self):
        """It stays as it is."""

    @invariant()
    def no_token_is_lost_doubled_or_changed(self):
        if hasattr(self, "sent"):
            assert self.sent == self.serving[: len(self.sent)]
            if not self.attempt.drifted:
                assert self.serving == (self.other if self.restarted else self.answer)


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
