"""What a loop changes about its steps before an event is its schedule; what it always does, or takes out, is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from foreshock.diagnose import diagnose
from foreshock.diagnose.base import Cause
from foreshock.diagnose.schedule import schedule
from foreshock.run import ABSENT, Event, Run

from .noting import noted

AT, STEPS = 400, 500
EVENT = Event("spike", AT + 3, AT + 2, AT + 4, AT + 12, 2.0, 50.0, "loss")
STEP = np.arange(STEPS)
SINCE = AT - 1 <= STEP


def run_with(notes: list[dict[str, Any]] | None = None, **signals: Any) -> Run:
    """Returns a run whose loss rises at step 402, with these signals; the learning rate stands still without one."""
    draw = np.random.default_rng(0)
    loss = np.where((STEP >= AT + 2) & (STEP < AT + 13), 3.0, 1.0) + 0.02 * draw.standard_normal(STEPS)
    gradient = np.exp(0.1 * draw.standard_normal(STEPS))
    columns = {"loss": loss, "grad_norm": gradient, "lr": np.full(STEPS, 0.1)} | signals
    return noted({name: np.asarray(values) for name, values in columns.items()}, notes or ())


def judged(run: Run) -> Cause:
    cause = schedule(run, EVENT)
    assert cause is not None
    return cause


GRADIENT = np.exp(0.1 * np.random.default_rng(0).standard_normal(STEPS))
GUILTY: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "one group's learning rate": (
        {"lr/group0": np.full(STEPS, 0.1), "lr/group1": np.where(SINCE, 0.5, 0.01)},
        "The learning rate of parameter group1 went up 50-fold at once, to 0.5",
    ),
    "tensors moved to a group of their own": (
        {"lr/group0": np.where(SINCE, 0.1, ABSENT), "lr/group1": np.where(SINCE, 5.0, ABSENT)},
        "group1 went up 50-fold",
    ),
    "a warm-up cut short": ({"lr": np.where(SINCE, 0.1, 1e-3)}, "went up 100-fold"),
    "a loss scale": (
        {"loss_scale": np.where(SINCE, 128.0, 1.0), "grad_norm": GRADIENT * np.where(SINCE, 128, 1)},
        "the loss was multiplied with 128 in place of 1",
    ),
    "micro-batches that are added up": (
        {
            "micro_batches": np.where(SINCE, 8.0, 1.0), "loss_scale": np.where(SINCE, 8.0, 1.0),
            "grad_norm": GRADIENT * np.where(SINCE, 8, 1),
        },
        "8 micro-batches were added up and not averaged",
    ),
    "a sixteenth of the batch": (
        {"batch_size": np.where(SINCE, 4.0, 64.0), "grad_norm": GRADIENT * np.where(SINCE, 3, 1)},
        "a step had 4 examples in place of 64",
    ),
    "fewer micro-batches": ({"micro_batches": np.where(SINCE, 1.0, 16.0)}, "a step had 1 micro-batches in place of 16"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GUILTY))
def test_a_change_of_the_steps_is_the_schedule(name: str) -> None:
    signals, said = GUILTY[name]
    cause = judged(run_with(**signals))
    assert cause.score > 0.8
    assert said in cause.evidence[0]
    assert cause.advice
    assert diagnose(run_with(**signals), EVENT).best.name == "schedule"


CYCLES = np.where(STEP % 100 < 50, 0.1, 0.02)
INNOCENT: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "a decay": {"lr": np.where(SINCE, 0.01, 0.1)},
    "a scale that is taken out again": {"loss_scale": np.where(SINCE, 131072.0, 65536.0)},
    "a larger batch": {"batch_size": np.where(SINCE, 64.0, 4.0)},
    "the last batch of each epoch": {"batch_size": np.where(STEP % 40 == 39, 4.0, 64.0)},
    "restarts that never did harm": {"lr": CYCLES},
    "a warm-up": {"lr": 1e-3 * np.minimum(1.0, (STEP + 1) / 450)},
    "a warm-up that was long over": {"lr": 0.1 * np.minimum(1.0, (STEP + 1) / 300)},
}


@pytest.mark.parametrize("name", sorted(INNOCENT))
def test_what_does_no_harm_is_not_the_schedule(name: str) -> None:
    run = run_with(**INNOCENT[name])
    assert judged(run).score < 0.5
    assert diagnose(run, EVENT).best.name != "schedule"


def test_a_larger_leap_is_likelier_and_an_older_one_less_so() -> None:
    scores = [judged(run_with(lr=np.where(SINCE, factor, 1.0))).score for factor in (1.0, 1.2, 2.0, 5.0)]
    assert scores == sorted(scores)
    assert scores[-1] > scores[1] + 0.3
    older = judged(run_with(lr=np.where(STEP >= AT - 40, 5.0, 1.0))).score
    assert 0.5 < older < scores[-1]


def test_a_momentum_that_is_raised_makes_steps_longer() -> None:
    note = {"kind": "settings_changed", "step": AT, "group": 0, "setting": "momentum", "was": 0.9, "now": 0.99}
    cause = judged(run_with([note]))
    assert cause.score > 0.9
    assert "`momentum` of parameter group 0 went from 0.9 to 0.99" in cause.evidence[0]
    lowered = note | {"was": 0.99, "now": 0.9}
    assert judged(run_with([lowered])).score < 0.15


def test_a_run_that_was_resumed_with_another_rate_is_told_to_restore_the_scheduler() -> None:
    cause = judged(run_with([{"kind": "resumed", "step": AT - 1}], lr=np.where(SINCE, 0.1, 0.005)))
    assert f"The run was resumed at step {AT - 1}." in cause.evidence
    assert "scheduler.load_state_dict" in cause.advice[0]


def test_a_learning_rate_that_climbs_to_its_highest_is_suspected() -> None:
    climbing = judged(run_with(lr=0.1 * (STEP + 1) / STEPS))
    assert 0.15 < climbing.score < 0.5
    assert "higher than ever before" in climbing.evidence[0]


def test_without_any_of_it_nobody_knows() -> None:
    assert schedule(Run.from_arrays({"loss": np.ones(STEPS)}), EVENT) is None


def test_a_warm_up_that_was_recorded_rarely_is_no_leap() -> None:
    rare, at = np.arange(0, 1000, 10), np.arange(0, 1000, 10)
    draw = np.random.default_rng(0)
    loss = np.where((at >= 100) & (at < 150), 3.0, 1.0) + 0.02 * draw.standard_normal(100)
    event = Event("spike", 100, 100, 110, 140, 2.0, 50.0, "loss")
    climbing = Run.from_arrays({"step": rare, "loss": loss, "lr": 1e-3 * np.minimum(1.0, at / 500)})
    leaping = Run.from_arrays({"step": rare, "loss": loss, "lr": np.where(at >= 100, 1e-3, 1e-4)})
    scores = [cause.score for run in (climbing, leaping) if (cause := schedule(run, event))]
    assert scores[0] < 0.5 < 0.9 < scores[1]


@pytest.mark.parametrize(
    ("moments", "factor", "least", "most"),
    [("reset", 1.0, 0.8, 1.0), ("keep", 4.0, 0.8, 1.0), ("rescale", 1.0, 0.3, 0.7), ("keep", 0.25, 0.0, 0.2)],
)
def test_a_declared_switch_of_the_batch_is_named(moments, factor, least, most):
    note = {"kind": "batch_switched", "step": AT, "old": 64, "new": 1024, "lr_factor": factor, "moments": moments}
    cause = judged(run_with([note]))
    assert least <= cause.score <= most
    if least > 0.2:
        assert "switched from 64 to 1024" in " ".join(cause.evidence)
        assert any("moments='keep'" in line for line in cause.advice) == (cause.score >= 0.3)
