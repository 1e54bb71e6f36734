"""How far the run's own optimizer goes after a burst is told with its own settings, and only what helps is advised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from foreshock.bursts import burst_response
from foreshock.diagnose import diagnose
from foreshock.diagnose.reach import reach
from foreshock.diagnose.update_burst import update_burst
from foreshock.diagnose.written import _most
from foreshock.run import Run

from .struck import AT, burst, spike


def struck(kind: str, *groups: dict[str, Any], **signals: np.ndarray) -> Run:
    """Returns a training by an optimizer that a burst strikes."""
    run = burst()
    records = {name: run[name] for name in run.columns if name not in ("step", "time")}
    return Run.from_arrays(records | signals, optimizers=[{"class": kind, "groups": list(groups)}])


def advised(run: Run) -> str:
    return " ".join(update_burst(run, spike(AT + 1)).advice)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "FusedAdam"])
def test_the_runs_own_betas_are_compared_with_what_goes_less_far(kind: str) -> None:
    text = advised(struck(kind, {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "foreach": None}))
    assert f"Your {kind}(0.9, 0.999) moves a coordinate 31.8 learning rates after one burst, 3.16 of them in" in text
    assert f"after the same burst, {kind}(0.9, 0.95) 5.84 and S3(0.95, p=3) 3.98." in text
    assert "S3.from_adamw(optimizer)" in text


def test_the_group_that_goes_furthest_is_told() -> None:
    run = struck("AdamW", {"betas": [0.9, 0.95]}, {"betas": [0.9, 0.99]}, {"betas": "?"})
    assert reach(run).own.displacement == pytest.approx(10.47, rel=1e-3)
    assert "Your AdamW(0.9, 0.99) moves a coordinate 10.5" in advised(run)


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("SGD", {"momentum": 0.9}), ("S3", {"beta": 0.95, "p": 3.0}), ("AdamW", {"betas": [0.9, 0.95]}),
        ("Lion", {"betas": [0.9, 0.99]}), ("Adagrad", {}), ("Adamax", {"betas": [0.9, 0.999]}), ("LBFGS", {}),
    ],
)  # fmt: skip
def test_nothing_else_is_advised_where_it_would_not_help(kind: str, group: dict[str, Any]) -> None:
    text = advised(struck(kind, group))
    assert "S3" not in text
    assert "Your" not in text
    assert "clip_update" in text


def test_what_nobody_knows_is_answered_in_general() -> None:
    text = advised(struck("Sophia", {"lr": 1.0}))
    assert "Adam goes 31.8 learning rates at 0.9 and 0.999, and 5.84 at 0.9 and 0.95" in text


def test_the_measured_size_of_the_burst_counts() -> None:
    """3 times the usual gradient takes nobody far: another beta2 would change little."""
    sizes = {}
    for times in (2.0, 30.0):
        ratios = 3.0 + np.random.default_rng(0).random(300)
        ratios[AT] = times**2
        run = struck("AdamW", {"betas": [0.9, 0.999]}, grad_sq_over_v_max=ratios)
        found = update_burst(run, spike(AT + 1))
        sizes[times] = " ".join(found.evidence)
        assert ("Your AdamW" in " ".join(found.advice)) == (times == 30.0)
    expected = burst_response("adamw", ratio=30.0)
    assert "A burst of 30 times the usual gradient, the largest of that step, makes AdamW move" in sizes[30.0]
    assert f"by {expected.peak:.3g} learning rates in one step" in sizes[30.0]
    assert "no gradients make it move by more than 7.27" in sizes[30.0]


def test_an_update_beyond_what_gradients_can_make_is_said_to_be() -> None:
    rms = np.full(300, 3e-4) * np.exp(0.05 * np.random.default_rng(1).standard_normal(300))
    for size, beyond in ((12e-3, True), (2e-3, False)):
        rms = rms.copy()
        rms[AT] = size
        found = update_burst(struck("Adam", {"lr": 1e-3, "betas": [0.9, 0.999]}, update_rms=rms), spike(AT + 1))
        assert ("at most 7.27 learning rates in a step; this update was 12" in " ".join(found.evidence)) == beyond


def test_scores_do_not_depend_on_what_is_advised() -> None:
    one = update_burst(struck("Adam", {"betas": [0.9, 0.999]}), spike(AT + 1))
    two = update_burst(struck("Sophia", {}), spike(AT + 1))
    assert one.score == two.score
    assert diagnose(struck("Adam", {"betas": [0.9, 0.999]}), spike(AT + 1)).best.name == "update_burst"


def test_what_an_update_can_be_at_most_comes_from_the_same_table() -> None:
    assert _most("AdamW", [{"betas": [0.9, 0.99]}, {"betas": [0.9, 0.999]}]) == pytest.approx(7.27, rel=1e-3)
    assert _most("RMSprop", [{"alpha": 0.99, "momentum": 0.5}]) == pytest.approx(20)
    assert _most("S3", [{"beta": 0.95, "p": 3.0}]) == 1
    for kind, group in (("RAdam", {}), ("Sophia", {}), ("Adam", {"betas": [0.99, 0.9]}), ("RMSprop", {"centered": 1})):
        assert math.isnan(_most(kind, [group]))
    assert math.isnan(_most("Adam", [{}, {"betas": ["x", 0.9]}]))
    assert math.isnan(_most("Adam", []))
