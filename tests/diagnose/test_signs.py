"""Where chi was not read close to a spike, the signs of an edge name the cause, and other spikes have none of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from foreshock.detect import scan
from foreshock.diagnose import diagnose
from foreshock.diagnose.edge import verdict
from foreshock.diagnose.signs import UNREAD, signs
from foreshock.run import Event, Run, absent

from ..detect.test_stages import descent_run, quad_run


def without(run: Run, *hidden: str) -> Run:
    """Returns the run without all signals that begin so."""
    columns = {}
    for name in run.columns:
        if not name.startswith(hidden):
            steps, values = run.measured(name)
            columns[name] = absent(len(run))
            columns[name][np.searchsorted(run.steps, steps)] = values
    return Run.from_arrays({"step": run.steps, **columns}, **run.meta)


def spikes(run: Run) -> Sequence[Event]:
    return [event for event in scan(run) if event.kind == "spike"]


BLIND = ("chi", "threshold", "sharpness", "hessian", "max_stable", "stable")


def test_spikes_of_a_second_moment_are_named_without_chi() -> None:
    blind = without(quad_run(), *BLIND)
    assert not any(name.startswith("chi") for name in blind.columns)
    for event in spikes(quad_run()):
        best = diagnose(blind, event).best
        assert best.name == "preconditioner", event
        assert best.score < UNREAD
        assert any("rests on signs" in line for line in best.contradicts)


def test_spikes_of_gradient_descent_are_named_without_chi() -> None:
    run = descent_run()
    for event in spikes(run):
        found = diagnose(without(run, *BLIND), event)
        assert found.best.name == "landscape"
        assert found["preconditioner"].score == 0.0


def test_a_reading_close_by_says_more_than_signs() -> None:
    event = spikes(descent_run())[0]
    read, blind = verdict(descent_run(), event), verdict(without(descent_run(), *BLIND), event)
    assert read is not None
    assert blind is not None
    assert read.strength > blind.strength
    assert blind.found is None


def noise(**signals: np.ndarray) -> Run:
    """Returns a calm run of 400 steps whose loss leaps at 300."""
    draw = np.random.default_rng(0)
    loss = 1 + 0.03 * draw.standard_normal(400)
    loss[300] = 6.0
    cosine = np.clip(0.2 + 0.2 * draw.standard_normal(400), -1, 1)
    group = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8}
    meta = {"optimizers": [{"class": "Adam", "groups": [group]}]}
    return Run.from_arrays({"loss": loss, "grad_cosine": cosine, "v_ratio": np.full(400, 1.0), **signals}, **meta)


LEAP = Event("spike", 300, 300, 300, 300, 5.0, 99.0, "loss")


def test_a_leap_out_of_nothing_has_none_of_them() -> None:
    found = signs(noise(), LEAP)
    assert found is not None
    assert found.strength < 0.05
    assert any("in one record" in line for line in found.against)


@pytest.mark.parametrize(("chi", "sign"), [(0.95, 1), (0.05, -1)])
def test_a_reading_from_further_away_counts(chi: float, sign: int) -> None:
    rare = absent(400)
    rare[260] = chi
    base, found = signs(noise(), LEAP), signs(noise(chi=rare), LEAP)
    assert base is not None
    assert found is not None
    assert sign * (found.strength - base.strength) > 0


def test_who_drove_it_follows_the_second_moment_and_the_rate() -> None:
    free, climbing = np.full(400, 0.999), 0.1 * 1.004 ** np.arange(400)
    decayed, fed = signs(noise(v_ratio=free), LEAP), signs(noise(), LEAP)
    warmed = signs(noise(lr=climbing), LEAP)
    assert decayed is not None
    assert fed is not None
    assert warmed is not None
    assert decayed.shares["preconditioner"] > 0.6 > 0.4 > fed.shares["preconditioner"]
    assert warmed.shares["learning rate"] > 0.5
    for found in (decayed, fed, warmed):
        assert sum(found.shares.values()) == pytest.approx(1.0)


def overshooting(first: int, against: int) -> Run:
    """Returns the calm run with gradients that grow tenfold from step `first` to 300, `against` of them opposed."""
    cosine, norm = np.full(400, 0.9), np.ones(400)
    grown = np.arange(300 - first + 1)
    norm[first:301] = 10 ** (grown / len(grown))
    norm[301:] = norm[300]
    cosine[301 - against : 301] = -0.95
    return noise(grad_cosine=cosine, grad_norm=norm)


def test_a_gradient_that_grows_and_turns_against_itself_is_an_unstable_mode() -> None:
    strengths = []
    for against in (8, 2, 0):
        found = signs(overshooting(292, against), LEAP)
        assert found is not None
        strengths.append(found.strength)
    assert strengths[0] > 0.7 > strengths[1] > strengths[2]
    assert strengths[2] < 0.05


def test_gradients_that_came_to_oppose_each_other_before_say_so() -> None:
    cosine = np.full(400, 0.9)
    cosine[265:275] = -0.95
    before, habit = signs(noise(grad_cosine=cosine), LEAP), signs(noise(grad_cosine=np.full(400, -0.95)), LEAP)
    calm = signs(noise(), LEAP)
    assert before is not None
    assert habit is not None
    assert calm is not None
    assert calm.strength < before.strength
    assert habit.strength < before.strength
    assert any("from 35 steps before the rise on: 10 of them" in line for line in before.said)


def test_without_signals_of_an_edge_nobody_knows() -> None:
    assert signs(without(noise(), "grad_cosine"), LEAP) is None
    assert verdict(without(noise(), "grad_cosine"), LEAP) is None
