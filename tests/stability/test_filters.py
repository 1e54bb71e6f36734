"""The root locus against published thresholds, closed forms and the roots of the loop on either side."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshock.errors import UsageError
from foreshock.stability import filters, polynomials
from foreshock.stability.filters import Filter, critical_step, spectral_radius

poles = st.floats(0, 0.995)


def around(filter: Filter, k: float, decay: float = 0.0) -> tuple[float, float]:
    """Returns the spectral radius 2 % below and above k, from the polynomial in z that the loop's algebra gives."""
    size = max(len(filter.a) + 1, len(filter.b) + 1)
    still, moving = np.zeros(size), np.zeros(size)
    still[: len(filter.a) + 1] = np.convolve([1, decay - 1], filter.a)
    moving[1 : len(filter.b) + 1] = filter.b
    return tuple(np.abs(np.roots(still + k * factor * moving)).max() for factor in (0.98, 1.02))


def test_docstrings():
    assert doctest.testmod(filters).failed == 0
    assert doctest.testmod(polynomials).failed == 0


@pytest.mark.parametrize(
    ("filter", "published"),
    [
        (filters.identity(), 2), (filters.heavy_ball(0.9), 3.8), (filters.heavy_ball(0.9, 0.9), 38),
        (filters.nesterov(0.9), 1.357), (filters.ema(0.9), 38), (filters.ema(0.95), 78), (filters.ema(0.5), 6),
        (filters.mix(0.1, 0.9, 0.9), 13.57), (filters.mix(0.05, 0.95, 0.95), 26.9), (filters.qhm(0.7, 0.9), 5.938),
        (filters.lion(0.9, 0.99), 20.95), (filters.ademamix(0.9, 0.9999, 8), 37.71),
    ],
)
def test_published_thresholds_of_period_2(filter, published):
    found = critical_step(filter)
    assert found.k == pytest.approx(published, rel=5e-4)
    assert found.alternating
    assert found.period == 2


def test_the_cascade_leaves_the_circle_far_from_period_2():
    found = critical_step(filters.cascade(0.7, 0.85))
    assert found.k == pytest.approx(0.6807, abs=5e-5)
    assert found.frequency / math.pi == pytest.approx(0.088, abs=5e-4)
    assert 2 / filters.cascade(0.7, 0.85).gain() == pytest.approx(139.8, abs=0.05)
    assert not found.alternating


def test_two_equal_poles_leave_at_period_2_up_to_a_third_and_elsewhere_above():
    assert critical_step(filters.cascade(0.33, 0.33)).alternating
    assert not critical_step(filters.cascade(0.34, 0.34)).alternating


@given(b=st.floats(0.34, 0.99))
def test_two_equal_poles_have_a_closed_form(b):
    """z - 1 + k ((1-b)z/(z-b))^2 / z: with the phase at its limit, k = 2 (1 - b)/b ... from |z| = 1 by Jury's table."""
    # (z-1)(z-b)^2 + k (1-b)^2 z^2 = z^3 + (c-1-2b) z^2 + (2b+b^2) z - b^2, c = k (1-b)^2; Jury: |1 - b^4| =
    # |(2b+b^2) + b^2 (c-1-2b)| at the boundary, hence b^2 c = 1 - b^4 - 2b - b^2 + b^2 + 2b^3
    c = (1 - b**4 - 2 * b + 2 * b**3) / b**2
    assert critical_step(filters.cascade(b, b)).k == pytest.approx(c / (1 - b) ** 2, rel=1e-6)


@settings(max_examples=60)
@given(
    parts=st.lists(st.tuples(st.floats(0.01, 2), poles), min_size=1, max_size=3),
    decay=st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.5]),
)
def test_positive_mixtures_of_averages_leave_at_period_2(parts, decay):
    mixture = Filter((0.0,))
    for weight, beta in parts:
        mixture = mixture + weight * filters.ema(beta)
    found = critical_step(mixture, decay)
    if decay <= 1:  # a > 0; with a negative a another root may be first
        assert found.k == pytest.approx((2 - decay) / mixture.gain(), rel=1e-12)
    below, above = around(mixture, found.k, decay)
    assert below < 1 + 1e-9 < above


