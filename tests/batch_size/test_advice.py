"""Advice about the batch: when to switch, what forbids it, and that noise does not make it flap."""

from __future__ import annotations

import doctest
import importlib
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from foreshock.batch_size import Steady, feasible, lr_factor, schedule_advice, switch_advice
from foreshock.errors import UsageError

SIZES = [2**power for power in range(3, 13)]
LINE = {size: size / (1.0 + 0.01 * size) for size in SIZES}  # B* = sqrt(100 B_c)


def estimate(value: float, low: float, high: float, status: str = "ok") -> SimpleNamespace:
    return SimpleNamespace(noise_scale=value, low=low, high=high, status=status, reasons=())


@pytest.mark.parametrize("name", ["gates", "advice", "schedule", "split"])
def test_the_examples_are_true(name):
    assert doctest.testmod(importlib.import_module(f"foreshock.batch_size.{name}")).failed == 0


def test_the_best_goodput_is_advised_with_its_gain():
    advice = switch_advice(16, LINE, 500.0)
    assert (advice.decision, advice.target, advice.best) == ("switch", 256, 256)  # B_c = 1000, B* = 316

    def at(size):
        return LINE[size] / (1 + size / 1000)

    assert advice.gain == pytest.approx(at(256) / at(16) - 1)
    assert advice.lr_factor == 4
    assert "Switch from 16 to 256" in advice.text
    json.dumps(advice.to_dict())


def test_what_is_worth_less_than_the_threshold_is_left():
    advice = switch_advice(256, LINE, 700.0)  # the best, 512 or 256, is within a few per cent
    assert advice.decision == "hold"
    assert advice.target == 256
    assert switch_advice(128, LINE, 500.0, threshold=0.3).decision == "hold"
    assert switch_advice(128, LINE, 500.0, threshold=0.05).decision == "switch"


def test_a_switch_has_to_pay_for_itself():
    gain = switch_advice(64, LINE, 500.0).gain
    left = 1000.0
    assert switch_advice(64, LINE, 500.0, switch_time=0.99 * gain * left, remaining_time=left).decision == "switch"
    held = switch_advice(64, LINE, 500.0, switch_time=1.01 * gain * left, remaining_time=left)
    assert held.decision == "hold"
    assert "s are left" in held.reasons[0]
    paid = switch_advice(64, LINE, 500.0, switch_time=0.0, remaining_time=left)
    assert paid.saved == pytest.approx(left - left / (1 + gain))


@pytest.mark.parametrize(
    "gates",
    [{"sc_frac": 0.51, "rho": 0.11}, {"softmax_absorbed": 0.9, "softmax_residual": 0.4}, ["overflow"], "overflow",
     {"noise_gated": 1.0}, {"absorption": True}],
)  # fmt: skip
def test_a_shut_gate_holds(gates):
    assert switch_advice(16, LINE, 500.0, gates=gates).decision == "hold"
    assert switch_advice(16, LINE, estimate(500, 400, 600), gates=gates).decision == "hold"


@pytest.mark.parametrize("gates", [{"sc_frac": 0.51, "rho": 0.09}, {"sc_frac": 0.4, "rho": 0.9}, [], {"absorption": 0}])
def test_an_open_gate_does_not(gates):
    assert switch_advice(16, LINE, 500.0, gates=gates).decision == "switch"


@pytest.mark.parametrize("noise", [None, estimate(math.nan, 1, math.inf, "undefined"),
                                   estimate(math.nan, 1, math.inf, "gated"), math.nan, -3.0])
def test_no_noise_scale_holds(noise):
    advice = switch_advice(16, LINE, noise)
    assert advice.decision == "hold"
    assert math.isnan(advice.gain)
    assert advice.reasons


def test_a_band_in_which_the_switch_may_lose_holds():
    assert switch_advice(64, LINE, estimate(700, 400, 1200)).decision == "switch"
    held = switch_advice(64, LINE, estimate(700, 5, 90000))
    assert held.decision == "hold"
    assert "band" in held.reasons[0]


def test_chi_forbids_a_learning_rate_beyond_the_edge():
    assert switch_advice(16, LINE, 500.0, chi=0.2).target == 256  # 4 * .2 < 1
    near = switch_advice(16, LINE, 500.0, chi=0.4)  # 4 * .4 > 1, but 128's factor 2.83 * .3...
    assert near.decision == "switch"
    assert near.target == 64
    assert near.lr_factor * 0.4 < 1.0
    held = switch_advice(16, LINE, 500.0, chi=0.9)
    assert held.decision == "hold"
    assert any("beyond the edge" in reason for reason in held.reasons)
    assert switch_advice(4096, LINE, 500.0, chi=0.9).decision == "switch"  # smaller batches take smaller steps
    assert switch_advice(16, LINE, 500.0, chi=0.4, lr_rule="constant").target == 256


