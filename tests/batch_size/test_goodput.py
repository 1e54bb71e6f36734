"""Goodput, gain and step times against their closed forms and against search by brute force."""

from __future__ import annotations

import doctest
import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foreshock.batch_size as batch_size
from foreshock.batch_size import (
    critical_batch,
    efficiency,
    gain,
    geometric_batches,
    goodput,
    lr_factor,
    optimum,
    pollux_seconds,
    recorded_times,
    step_times,
)
from foreshock.errors import UsageError
from foreshock.run import Run


def estimate(value: float, low: float, high: float, status: str = "ok") -> SimpleNamespace:
    return SimpleNamespace(noise_scale=value, low=low, high=high, status=status)


@pytest.mark.parametrize("name", ["gain", "goodput", "pollux", "times"])
def test_the_examples_are_true(name):
    assert doctest.testmod(importlib.import_module(f"foreshock.batch_size.{name}")).failed == 0


@pytest.mark.parametrize(("lr_aware", "best"), [(False, 274), (True, 900)])
def test_the_example_of_the_closed_forms(lr_aware, best):
    def rate(size):
        return size / (3.0 + 0.02 * size)

    ways = [(3.0, 0.02), rate, {size: rate(size) for size in range(1, 2000)}, step_times({1: 3.02, 2000: 43.0})]
    for way in ways[:3]:
        found = goodput(way, 500, lr_aware=lr_aware)
        assert found.best == best
        assert found.optimum == pytest.approx(optimum(3.0, 0.02, 500, lr_aware=lr_aware), rel=1e-4)
    assert goodput(ways[3], 500, lr_aware=lr_aware, candidates=range(1, 2001)).best == best


@settings(max_examples=40, deadline=None)
@given(
    a=st.floats(1e-3, 1e2), b=st.floats(1e-5, 1e-1), critical=st.floats(1.0, 1e5), lr_aware=st.booleans(),
)
def test_the_argmax_on_a_grid_is_within_a_cell_of_the_closed_form(a, b, critical, lr_aware):
    peak = optimum(a, b, critical, lr_aware=lr_aware)
    grid = np.unique(np.geomspace(max(1, peak / 20), max(2, peak * 20), 150).round().astype(int)).tolist()
    table = {size: size / (a + b * size) for size in grid}
    found = goodput(table, critical, lr_aware=lr_aware)
    place = grid.index(found.best)
    assert grid[max(0, place - 1)] <= max(peak, grid[0])
    assert peak <= grid[min(len(grid) - 1, place + 1)]
    sensitivity = math.log(
        optimum(a, b, critical * 1.001, lr_aware=lr_aware) / optimum(a, b, critical * 0.999, lr_aware=lr_aware)
    ) / math.log(1.001 / 0.999)
    assert goodput((a, b), critical, lr_aware=lr_aware).sensitivity == pytest.approx(sensitivity, rel=1e-4)


def test_the_curve_is_throughput_times_efficiency():
    table = {32: 300.0, 64: 500.0, 128: 700.0}
    plain, aware = goodput(table, 100), goodput(table, 100, lr_aware=True)
    for size, rate in table.items():
        assert plain.curve[size] == pytest.approx(rate / (1 + size / 100))
        assert aware.curve[size] == pytest.approx(rate / (1 + size / 100) * size**0.5)
    assert plain.gain_over(32) == pytest.approx(plain.curve[plain.best] / plain.curve[32] - 1)
    assert plain.at(96) == pytest.approx(96 / ((64 / 500 + 128 / 700) / 2) / 1.96)  # between two times, on their line


def test_strategies_are_candidates_and_do_not_mix():
    table = {("dp8", 256): 900.0, ("dp8", 512): 1000.0, ("dp4-tp2", 256): 700.0, ("dp4-tp2", 512): 1500.0}
    found = goodput(table, 1000)
    assert found.best == ("dp4-tp2", 512)
    assert found.batch == 512
    assert found.gain_over(("dp8", 512)) == pytest.approx(0.5)