@settings(max_examples=80)
@given(betas=st.lists(st.floats(0.05, 0.97), min_size=2, max_size=4), decay=st.sampled_from([0.0, 0.001, 0.1]))
def test_cascades_are_stable_just_below_and_unstable_just_above(betas, decay):
    found = critical_step(filters.cascade(*betas), decay)
    below, above = around(filters.cascade(*betas), found.k, decay)
    assert below < 1 < above
    assert all(
        spectral_radius(filters.cascade(*betas), found.k * share, decay) < 1 for share in (1e-3, 0.1, 0.3, 0.6, 0.9)
    )


@settings(max_examples=80)
@given(
    data=st.lists(st.floats(-1, 1), min_size=1, max_size=4), radius=st.floats(0.05, 0.97), angle=st.floats(0, math.pi)
)
def test_any_filter_with_complex_poles_is_bracketed(data, radius, angle):
    filter = Filter(tuple(data), (1.0, -2 * radius * math.cos(angle), radius**2))
    if filter.gain(1.0) < 1e-3:  # no descent at rest: nothing to be stable
        return
    found = critical_step(filter)
    assert found.k > 0
    assert spectral_radius(filter, found.k * (1 - 1e-5)) < 1 < spectral_radius(filter, found.k * (1 + 1e-5))


def test_slow_poles_close_together_are_told_apart_from_the_circle():
    """Four averages of .99: rounding in powers of z moves the poles by more than their distance from the circle."""
    found = critical_step(filters.cascade(*[0.99] * 4))
    # four equal lags of 100 steps each and an integrator, nearly continuous: k close to the ultimate gain of
    # s (1 + 100 s)^4, phase 90 + 4 atan(100 w) = 180, so 100 w = tan(22.5 degrees) and k = w (1 + (100 w)^2)^2
    w = math.tan(math.pi / 8) / 100
    assert found.k == pytest.approx(w * (1 + (100 * w) ** 2) ** 2, rel=0.02)
    assert found.frequency == pytest.approx(w, rel=0.02)


def test_decay_moves_the_threshold_of_period_2():
    assert critical_step(filters.ema(0.9), 0.8).k == pytest.approx(22.8)


def test_an_uphill_filter_has_no_stable_step_unless_decay_holds_it():
    assert critical_step(-1.0 * filters.identity()).k == 0
    assert critical_step(-1.0 * filters.identity(), 0.1).k == pytest.approx(0.1)
    assert critical_step(-1.0 * filters.identity(), 0.1).period == math.inf


def test_a_filter_of_zeros_never_goes_unstable():
    assert critical_step(Filter((0.0,))).k == math.inf


def test_a_pole_on_the_circle_is_marginal_and_one_outside_is_refused():
    assert critical_step(filters.heavy_ball(1.0)).k == pytest.approx(4)
    with pytest.raises(UsageError, match=r"pole at \|z\| = 1.1"):
        critical_step(filters.heavy_ball(1.1))


@pytest.mark.parametrize("coefficients", [((), (1.0,)), ((1.0,), ()), ((1.0,), (0.0, 1.0)), ((math.nan,), (1.0,))])
def test_a_filter_without_sense_is_refused(coefficients):
    with pytest.raises(UsageError, match="finite coefficients"):
        Filter(*coefficients)


@given(x=poles, y=poles, z=st.complex_numbers(min_magnitude=1.01, max_magnitude=3))
def test_sums_products_and_scales_are_those_of_the_responses(x, y, z):
    left, right = filters.ema(x), filters.nesterov(y)
    assert (left + right).response(z) == pytest.approx(left.response(z) + right.response(z))
    assert (left * right).response(z) == pytest.approx(left.response(z) * right.response(z))
    assert (2.5 * left).response(z) == pytest.approx(2.5 * left.response(z))


@settings(max_examples=30)
@given(beta=st.floats(0, 0.99), taps=st.integers(1, 40))
def test_the_coefficients_are_those_of_the_recursion(beta, taps):
    """The impulse response b(x)/a(x), by long division, against the average fed with one gradient."""
    filter, m, past = filters.lion(beta, 0.9), 0.0, []
    for t in range(taps):
        g = float(t == 0)
        direct = (1 - beta) * g + beta * m
        m = 0.9 * m + 0.1 * g
        known = sum(-a * past[t - i] for i, a in enumerate(filter.a) if 0 < i <= t)
        past.append(known + (filter.b[t] if t < len(filter.b) else 0.0))
        assert past[-1] == pytest.approx(direct, abs=1e-12)
