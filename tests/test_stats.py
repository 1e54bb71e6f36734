"""The rolling statistics against slow obvious versions and closed forms."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshock.stats import Baseline, LossScale, Window, tail_bound, upper_scale

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=60), st.integers(1, 12))
def test_window_equals_the_sorted_tail_of_the_series(values: list[float], size: int) -> None:
    window = Window(size)
    for i, value in enumerate(values):
        leaving = window.push(value)
        assert leaving == (values[i - size] if i >= size else None)
        tail = values[max(0, i + 1 - size) : i + 1]
        assert window.to_list() == tail
        assert window.sorted() == sorted(tail)
        assert window.median() == statistics.median(tail)
        assert window.quantile(0.0) == min(tail)
        assert window.quantile(1.0) == max(tail)


def test_window_drops_its_oldest_value() -> None:
    window = Window(4, [3.0, 1.0, 2.0])
    window.drop()
    assert window.to_list() == [1.0, 2.0]
    assert window.sorted() == [1.0, 2.0]


def test_empty_window_has_median_zero() -> None:
    assert Window(3).median() == 0.0


def normal(n: int, seed: int = 0) -> list[float]:
    noise = random.Random(seed)
    return [noise.gauss(0.0, 1.0) for _ in range(n)]


def test_upper_scale_is_sigma_for_normal_noise() -> None:
    assert upper_scale(Window(20_000, normal(20_000))) == pytest.approx(1.0, abs=0.02)


def test_upper_scale_does_not_see_outliers_below() -> None:
    values = normal(1000)
    spoiled = [value if i % 10 else value - 1000.0 for i, value in enumerate(values)]
    assert upper_scale(Window(1000, spoiled)) == pytest.approx(upper_scale(Window(1000, values)), rel=0.15)


def test_tail_bound_is_the_quantile_inside_the_sample() -> None:
    window = Window(1000, [float(i) for i in range(1000)])
    assert tail_bound(window, 0.1) == pytest.approx(400.0, abs=2.0)


def test_tail_bound_of_a_pareto_tail_is_close_to_the_true_quantile() -> None:
    # a third of the values are zeros, the others +-u^-0.4: P(X > x) = x^-2.5 / 3, and 3e-4 ** -0.4 = 25.7 at p = 1e-4
    uniform = random.Random(3)
    values = [(i % 3 - 1) * uniform.random() ** -0.4 for i in range(30_000)]
    assert tail_bound(Window(30_000, values), 1e-4) == pytest.approx(25.7, rel=0.2)


def test_tail_bound_of_normal_noise_stays_within_a_few_sigma() -> None:
    bounds = [tail_bound(Window(256, normal(256, seed)), 5e-4) for seed in range(40)]
    assert 3.3 < statistics.mean(bounds) < 6.0  # the true quantile is 3.3; the power law is on the safe side


def test_tail_bound_grows_with_the_tail() -> None:
    light = Window(256, normal(256))
    heavy = Window(256, [value * abs(other) ** 2 for value, other in zip(normal(256), normal(256, 1), strict=True)])
    assert tail_bound(heavy, 5e-4) / upper_scale(heavy) > 2.0 * tail_bound(light, 5e-4) / upper_scale(light)


def test_tail_bound_without_spread_is_zero() -> None:
    assert tail_bound(Window(64, [1.0] * 64), 1e-3) == 0.0
    assert tail_bound(Window(64, [1.0, 2.0]), 1e-3) == 0.0


def feed(base: Baseline, values: list[float]) -> None:
    for value in values:
        base.admit(value, base.residual(value))


def test_baseline_predicts_a_falling_line_without_lag() -> None:
    base = Baseline(10, 256)
    feed(base, [100.0 - i for i in range(60)])
    assert base.residual(40.0) == pytest.approx(0.0, abs=1e-9)


def test_baseline_does_not_follow_a_rising_line() -> None:
    base = Baseline(10, 256)
    feed(base, [0.0] * 40)
    feed(base, [1.0, 2.0, 3.0])
    assert base.level == 0.0
    assert base.residual(4.0) == 4.0


def test_baseline_scale_is_sigma_of_white_noise() -> None:
    scales = []
    for seed in range(20):
        base = Baseline(10, 256)
        feed(base, normal(600, seed))
        scales.append(base.scale())
    assert statistics.mean(scales) == pytest.approx(1.15, abs=0.15)  # the prediction is uncertain too


def test_baseline_scale_follows_a_noise_that_grew() -> None:
    base = Baseline(10, 256)
    feed(base, [0.1 * value for value in normal(300)])
    before = base.scale()
    feed(base, normal(16, 5))
    assert base.scale() > 4.0 * before


def test_baseline_restart_keeps_the_noise_and_moves_the_level() -> None:
    base = Baseline(10, 256)
    feed(base, normal(300))
    scale = base.scale()
    base.restart([50.0] * 5)
    assert base.level == 50.0
    assert base.scale() == scale


@given(st.lists(finite, max_size=80), st.lists(finite, max_size=20))
def test_baseline_state_round_trips_through_json(first: list[float], second: list[float]) -> None:
    base, copy = Baseline(5, 30), Baseline(5, 30)
    feed(base, first)
    copy.load_state_dict(json.loads(json.dumps(base.state_dict())))
    feed(base, second)
    feed(copy, second)
    assert copy.state_dict() == base.state_dict()
    assert copy.residual(1.0) == base.residual(1.0)
    assert copy.scale() == base.scale()


def test_loss_scale_is_logarithmic_until_a_loss_is_negative() -> None:
    scale = LossScale()
    assert scale.fits(3.0)
    assert scale(6.0) - scale(3.0) == pytest.approx(math.log(2.0))
    assert not scale.fits(-0.5)
    scale.refit(-0.5)
    assert scale.fits(-0.5)
    assert scale(-0.5) == -0.5
    assert scale.fits(1e9)


def test_loss_scale_learns_its_resolution_from_exact_zeros() -> None:
    scale = LossScale()
    for loss in (2.0, 1e-3, 6e-10):
        assert scale.fits(loss)
    assert not scale.fits(0.0)
    scale.refit(0.0)
    assert scale.fits(0.0)
    assert scale(6e-10) - scale(0.0) < 0.2  # one step of the resolution is little
    assert scale(1e-3) - scale(0.0) > 10.0


@given(st.floats(1e-12, 1e12))
def test_loss_scale_maps_back(loss: float) -> None:
    scale = LossScale()
    assert scale.fits(1.0)
    assert scale.back(scale(loss)) == pytest.approx(loss, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_loss_scale_maps_any_finite_loss_to_a_finite_number(losses: list[float]) -> None:
    scale = LossScale()
    for loss in losses:
        if not scale.fits(loss):
            scale.refit(loss)
        assert math.isfinite(scale(loss))
        assert math.isfinite(scale.back(scale(loss)))
