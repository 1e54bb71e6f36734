"""Whatever a run holds, its events are judged or left alone; nothing breaks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from foreshock.detect.landmarks import landmarks
from foreshock.detect.stages import ADAM, LANDSCAPE, stages
from foreshock.diagnose import advice, approach
from foreshock.report.approach import lines, to_json, told
from foreshock.run import ABSENT, Event, Run

from ..report.runs import odd_runs

NAMES = (
    "loss", "chi", "chi_gradient", "v_ratio", "v_ratio/a", "chi_share/a", "chi_share/b", "effective_step/a", "lr",
    "grad_norm", "grad_norm/a", "sharpness", "hessian_top", "stable_eps", "chi_growth", "chi_growth_landscape",
)  # fmt: skip


def judged(run: Run, event: Event) -> None:
    found = stages(run, event)
    order = ADAM if found.family == "adam" else LANDSCAPE
    names = [stage.name for stage in found.bounds]
    assert names == [name for name in order if name in names]
    assert all(stage.first <= stage.last for stage in found.bounds)
    assert all(a.last + 1 == b.first for a, b in zip(found.bounds, found.bounds[1:], strict=False))
    how = approach(run, event)
    assert (told(run, event) is None) == (how is None)
    if how is not None:
        to_json(run, told(run, event))
        assert how.lead_turn is None or isinstance(how.lead_turn, int)
    advice(run, event)
    lines(run, [event])


@pytest.mark.parametrize("seed", range(40))
def test_random_columns_break_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 300))
    kept = [name for name in NAMES if random.random() < 0.75]
    columns = {}
    for name in kept:
        kind = random.integers(6)
        values = np.exp(random.standard_normal(n) * random.choice([0.01, 0.5, 3]))
        walk = np.cumprod(1 + 0.02 * random.standard_normal(n))
        values = np.array([values, -values, np.zeros(n), values - 1, walk, np.ones(n)][kind])
        values[random.random(n) < random.choice([0, 0, 0.05])] = random.choice([np.nan, np.inf, -np.inf, 0])
        values[random.random(n) < random.choice([0, 0, 0.9])] = ABSENT
        columns[name] = values
    columns["step"] = np.cumsum(random.integers(1, random.choice([2, 2, 50]), n)) + int(random.choice([0, 10**7]))
    adam = {"class": "Adam", "groups": [{"betas": [0.9, 0.999], "eps": 1e-8}]}
    meta = {"optimizers": random.choice([adam, {"class": "SGD", "groups": []}, "odd"], 1).tolist()}
    run = Run.from_arrays(columns, **meta) if random.random() < 0.7 else Run.from_arrays(columns)
    steps = columns["step"]
    for kind, signal in (("watch", "chi"), ("imminent", "chi_gradient"), ("transient", "chi"), ("spike", "loss")):
        for _ in range(3):
            onset, raised, peak, end = (int(steps[i]) for i in sorted(random.integers(0, n, 4)))
            judged(run, Event(kind, raised, onset, peak, None if random.random() < 0.3 else end, 1.0, 2.0, signal))


@pytest.mark.parametrize(("name", "kind"), list(product(odd_runs(), ["spike", "watch"])))
def test_odd_runs_break_nothing(name: str, kind: str) -> None:
    run, events = odd_runs()[name]
    for event in events[:3]:
        judged(run, replace(event, kind=kind, signal="loss" if kind == "spike" else "chi"))


def test_a_chi_that_is_a_formality_is_not_judged() -> None:
    n = 300
    loss = np.ones(n)
    loss[200:206] = 5
    run = Run.from_arrays({"loss": loss, "chi": np.full(n, 40.0), "chi_formal": np.ones(n)})
    assert approach(run, Event("spike", 200, 200, 200, 205, 4.0, 50.0, "loss")) is None


def test_a_chi_that_leaps_with_a_broken_batch_explains_nothing() -> None:
    n = 300
    loss, chi = np.ones(n), np.full(n, 0.3)
    loss[200] = chi[200] = 30
    found = approach(Run.from_arrays({"loss": loss, "chi": chi}), Event("spike", 200, 200, 200, 200, 4.0, 50.0, "loss"))
    assert found.verdict == "unexplained"


def bumps(second: int) -> Run:
    """Returns chi above 1 twice, and a loss that rises each time: tenfold from 95 and threefold from `second`."""
    steps = np.arange(300)
    chi = np.full(300, 0.8)
    chi[80:100], chi[110:150] = 1.05, 1.05
    along = np.full(300, 0.5)
    along[94:99], along[second - 1 : second + 6] = 1.05, 1.05
    loss = 0.999**steps
    for start, rise, width in ((95, 10.0, 6.0), (second, 3.0, 6.0)):
        loss = loss * (1 + rise * np.exp(-(((steps - start - 8) / width * 2) ** 2)) * (steps > start))
    group = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8}
    meta = {"optimizers": [{"class": "Adam", "groups": [group]}]}
    return Run.from_arrays({"loss": loss, "chi": chi, "chi_gradient": along}, **meta)


@pytest.mark.parametrize("second", [118, 135])
def test_the_rise_before_is_not_taken_for_an_alarms_own(second: int) -> None:
    run = bumps(second)
    watch = Event("watch", 112, 110, 120, 149, 0.05, 5.0, "chi")
    imminent = Event("imminent", second + 1, second - 1, second, second + 5, 0.05, 5.0, "chi_gradient")
    for event in (watch, imminent):
        marks = landmarks(run, event)
        assert marks.crossing == 110
        assert abs(marks.turn - second) <= 5
        assert abs(marks.peak - second - 8) <= 1
        assert approach(run, event).warned > 0


def test_the_alpha_of_an_averaged_sgd_is_no_second_moment() -> None:
    columns = {"loss": bumps(135)["loss"], "chi": bumps(135)["chi"]}
    group = {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0}
    run = Run.from_arrays(columns, optimizers=[{"class": "ASGD", "groups": [group]}])
    found = stages(run, Event("watch", 112, 110, 120, 149, 0.05, 5.0, "chi"))
    assert found.family == "landscape"
    assert "v_ratio" not in found.missing


def test_a_rare_reading_above_the_edge_before_the_rise_explains_it_though_the_next_comes_at_the_rise() -> None:
    steps = np.arange(600)
    chi = np.where(steps % 10 == 0, np.minimum(0.6 + 0.4 * steps / 290, 1.05), ABSENT)
    loss = 0.998**steps * (1 + 8 * np.exp(-(((steps - 304) / 3) ** 2)) * (steps >= 300))
    run = Run.from_arrays({"loss": loss, "chi": chi})
    marks = landmarks(run, Event("spike", 300, 300, 304, 309, 3.0, 100.0, "loss"))
    assert (marks.below, marks.crossing) == (280, 290)


def test_a_rise_of_few_steps_has_its_decay() -> None:
    steps = np.arange(300)
    bump = 30 * np.exp(-np.abs(steps - 206) / np.where(steps < 206, 1, 12))
    loss = 0.999**steps * np.where(steps < 203, 1.0, 1 + bump)
    chi = np.where((steps >= 200) & (steps < 206), 2.0, 0.3)
    meta = {"optimizers": [{"class": "Adam", "groups": [{"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8}]}]}
    run = Run.from_arrays({"loss": loss, "chi": chi, "v_ratio": np.where(steps < 204, 0.999, 1.01)}, **meta)
    found = stages(run, Event("watch", 202, 200, 202, 205, 1.0, 50.0, "chi"))
    assert found.marks.peak == 206
    assert found["decay"].first == 206
    assert found["decay"].last > 230  # 30 exp(-24/12) is 4