def test_what_does_not_fit_into_memory_is_left_out():
    found = goodput({64: 100.0, 128: 190.0, 256: None, 512: 0.0, 1024: math.nan}, 1e6)
    assert found.best == 128
    assert found.infeasible == (256, 512, 1024)
    assert set(found.curve) == {64, 128}
    with pytest.raises(UsageError, match="out of memory"):
        goodput({64: None}, 10)


def test_nothing_is_extrapolated_silently():
    table = {64: 100.0, 128: 150.0}
    with pytest.raises(UsageError, match="extrapolate=True"):
        goodput(table, 100, candidates=[64, 256])
    assert goodput(table, 1e5, candidates=[64, 256], extrapolate=True).best == 256
    with pytest.raises(UsageError, match="nothing is known"):
        goodput({("dp8", 64): 3.0}, 100, candidates=[("dp4", 64)])
    with pytest.raises(UsageError, match="only grows"):
        goodput((1.0, 0.0), 100)


def test_a_band_of_the_noise_scale_gives_a_band_of_batches():
    sizes = [2**power for power in range(3, 14)]
    found = goodput((3.0, 0.02), estimate(250, 62.5, 1000), candidates=sizes)
    assert found.B_c == 500  # twice the noise scale
    assert found.best == 256
    assert found.band == (128, 512)
    assert goodput((3.0, 0.02), estimate(250, 100, 900), c=1.0, candidates=sizes).B_c == 250
    unbounded = goodput((3.0, 0.02), estimate(250, 0.0, math.inf), candidates=sizes)
    assert unbounded.band == (8, 8192)


@pytest.mark.parametrize("status", ["undefined", "gated"])
def test_an_undefined_noise_scale_has_no_goodput(status):
    with pytest.raises(UsageError, match=status):
        goodput((3.0, 0.02), estimate(math.nan, 3.0, math.inf, status))
    with pytest.raises(UsageError, match="positive"):
        critical_batch(0.0)
    for wrong in (None, "500"):
        with pytest.raises(UsageError, match="B_c"):
            critical_batch(wrong)


@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(1, 4096), more=st.floats(1.0, 1e4), tr=st.floats(0, 1e8), sq=st.floats(1e-8, 1e8),
)
def test_the_gain_lies_between_one_and_its_limits(base, more, tr, sq):
    assert gain(base, base, tr_sigma=tr, g_sq=sq).gain == pytest.approx(1.0)
    found = gain(base * more, base, tr_sigma=tr, g_sq=sq)
    limit = (tr / base + sq) / sq
    assert 1 - 1e-9 <= found.gain <= min(limit, more) * (1 + 1e-9)
    assert 0 < found.efficiency <= 1 + 1e-9
    assert gain(base * 1e30, base, tr_sigma=tr, g_sq=sq).gain == pytest.approx(limit, rel=1e-3)
    # the ratio of efficiencies at B_c = the noise scale, and McCandlish's learning rates
    critical = tr / sq
    if critical > 0:
        assert found.efficiency == pytest.approx(efficiency(base * more, critical, base=base), rel=1e-6)
        rates = [1 / (1 + critical / size) for size in (base, base * more)]
        assert found.lr_factor == pytest.approx(rates[1] / rates[0], rel=1e-6)


def test_learning_rates_follow_the_batch_both_ways():
    for rule in ("linear", "sqrt", "constant", "adascale", "adam"):
        up, down = lr_factor(32, 512, rule, noise_scale=100), lr_factor(512, 32, rule, noise_scale=100)
        assert up * down == pytest.approx(1.0)
    assert lr_factor(32, 512, "linear") == 16
    assert lr_factor(32, 512, "sqrt") == 4
    assert lr_factor(32, 512, "adascale", noise_scale=math.inf) == 16
    assert lr_factor(32, 512, "adam", noise_scale=0.0) == 1
    with pytest.raises(UsageError, match="noise scale"):
        lr_factor(32, 512, "adascale")
    with pytest.raises(UsageError, match="one of"):
        lr_factor(32, 512, "cubic")


