"""The default policy: the least that cures each mechanism, an end to every story, nothing where nothing is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from foreshock.policies import Sight, default
from foreshock.run.action import CutLr, ExactSoftmax, Proceed, Refill, RepairMoments, Rollback, Skip
from foreshock.run.event import Event
from foreshock.testing import check_policy


def event(kind, signal, step=100, **data):
    return Event(kind, step, step, step, None, 1.0, 20.0, signal, data)


def answer(*events, actions=(), step=100, snapshots=(20, 60, 90), tries=0):
    return default()(Sight(tuple(events), step, {}, snapshots, tries), actions)


def test_it_keeps_the_contract_of_policies():
    check_policy(default())


def test_it_proceeds_where_nothing_stands_against_a_step():
    assert answer() == Proceed()
    assert answer(event("watch", "chi", chi=1.2)) == Proceed()
    assert answer(event("transient", "chi", chi=1.2)) == Proceed()


def test_a_batch_that_spikes_is_left_out_and_comes_again_once():
    spike = event("spike", "loss", records=1, refused=0, restored=0)
    assert (answer(spike).kind, answer(spike).data) == ("skip", "requeue")
    assert answer(spike, tries=1).data == "quarantine"


def test_the_state_is_suspected_from_the_third_in_a_row_and_the_data_when_going_back_was_no_help():
    refused = [event("spike", "loss", records=n + 1, refused=n, restored=0) for n in range(3)]
    assert [answer(each).kind for each in refused] == ["skip", "skip", "rollback"]
    assert answer(refused[2]).before == 90
    assert answer(event("spike", "loss", records=4, refused=3, restored=1)).kind == "skip"


def test_data_that_stay_bad_are_learnt_from_in_the_end():
    spike = event("spike", "loss", records=60, refused=59, restored=1, baseline=2.0)
    skips = [Skip(step=100 + n, cause=spike.key) for n in range(50)]
    taken = answer(spike, actions=skips, step=160)
    assert isinstance(taken, Proceed)
    assert "50 batches were left out for it" in taken.reason
    soon = event("spike", "loss", step=180, records=1, refused=0, restored=0, baseline=2.0)
    assert answer(soon, actions=[*skips, replace(taken, step=160)], step=180).kind == "proceed"
    far = replace(soon, height=10.0)
    assert answer(far, actions=[replace(taken, step=160)], step=180).kind == "skip"
    others = [Skip(step=n, cause=("spike", "loss", n)) for n in range(100)]
    assert "100 batches were left out within 1000 steps" in answer(spike, actions=others, step=100).reason


def test_what_was_suspicious_when_it_was_let_pass_is_undone():
    spike = event("spike", "loss", records=1, refused=0, restored=0, suspect="lr", since=70)
    assert answer(spike) == Rollback(before=70, reason=answer(spike).reason, cause=spike.key)
    assert "lr" in answer(spike).reason


def test_what_is_not_finite_is_never_taken():
    nan = event("nonfinite", "loss", records=1, refused=0, restored=0)
    assert answer(nan).kind == "skip"
    assert answer(event("nonfinite", "loss", records=2, refused=1, restored=0)).kind == "skip"
    again = event("nonfinite", "loss", records=3, refused=2, restored=0)
    assert answer(again, tries=1).data == "quarantine"
    assert answer(again).kind == "rollback"
    assert answer(again, snapshots=()).kind == "skip"
    assert answer(event("nonfinite", "loss", refused=100, restored=1)).kind == "stop"
    broken = event("nonfinite", "parameters", records=1, refused=0, restored=0)
    assert answer(broken).kind == "rollback"
    assert answer(broken, snapshots=()).kind == "stop"


def test_a_leap_of_the_learning_rate_is_held_then_let_in_then_taken():
    leap = event("precursor", "lr", factor=64.0)
    held = [CutLr(factor=1 / 64, step=100 + n, cause=leap.key) for n in range(60)]
    factors = [answer(leap, actions=held[:n], step=100 + n).factor for n in (0, 30, 45, 59)]
    assert factors == pytest.approx([1 / 64, 1 / 64, 1 / 8, 64 ** (-1 / 30)])
    assert isinstance(answer(leap, actions=held, step=160), Proceed)


def test_moments_come_from_a_snapshot_or_not_at_all():
    lost = event("precursor", "optimizer_state", moments=0.0)
    assert isinstance(answer(lost), RepairMoments)
    assert isinstance(answer(lost, snapshots=()), Proceed)


def test_parameters_that_leapt_are_put_back_to_before_they_were_last_seen_well():
    grown = Event("precursor", 104, 96, 104, None, 1e30, 1e30, "parameters", {"factor": 1e30, "since": 96})
    assert answer(grown, step=104).before == 96


def test_second_moments_are_refilled_at_the_edge_and_the_rate_is_cut_where_that_does_not_do_or_is_what_leapt():
    edge = event("imminent", "chi_gradient", chi=1.25)
    assert answer(edge).kind == "refill"
    refills = [Refill(step=100 + n, cause=edge.key) for n in range(5)]
    cut = answer(edge, actions=refills, step=105)
    assert (cut.kind, cut.factor) == ("cut_lr", pytest.approx(0.9 / 1.25))
    assert answer(edge, event("precursor", "lr", factor=10.0)).kind == "cut_lr"
    assert answer(event("imminent", "chi_gradient", chi=math.nan)) == Proceed()


def test_a_softmax_that_rounds_is_made_exact_once():
    rounds = event("absorbing", "softmax_residual")
    assert isinstance(answer(rounds), ExactSoftmax)
    assert answer(rounds, actions=[ExactSoftmax(step=50)]) == Proceed()


def test_bursts_are_left_out_until_they_are_what_there_is():
    burst = [event("precursor", "grad_norm", factor=40.0, records=n + 1, refused=n) for n in range(21)]
    assert [answer(each).kind for each in burst] == ["skip"] * 20 + ["proceed"]
    taken_between = event("precursor", "grad_norm", factor=40.0, records=29, refused=0)
    assert answer(taken_between).kind == "proceed"


def test_what_comes_back_to_the_bit_is_no_batchs_fault():
    again = event("spike", "loss", step=101, records=2, refused=1, restored=0, same=True)
    assert answer(again, step=102).kind == "rollback"
    back = Rollback(before=90, step=50, cause=("spike", "loss", 48))
    taken = answer(again, actions=[back], step=102)
    assert (taken.kind, taken.cause) == ("proceed", again.key)
    later = event("spike", "loss", step=101, records=3, refused=0, restored=0)
    assert answer(later, actions=[back, taken], step=103).kind == "proceed"
    assert answer(event("precursor", "grad_norm", factor=40.0, records=2, refused=1, same=True)).kind == "proceed"
