"""The public contract of policies: the shipped ones keep it, and each known way to break it is named."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest

from foreshock import policies
from foreshock.policies import (
    Action,
    CutLr,
    Floor,
    Proceed,
    Rollback,
    Scale,
    Skip,
    Stop,
    capped,
    cooldown,
    first_of,
    floor,
    ling,
    only,
    palm,
    refuse_nonfinite,
)
from foreshock.testing import ContractError, check_policy


@pytest.mark.parametrize(
    "policy",
    [
        ling(),
        ling(retry=True, scales=(0.3,), wide=3, cooldown=0, most=0.03, gradients=False),
        palm(),
        palm(back=20, skip=30, on=("spike", "divergence")),
        floor(at="watch"),
        policies.clip_update(),
        policies.clip_update(on="precursor", signal="grad_norm"),
        first_of(floor(), ling(), policies.clip_update(on="precursor")),
        cooldown(ling(), 10),
    ],
    ids=("ling", "ling retry", "palm", "palm small", "floor", "clip", "clip on", "first of", "cooldown"),
)
def test_shipped_policies_keep_the_contract(policy):
    check_policy(policy)


def test_a_function_of_ones_own_keeps_it_with_a_cap_and_what_refuses_nan():
    def mine(events, actions):
        return Skip(reason="a spike") if any(event.kind == "spike" for event in events) else Proceed()

    check_policy(first_of(refuse_nonfinite(), capped(mine, 10, 1000)))
    with pytest.raises(ContractError, match=r"non-finite: .* return Skip, or put foreshock.policies.refuse_nonfinite"):
        check_policy(mine)
    with pytest.raises(ContractError, match=r"ends: in a world where every attempt .* is bad, .*policies\.capped"):
        check_policy(first_of(refuse_nonfinite(), mine))


def test_one_that_stops_at_once_keeps_it():
    check_policy(lambda events, actions: Stop(reason="something is wrong") if events else Proceed())


def guarded(answer):
    """Returns a policy that answers spikes so, and what is not finite as it should."""
    return first_of(refuse_nonfinite(), lambda events, actions: answer(events, actions) if events else Proceed())


class Counts:
    """Skips every third time it is asked."""

    asked = 0

    def __call__(self, events, actions):
        self.asked += 1
        return Skip(reason="the third") if events and self.asked % 3 == 0 else Proceed()


class Odd(Action):
    kind = "odd"


def draws(events, actions):
    return Skip(reason="heads") if random.random() < 0.5 else Proceed()


def ranks(events, actions):
    return Scale(factor=0.5) if os.environ.get("RANK") == "1" else Proceed()


def empties(events, actions):
    if isinstance(events, list):
        events.clear()
    return Proceed()


def forgets(events, actions):
    if isinstance(actions, list):
        actions.clear()
    return Proceed()


class Fine(float):
    """A number that JSON makes an ordinary one, and that looks different until then."""

    __hash__ = float.__hash__

    def __eq__(self, other):
        return isinstance(other, Fine) and float(self) == float(other)


def by_identity(events, actions):
    """Knows what it made itself, which nobody does who reads the past from a file."""
    if any(getattr(past, "factor", None) is HALF for past in actions):
        return Proceed()
    return Scale(factor=HALF)


HALF = 0.5 + 0.0


def twice_back(events, actions):
    return Rollback(before=0)


@pytest.mark.parametrize(
    ("policy", "clause"),
    [
        (lambda events, actions: None, "answers: None to no event; a policy returns an Action"),
        (lambda events, actions: Odd() if events else Proceed(), "answers: unknown kind 'odd'"),
        (guarded(lambda events, actions: Scale(factor=0.0)), "answers: its number must be finite and above 0"),
        (guarded(lambda events, actions: CutLr(factor=math.nan)), "answers: its number must be finite"),
        (guarded(lambda events, actions: Scale(factor=1.5)), "answers: a factor above 1"),
        (guarded(lambda events, actions: CutLr(factor=0.5, steps=0)), "answers: it must last at least 1 step"),
        (guarded(lambda events, actions: Rollback(before=10**9)), "answers: it goes back to a step that is still to"),
        (guarded(lambda events, actions: Stop()), "answers: a stop must give its reason"),
        (guarded(lambda events, actions: Floor(kappa=Fine(0.9))), "answers: .* is another one"),
        (guarded(lambda events, actions: Skip(reason=b"why")), "answers: .* cannot be written to JSON"),
        (lambda events, actions: Proceed() if len(events) < 1 else Skip(reason=events[0].data["width"]), "survives: "),
        (guarded(lambda events, actions: Skip(data="drop" if events[0].severity + 0 else 1 // 0)), "survives: .*Zero"),
        (lambda events, actions: Proceed(), "non-finite: Proceed.* takes the step and says nothing"),
        (lambda events, actions: Scale(factor=0.1) if events else Proceed(), "non-finite: Scale"),
        (guarded(Counts()), "pure: the same events"),
        (guarded(draws), "pure: the same events"),
        (guarded(empties), "pure: the policy changed"),
        (guarded(forgets), "pure: the policy changed"),
        (guarded(ranks), "ranks: rank 0 answered"),
        (first_of(refuse_nonfinite(), lambda events, actions: Scale(factor=0.9)), "calm: Scale"),
        (guarded(by_identity), "ranks|resumes: in a world where every attempt"),
        (guarded(twice_back), "ends: in a world where every attempt from step 200 on is bad, the last"),
        (guarded(lambda events, actions: Skip(reason="no") if actions else ling()(events, actions)), "ends: "),
    ],
)
def test_each_broken_clause_is_named(policy, clause):
    with pytest.raises(ContractError, match=clause):
        check_policy(policy)


def test_a_standing_bound_may_act_without_events():
    check_policy(first_of(refuse_nonfinite(), lambda events, actions: Floor(kappa=0.9)))


def test_what_is_shown_spikes_alone_lets_nan_pass_and_is_told_so():
    with pytest.raises(ContractError, match="non-finite"):
        check_policy(only(palm(), on="spike"))


def test_the_check_leaves_the_environment_and_the_random_stream_alone():
    before, stream = dict(os.environ), random.getstate()
    check_policy(palm())
    assert dict(os.environ) == before
    assert random.getstate() == stream


def test_the_contract_of_policies_needs_no_torch():
    code = """
import sys
sys.modules["torch"] = None
from foreshock.policies import floor
from foreshock.testing import check_policy
check_policy(floor())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