@pytest.mark.parametrize("moments", [(-1.0, 1.0), (1.0, -1.0), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_a_gain_without_moments_is_refused(moments):
    with pytest.raises(UsageError, match="tr_sigma"):
        gain(64, 32, tr_sigma=moments[0], g_sq=moments[1])


def test_pollux_steps_overlap_as_their_exponent_says():
    assert pollux_seconds(100, compute=(1, 0.01), network=(2, 0.5), replicas=3, overlap=1) == pytest.approx(5.0)
    assert pollux_seconds(100, compute=(1, 0.01), network=(2, 0.5), replicas=3, overlap=math.inf) == pytest.approx(3.0)
    both = pollux_seconds(100, compute=(1, 0.01), network=(2, 0.5), replicas=3, overlap=2)
    assert both == pytest.approx(math.hypot(2, 3))
    passes = pollux_seconds(100, compute=(1, 0.01), network=(2, 0.5), replicas=3, overlap=2, accumulation=4)
    assert passes == pytest.approx(both + 6)
    assert len(geometric_batches(32, 4096)) == 50


def test_the_line_through_times_has_neither_part_below_zero():
    exact = step_times({size: 0.2 + 1e-3 * size for size in (16, 64, 256, 1024)})
    assert exact.fixed == pytest.approx(0.2)
    assert exact.per_sample == pytest.approx(1e-3)
    assert exact.misfit < 1e-9
    assert step_times({8: 1.0, 16: 4.0}).fixed == 0.0
    assert step_times({8: 4.0, 16: 1.0}).per_sample == 0.0
    plateau = step_times({8: 1.0, 16: 1.0, 32: 1.0, 64: 2.0, 128: 4.0})
    assert plateau.misfit > 0.1  # and the line says so
    assert plateau.seconds_at(12) == 1.0
    assert math.isnan(step_times({8: 1.0}).fixed)
    assert step_times({8: 1.0, 16: None}).infeasible == (16,)
    with pytest.raises(UsageError, match="positive"):
        step_times({8: -1.0})


def test_a_recorded_run_tells_its_step_times():
    rng = np.random.default_rng(0)
    sizes = np.repeat([32.0, 128.0, 32.0], 200)
    sizes[99::100] = 7  # the last batch of an epoch
    times = (0.05 + 1e-3 * sizes) * rng.lognormal(0, 0.05, sizes.size)
    times[::50] += 3.0  # evaluations
    found = recorded_times(Run.from_arrays({"batch_size": sizes, "step_seconds": times}))
    assert list(found.seconds) == [32, 128]
    assert found.seconds[32] == pytest.approx(0.082, rel=0.02)
    assert found.per_sample == pytest.approx(1e-3, rel=0.1)
    assert 0 < found.spread[32] < 0.02
    with pytest.raises(UsageError, match="no batch_size"):
        recorded_times(Run.from_arrays({"step_seconds": times}))


def test_functions_named_like_their_files_are_not_hidden_by_them():
    importlib.import_module("foreshock.batch_size.goodput")
    importlib.import_module("foreshock.batch_size.gain")
    assert batch_size.goodput is goodput
    assert callable(batch_size.gain)
    assert all(callable(getattr(batch_size, name)) for name in batch_size.__all__)


def test_numbers_of_numpy_are_numbers():
    sizes = np.array([32, 64, 128])
    found = goodput((1.0, 0.01), np.float32(100.0), candidates=sizes)
    assert found.best == goodput((1.0, 0.01), 100, candidates=[32, 64, 128]).best
    assert batch_size.switch_advice(np.int64(32), (1.0, 0.01), np.int64(400), batches=sizes).decision == "switch"