def test_strategies_are_switched_like_batches():
    table = {("dp8", 256): 500.0, ("dp4-tp2", 256): 800.0}
    advice = switch_advice(("dp8", 256), table, 100.0, switch_time=40.0, remaining_time=3600.0)
    assert advice.target == ("dp4-tp2", 256)
    assert advice.lr_factor == 1.0
    with pytest.raises(UsageError, match="nothing is known"):
        switch_advice(("dp2", 64), table, 100.0)


def switches(seed: int, lr_aware: bool, steady: bool, course) -> list[int]:
    """Follows advice on a noise scale that is measured with an error of 40 %; returns the sizes it went through."""
    rng, damped, sizes = np.random.default_rng(seed), Steady(), [16]
    for noise in course:
        advice = switch_advice(
            sizes[-1], (1.0, 0.01), noise * rng.lognormal(0, 0.4), batches=SIZES, lr_aware=lr_aware
        )
        if steady:
            advice = damped.decide(advice)
        if advice.decision == "switch":
            sizes.append(advice.target)
    return sizes


@pytest.mark.parametrize("lr_aware", [False, True])
def test_noisy_readings_do_not_make_it_flap(lr_aware):
    course = np.geomspace(20, 2000, 150)
    for seed in range(3):
        sizes = switches(seed, lr_aware, True, course)
        ideal = switch_advice(16, (1.0, 0.01), 2000.0, batches=SIZES, lr_aware=lr_aware).target
        assert all(after > before for before, after in pairwise(sizes)), sizes
        assert ideal / 4 <= sizes[-1] <= 2 * ideal
        assert len(sizes) <= 8


def test_a_noise_scale_that_stands_still_is_left_alone_once_found():
    still = [300.0] * 200
    bare = [len(switches(seed, True, False, still)) for seed in range(6)]
    kept = [len(switches(seed, True, True, still)) for seed in range(6)]
    assert sum(bare) > 18  # each reading moves the lr-aware optimum in proportion
    assert max(kept) <= 3


def test_steady_goes_on_as_if_it_had_not_stopped():
    advice = [switch_advice(16, (1.0, 0.01), noise, batches=SIZES) for noise in (300.0, 400.0, 300.0, 2.0, 300.0)]
    whole, first, second = Steady(), Steady(), Steady()
    decisions = [whole.decide(each).decision for each in advice]
    halves = [first.decide(each).decision for each in advice[:2]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert decisions == halves + [second.decide(each).decision for each in advice[2:]]
    assert "switch" in decisions


def test_sizes_are_made_up_of_ranks_and_passes():
    for made in feasible(np.geomspace(1, 1e5, 40), largest=24, ranks=3, multiple=8):
        assert made.batch == made.micro_batch * made.accumulation * made.ranks
        assert made.micro_batch <= 24
        assert made.micro_batch % 8 == 0
    with pytest.raises(UsageError, match="multiple"):
        feasible([10], largest=4, multiple=8)


def test_a_schedule_takes_the_time_that_its_phases_add_up_to():
    course = np.geomspace(10, 4000, 400)
    advice = schedule_advice(course, 32, (1.0, 0.005), candidates=SIZES, switch_time=2.0)
    batches = [phase.batch for phase in advice.phases]
    assert batches == sorted(set(batches))
    assert len(batches) > 2
    critical = 2 * course
    progress = 32 / (1 + 32 / critical)
    for size in (32, 1024):
        slow = sum(p / (size / (1 + 0.005 * size) / (1 + size / b)) for p, b in zip(progress, critical, strict=True))
        assert advice.fixed[size] == pytest.approx(slow)
    assert advice.seconds == pytest.approx(sum(p.seconds for p in advice.phases) + 2.0 * (len(batches) - 1))
    assert advice.seconds < min(advice.fixed.values())
    assert advice.saved == pytest.approx(1 - advice.seconds / min(advice.fixed.values()))
    assert advice.phases[-1].lr_factor == pytest.approx(lr_factor(batches[0], batches[-1], "sqrt"))
    for phase in advice.phases:  # steps of that size take that long
        assert phase.seconds == pytest.approx(phase.steps * (1.0 + 0.005 * phase.batch))


def test_a_schedule_holds_where_nothing_is_to_be_gained():
    assert len(schedule_advice([100.0] * 50, 64, (1.0, 0.01), candidates=SIZES).phases) == 1
    course = np.geomspace(10, 4000, 99)
    assert len(schedule_advice(course, 64, (1.0, 0.01), candidates=SIZES, switch_time=1e9).phases) == 1
    gaps = schedule_advice([math.nan, -1.0, 100.0, math.nan], 64, (1.0, 0.01), candidates=SIZES)
    assert gaps.phases[0].B_c == 200
    with pytest.raises(UsageError, match="no noise scale"):
        schedule_advice([math.nan], 64, (1.0, 0.01), candidates=SIZES)
