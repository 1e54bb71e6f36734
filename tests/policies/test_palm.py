"""The rule of PaLM: back a hundred steps, two hundred batches left out, once for a cause, and not for ever."""

from __future__ import annotations

import pytest

from foreshock.errors import UsageError
from foreshock.policies import palm
from tests.policies.scripts import answered, event, words

RING = tuple(range(0, 20000, 40))


def test_it_goes_to_the_newest_snapshot_from_a_hundred_steps_before_the_onset():
    answer = answered(palm(), [(450, event(450, onset=445))], snapshots=RING)[0]
    assert (answer.kind, answer.before, answer.skip) == ("rollback", 320, 200)
    assert answer.cause == ("spike", "loss", 450)


def test_where_no_snapshot_is_so_old_it_goes_to_the_oldest_from_before_the_onset():
    assert words(answered(palm(), [(60, event(60))], snapshots=(10, 30, 60))) == ["rollback 10"]


def test_without_any_it_says_so_and_takes_the_step():
    answer = answered(palm(), [(60, event(60))], snapshots=(60,))[0]
    assert answer.kind == "proceed"
    assert "no snapshot from before step 60" in answer.reason


def test_it_does_not_go_back_twice_for_one_cause():
    answers = answered(palm(), [(450, event(450)), (651, event(450, records=2))], snapshots=RING)
    assert [each.kind for each in answers] == ["rollback", "proceed"]
    assert "no help" in answers[1].reason


def test_it_gives_up_after_three_rewinds_of_different_causes_in_a_while():
    attempts = [(step, event(step)) for step in range(1000, 3000, 250)]
    answers = answered(palm(), attempts, snapshots=RING)
    assert [each.kind for each in answers] == ["rollback"] * 3 + ["proceed"] * 5
    assert answered(palm(), [(9000, event(9000))], snapshots=RING, past=answers)[0].kind == "rollback"


def test_what_is_not_finite_is_gone_back_from_and_then_stops_the_training():
    nan = event(450, "nonfinite", "grad_norm")
    assert [each.kind for each in answered(palm(), [(450, nan), (651, nan)], snapshots=RING)] == ["rollback", "stop"]
    assert answered(palm(), [(450, nan)])[0].kind == "stop"
    assert answered(palm(on="spike"), [(450, nan)], snapshots=RING)[0].kind == "rollback"


def test_of_plain_events_nobody_knows_the_snapshots():
    assert palm(back=30)([event(450, onset=440)], []).before == 410


def test_other_events_are_let_pass_unless_they_are_asked_for():
    burst = event(450, "precursor", "grad_norm")
    assert answered(palm(), [(450, burst)], snapshots=RING)[0].kind == "proceed"
    asked = palm(back=20, skip=30, on=("spike", "precursor"))
    assert words(answered(asked, [(450, burst)], snapshots=RING)) == ["rollback 400"]


@pytest.mark.parametrize(
    ("given", "named"), [({"back": 0}, "back=0"), ({"skip": -1}, "skip=-1"), ({"on": "wobble"}, "wobble")]
)
def test_senseless_settings_are_named(given, named):
    with pytest.raises(UsageError, match=named):
        palm(**given)
