"""The rule of the Ling models: skip, scale, put away; go back where it is the state; and an end to all of it."""

from __future__ import annotations

import json
import math

import pytest

from foreshock.errors import UsageError
from foreshock.policies import Action, CutLr, Sight, Skip, ling
from tests.policies.scripts import answered, event, row, words

RING = (100, 180, 260, 290, 300)


def test_the_third_hit_of_a_batch_puts_it_away():
    attempts = [(300, event(300), 0), (350, event(350), 1), (400, event(400), 2)]
    answers = answered(ling(), attempts, snapshots=RING)
    assert words(answers) == ["skip requeue", "scale_update 0.5", "skip quarantine"]


def test_retried_at_once_the_order_is_the_same_whether_batches_are_known_or_not():
    known = [(step, what, tries) for tries, (step, what) in enumerate(row(3))]
    for attempts in (known, row(3)):
        answers = answered(ling(retry=True), attempts, snapshots=RING)
        assert words(answers) == ["skip retry", "scale_update 0.5", "skip quarantine"]


def test_eight_hits_in_a_row_are_the_states_fault_at_the_fifth_and_no_skip_comes_after():
    answers = answered(ling(), row(8), snapshots=RING)
    assert words(answers)[:5] == ["skip requeue"] * 4 + ["rollback 290"]
    assert not any(each.kind == "skip" for each in answers[5:])
    assert all(each.reason and each.cause == ("spike", "loss", 300) for each in answers)


def test_going_back_comes_before_the_update_that_can_have_made_the_onset():
    late = event(304, onset=302, records=5)
    assert words(answered(ling(), [(306, late)], snapshots=(100, 300, 301, 302, 305))) == ["rollback 301"]


def test_what_stands_on_after_going_back_is_answered_by_stronger_things_and_in_the_end_accepted():
    answers = answered(ling(), row(12), snapshots=RING)
    assert words(answers)[4:] == ["rollback 290", "rollback 180", "cut_lr 0.5", *["proceed"] * 5]
    assert answers[6].steps == 20
    assert all("a change that stays" in each.reason for each in answers[7:])


def test_a_change_of_the_data_for_good_costs_few_refusals_and_no_stop():
    answers = answered(ling(), row(120), snapshots=RING)
    assert sum(not each.takes_step for each in answers) == 6
    assert not any(each.kind == "stop" for each in answers)


def test_without_snapshots_the_learning_rate_is_cut_instead():
    assert words(answered(ling(), row(6)))[4:] == ["cut_lr 0.5", "proceed"]


def test_of_plain_events_nobody_knows_the_snapshots_so_going_back_is_asked_for():
    actions: list[Action] = []
    for _ in range(6):
        actions.append(ling()([event(300)], actions))
    assert [each.kind for each in actions] == ["skip"] * 4 + ["rollback"] * 2
    assert [each.before for each in actions[4:]] == [299, 199]


def test_a_hit_soon_after_a_scaled_update_gets_the_next_stronger_answer():
    past = answered(ling(), [(300, event(300), 1)], snapshots=RING)
    assert words(answered(ling(), [(319, event(319))], past=past)) == ["scale_update 0.1"]
    assert words(answered(ling(), [(320, event(320))], past=past)) == ["skip requeue"]
    third = answered(ling(), [(310, event(310)), (315, event(315))], past=past, snapshots=RING)
    assert words(third) == ["scale_update 0.1", "rollback 300"]


def test_a_hit_soon_after_going_back_is_scaled_and_not_skipped():
    past = answered(ling(), row(5), snapshots=RING)
    assert words(answered(ling(), [(315, event(315))], past=past, snapshots=RING)) == ["scale_update 0.5"]


def test_what_others_did_about_the_curvature_starts_no_cooldown():
    others = [CutLr(factor=0.5, step=299, cause=("imminent", "chi_gradient", 290))]
    assert words(answered(ling(), [(300, event(300))], past=others)) == ["skip requeue"]


def test_with_every_step_bad_at_most_one_percent_is_skipped_and_then_other_things_are_done():
    every = [(step, event(step)) for step in range(300, 4300)]
    answers = answered(ling(), every, snapshots=range(0, 4300, 50))
    steps = [each.step for each in answers if each.kind == "skip"]
    assert steps
    assert max(sum(start <= step < start + 1000 for step in steps) for start in range(300, 4300, 10)) <= 10
    done = {each.kind for each in answers}
    assert {"rollback", "cut_lr", "proceed"} <= done
    assert "stop" not in done
    assert sum(each.kind == "rollback" for each in answers) <= 4 * 4


def test_hits_far_apart_are_skipped_until_the_share_is_reached():
    attempts = [(step, event(step)) for step in range(300, 1300, 50)]
    answers = answered(ling(), attempts, snapshots=RING)
    assert words(answers)[:10] == ["skip requeue"] * 10
    assert answers[10].kind == "rollback"
    assert "10 of the last 1000 steps were skipped" in answers[10].reason


def test_the_window_after_a_rollback_does_not_use_up_the_share():
    window = [Skip(step=step, data="drop", reason="a rollback skips") for step in range(300, 500)]
    assert words(answered(ling(), [(520, event(520))], past=window)) == ["skip requeue"]


def test_the_applied_share_is_smaller_the_second_time_and_can_be_chosen():
    policy = ling(scales=(0.3, 0.2, 0.1), wide=9)
    past = answered(policy, [(300 + i, event(300 + i), 1) for i in range(4)], snapshots=RING)
    assert words(past) == ["scale_update 0.3", "scale_update 0.2", "scale_update 0.1", "rollback 300"]


def test_what_is_not_finite_is_neither_scaled_nor_taken_and_ends():
    nan = [(step, event(300, "nonfinite"), tries) for tries, step in enumerate(range(300, 303))]
    assert words(answered(ling(), nan, snapshots=RING)) == ["skip requeue", "skip quarantine", "skip quarantine"]
    long = answered(ling(), row(60, kind="nonfinite"), snapshots=RING)
    assert words(long)[4:7] == ["rollback 290", "rollback 180", "stop"]
    assert not any(each.takes_step for each in long)


def test_a_burst_of_the_gradient_is_a_hit_unless_it_is_said_to_be_none():
    burst = event(300, "precursor", "grad_norm", ratio=970.0)
    answer = ling()(Sight((burst,), 300), [])
    assert answer.kind == "skip"
    assert "970 times its level" in answer.reason
    assert ling(gradients=False)(Sight((burst,), 300), []).kind == "proceed"


def test_what_ranks_see_they_do():
    attempts = row(12)
    assert answered(ling(), attempts, snapshots=RING) == answered(ling(), attempts, snapshots=RING)


@pytest.mark.parametrize("cut", range(14))
def test_a_run_resumed_in_any_state_decides_the_same(cut):
    attempts = [(290, event(290), 1), *row(12)]
    whole = answered(ling(), attempts, snapshots=RING)
    first = [each for each in whole[:cut] if each.kind != "proceed"]
    read = [Action.from_dict(json.loads(json.dumps(each.to_dict()))) for each in first]
    assert answered(ling(), attempts[cut:], snapshots=RING, past=read) == whole[cut:]


@pytest.mark.parametrize(
    "given",
    [
        {"scales": ()}, {"scales": (0.1, 0.5)}, {"scales": (1.0,)}, {"scales": (0.5, math.nan)}, {"wide": 1},
        {"cooldown": -1}, {"most": 0.0}, {"most": 10},
    ],
)  # fmt: skip
def test_senseless_settings_are_named(given):
    with pytest.raises(UsageError, match=f"ling: .*{next(iter(given))}="):
        ling(**given)
