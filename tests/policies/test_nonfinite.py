"""What is not finite is never taken: skipped, put away, gone back from, and in the end a stop."""

from __future__ import annotations

import pytest

from foreshock.policies import Sight, refuse_nonfinite
from tests.policies.scripts import answered, event, row, words

RING = (100, 180, 260, 290, 300)


def nan(step: int, signal: str = "grad_norm"):
    return event(step, "nonfinite", signal)


def test_a_batch_is_tried_once_more_and_then_put_away():
    later = answered(refuse_nonfinite(), [(300, nan(300), 0), (350, nan(350), 1)])
    assert words(later) == ["skip requeue", "skip quarantine"]
    at_once = answered(refuse_nonfinite(retry=True), row(2, kind="nonfinite"))
    assert words(at_once) == ["skip retry", "skip quarantine"]


def test_parameters_that_are_not_finite_are_gone_back_from_at_once():
    answers = answered(refuse_nonfinite(), row(4, kind="nonfinite", signal="parameters"), snapshots=RING)
    assert words(answers) == ["rollback 290", "rollback 180", "stop", "stop"]
    assert "parameters are not finite" in answers[0].reason


def test_parameters_that_are_not_finite_stop_a_training_without_snapshots():
    assert answered(refuse_nonfinite(), [(300, nan(300, "parameters"))])[0].kind == "stop"


def test_the_parameters_come_first_where_several_things_are_not_finite():
    sight = Sight((nan(300, "loss"), nan(300, "parameters")), 300, {}, RING)
    assert refuse_nonfinite()(sight, []).cause == ("nonfinite", "parameters", 300)


def test_five_in_a_row_go_back_and_a_stop_follows_if_that_is_no_help():
    answers = answered(refuse_nonfinite(), row(8, kind="nonfinite"), snapshots=RING)
    assert words(answers)[4:7] == ["rollback 290", "rollback 180", "stop"]


def test_without_snapshots_sound_parameters_may_wait_for_the_cap():
    answers = answered(refuse_nonfinite(), row(12, kind="nonfinite"))
    assert [each.kind for each in answers] == ["skip"] * 10 + ["stop"] * 2
    assert "10 steps of 1000 were refused" in answers[10].reason


def test_no_answer_takes_the_step_whatever_happened_before():
    policy = refuse_nonfinite()
    for signal in ("loss", "grad_norm", "parameters"):
        for snapshots in ((), RING):
            answers = answered(policy, row(40, kind="nonfinite", signal=signal), snapshots=snapshots)
            assert not any(each.takes_step for each in answers)
            assert all(each.reason for each in answers)


@pytest.mark.parametrize("kind", ["spike", "imminent", "precursor"])
def test_other_events_are_not_its_business(kind):
    assert answered(refuse_nonfinite(), [(300, event(300, kind))])[0].kind == "proceed"
