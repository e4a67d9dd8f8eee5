"""A key's policy as text: what goes in comes out, and nothing that is not understood gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.places import Residency
from atoll.core.types import Policy
from atoll.store.policies import policy_text, read_policy

names = st.lists(st.text(min_size=1), max_size=4).map(tuple)
residencies = st.builds(Residency, names, names, st.sampled_from(["reject", "queue"]))
grades = st.sampled_from(["exact", "fast", "hot", "none"])
mismatches = st.sampled_from(["fail", "continue", "restart"])


@given(st.builds(Policy, residencies, grades, mismatches, st.integers(0, 9)))
def test_a_policy_comes_back_as_it_was(policy: Policy):
    assert read_policy(policy_text(policy)) == policy


def test_what_is_missing_has_its_default():
    assert read_policy("{}") == Policy()
    told = '{"residency": {"store_in": ["eu"]}, "priority": 0}'
    assert read_policy(told) == Policy(Residency((), ("eu",)), priority=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unexpected end|empty|EOF"),
        ("[]", "the policy must be an object with only on_mismatch, priority, recovery, residency"),
        ('{"colour": "red"}', "the policy must be an object with only"),
        ('{"residency": null}', "residency must be an object"),
        ('{"residency": {"in": []}}', "residency must be an object with only on_unavailable, process_in, store_in"),
        ('{"residency": {"process_in": "eu"}}', "process_in must be a list of names"),
        ('{"residency": {"store_in": [""]}}', "store_in must be a list of names"),
        ('{"residency": {"on_unavailable": "wait"}}', "on_unavailable must be one of reject, queue, not 'wait'"),
        ('{"recovery": "quick"}', "recovery must be one of exact, fast, hot, none, not 'quick'"),
        ('{"on_mismatch": []}', "on_mismatch must be one of fail, continue, restart"),
        ('{"priority": 10}', "priority must be a whole number from 0 to 9, not 10"),
        ('{"priority": true}', "priority must be a whole number"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_policy(text)
