"""Adam on a parabola: the steps it crosses at, the closed form, and the bound beyond which nothing crosses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.papers.adam_quadratic import (
    LENGTHS,
    SAFE,
    chi,
    critical_eps,
    crossing,
    gradient_descent,
    parabola,
    torch_chi,
    uncorrected,
)
from foreshock.papers.calm_spikes import runs_above


def first_run(values: np.ndarray) -> tuple[int, int]:
    """First and last step, from 1, of the first run above the edge after the start."""
    up, last = next(each for each in runs_above(values, 1) if each[0] >= SAFE)
    return up + 1, last + 1


@pytest.mark.parametrize(("beta2", "up", "down"), [(0.99, 888, 949), (0.999, 6541, 7069), (0.95, 216, 226)])
def test_chi_crosses_at_known_steps_and_where_the_closed_form_says(beta2, up, down):
    trail = parabola(beta2, LENGTHS[beta2])
    found = first_run(chi(trail))
    assert found[0] == up
    assert found[1] + 1 == pytest.approx(down, abs=1)
    for ahead in (1, 10, 40):
        assert crossing(trail, up - 1 - ahead) == up - 1
    root = np.sqrt(trail.v[up - 1, 0] / (1 - beta2**up))
    assert 38.0 <= 0.1 / root <= 38.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_adam_crosses_at_the_same_steps_in_both_precisions(dtype):
    assert first_run(torch_chi(dtype, 960)) == (888, 948)


def test_the_loss_peaks_as_chi_falls_below_the_edge():
    trail = parabola(0.99, 1000)
    assert 1 + 888 + np.argmax(np.abs(trail.thetas[888:, 0])) == 949
    assert np.abs(trail.thetas[888:, 0]).max() == pytest.approx(0.0303, abs=2e-4)


def test_without_bias_corrections_it_is_a_few_steps_later():
    assert first_run(chi(parabola(0.99, 1000, corrected=False))) == (893, 952)


def test_a_low_beta2_stays_below_the_edge():
    most = chi(parabola(0.9, 4000))[SAFE:].max()
    assert 0.98 <= most < 1.0


@pytest.mark.parametrize(("eps", "crosses"), [(2.63e-3, True), (2.64e-3, False)])
def test_eps_beyond_the_bound_never_crosses(eps, crosses):
    trail = parabola(0.99, 6000, eps=eps)
    assert bool((chi(trail)[SAFE:] > 1).any()) is crosses


def test_the_bound_lies_where_bisection_says():
    low, high = critical_eps(steps=2500, rounds=5)
    assert low <= 0.1 / 38 + 3e-5
    assert high >= 0.1 / 38
    assert high - low == pytest.approx(2e-3 / 32)
    beyond = parabola(0.99, 50, eps=3e-3)
    assert crossing(beyond, 40) == np.iinfo(np.int64).max


def test_without_momentum_the_crossing_is_the_minimum():
    thetas, roots = uncorrected(0.1, 0.9, 140)
    below = np.flatnonzero(roots < 0.05)
    assert (below[0], below[-1] if below[-1] < 98 else 97) == (63, 97)
    assert np.argmin(thetas[:98]) == 63
    assert 1 + np.argmax(thetas[1:]) == 98
    assert thetas[98] == pytest.approx(2.19, abs=0.01)
    thetas, roots = uncorrected(0.01, 0.9, 230)
    assert np.flatnonzero(roots < 0.005)[0] == np.argmin(thetas[:210]) == 181


def test_gradient_descent_at_the_same_rate_only_decreases():
    assert (np.diff(gradient_descent(500)) < 0).all()
