"""Schedule-Free and SAM by running them, as their authors write them, on a quadratic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshock.stability import stability_threshold


def schedule_free(curvature: float, lr: float, beta: float, c: float, wd: float, steps: int) -> float:
    z = x = 1e-6
    for _ in range(steps):
        y = (1 - beta) * z + beta * x
        z -= lr * (curvature + wd) * y
        x = (1 - c) * x + c * z
    return math.hypot(z, x) / 1e-6


@pytest.mark.parametrize("c", [1e-4, 1e-2, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.9, 0.98])
@pytest.mark.parametrize("wd", [0.0, 2.0])
def test_schedule_free_at_a_fixed_averaging_weight(c, beta, wd):
    edge = stability_threshold("schedule-free", lr=0.1, beta=beta, c=c, weight_decay=wd).value + wd
    assert schedule_free(0.98 * edge - wd, 0.1, beta, c, wd, 1500) < 30
    assert schedule_free(1.02 * edge - wd, 0.1, beta, c, wd, 1500) > 1e6


def test_schedule_free_averages_with_one_over_the_step():
    assert stability_threshold("schedulefree", lr=1.0, step=4).value == pytest.approx(
        stability_threshold("schedulefree", lr=1.0, c=0.25).value
    )
    assert stability_threshold("schedulefree", lr=1.0, step=4, r=1.0).value == pytest.approx(
        stability_threshold("schedulefree", lr=1.0, c=4 / 10).value
    )


def sam(curvature: float, s: dict[str, float], gradient: float, steps: int = 600) -> float:
    """Returns how much a small displacement grew under SAM on gradient * x + curvature/2 y^2: |g| stays `gradient`."""
    y, buffer = 1e-9, 0.0
    for _ in range(steps):
        norm = math.hypot(gradient, curvature * y)
        g = curvature * (y + s["rho"] * curvature * y / norm) + s["weight_decay"] * y
        if s["momentum"]:
            buffer = s["momentum"] * buffer + (1 - s["dampening"]) * g
            g = g + s["momentum"] * buffer if s["nesterov"] else buffer
        y -= s["lr"] * g
        if not 1e-300 < abs(y) < 1:
            break
    return abs(y) / 1e-9


@pytest.mark.parametrize(("rho", "published"), [(0.0, 20), (0.05, 12.36), (0.5, 5.40)])
def test_sam_on_gradient_descent_has_the_published_threshold(rho, published):
    assert stability_threshold("sam", lr=0.1, rho=rho, grad_norm=1.0).value == pytest.approx(published, abs=5e-3)


@settings(max_examples=40)
@given(
    rho=st.floats(0, 1), gradient=st.floats(0.1, 5), momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(), weight_decay=st.sampled_from([0.0, 1.0]),
)
def test_sam_decays_below_and_grows_above(rho, gradient, momentum, nesterov, weight_decay):
    given_settings = {
        "lr": 0.1, "rho": rho, "momentum": momentum, "nesterov": nesterov and momentum > 0, "dampening": 0.0,
        "weight_decay": weight_decay,
    }
    edge = stability_threshold("sam", grad_norm=gradient, **given_settings).value
    assert sam(0.98 * edge, given_settings, gradient) < 1
    assert sam(1.02 * edge, given_settings, gradient) > 1e3
