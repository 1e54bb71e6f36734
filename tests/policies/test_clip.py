"""The clip of updates: a standing bound, or the answer to a burst."""

from __future__ import annotations

import math

import pytest

from foreshock.errors import UsageError
from foreshock.policies import ClipUpdate, Sight, clip_update
from tests.policies.scripts import answered, event

BURST = event(300, "precursor", "grad_norm", ratio=30.0)


def test_without_on_it_bounds_every_step():
    for sight in ([], Sight(), Sight((event(300),), 300), [BURST]):
        answer = clip_update(0.5)(sight, [])
        assert isinstance(answer, ClipUpdate)
        assert answer.limit == 0.5
        assert answer.reason


def test_with_on_it_answers_these_events_alone():
    policy = clip_update(on="precursor", signal="grad_norm")
    answer = answered(policy, [(300, BURST)])[0]
    assert (answer.kind, answer.cause) == ("clip_update", BURST.key)
    assert "30 times its level" in answer.reason
    for other in (event(300), event(300, "precursor", "lr")):
        assert answered(policy, [(300, other)])[0].kind == "proceed"
    assert answered(clip_update(on=("spike", "precursor")), [(300, event(300))])[0].kind == "clip_update"


def test_what_is_not_finite_is_refused():
    for policy in (clip_update(), clip_update(on="precursor")):
        assert answered(policy, [(300, event(300, "nonfinite"))])[0].kind == "skip"


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_a_senseless_limit_is_named(limit):
    with pytest.raises(UsageError, match="clip_update: limit="):
        clip_update(limit)


def test_an_unknown_kind_of_event_is_named_with_those_there_are():
    with pytest.raises(UsageError, match="on: no event is called burst; the kinds of events are nonfinite, spike"):
        clip_update(on="burst")
    with pytest.raises(UsageError, match="on: no event is called nothing"):
        clip_update(on=())
