from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest

import foreshock.stability.foresight as module
from foreshock.errors import UsageError
from foreshock.stability.foresight import Refill, outlook


def test_the_examples_hold() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("chi", [1.01, 1.1, 1.7])
@pytest.mark.parametrize("share", [1e-12, 1e-4, 0.1])
def test_gradient_descent_rises_when_its_closed_form_says(chi: float, share: float) -> None:
    found = outlook(chi, share)
    steps = math.log(1 + 0.5 / share) / (2 * math.log(2 * chi - 1))
    assert found.steps == pytest.approx(steps, abs=1.0)
    assert math.isinf(found.rise)


def simulate(chi: float, share: float, *, beta1: float, beta2: float, age: int, size: float) -> np.ndarray:
    """Returns the losses of one parameter on a quadratic with a constant beside it, begun beyond the edge.

    The curvature is 1, the displacement 1, v is 1 / size of the gradient's square, and the past alternated in sign.
    """
    floor = 0.5 * (1 / share - 1)
    theta, v = 1.0, 1.0 / size
    m = (1 - beta1) / (1 + beta1)
    # the first step is given: v holds its gradient, and lr is such that chi is what it should be
    correction = 1 - beta2**age
    lr = chi * 2 * (1 + beta1) / (1 - beta1) * math.sqrt(v / correction)
    losses = []
    for step in range(3000):
        losses.append(floor + 0.5 * theta**2)
        if step:
            m = beta1 * m + (1 - beta1) * theta
            v = beta2 * v + (1 - beta2) * theta**2
        correction = 1 - beta2 ** (age + step)
        theta -= lr * m / math.sqrt(v / correction)
    return np.array(losses)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("beta2", [0.95, 0.99, 0.999])
@pytest.mark.parametrize(("size", "share"), [(1e-6, 1e-5), (1e-2, 1e-3), (0.1, 0.05)])
@pytest.mark.parametrize("age", [50, 100_000])
def test_one_parameter_under_adam_does_as_foretold(
    beta1: float, beta2: float, size: float, share: float, age: int
) -> None:
    losses = simulate(1.01, share, beta1=beta1, beta2=beta2, age=age, size=size)
    found = outlook(1.01, share, momentum=beta1, refill=Refill(beta2, size, 0.0, age))
    assert found.rise == pytest.approx(losses[found.peak] / losses[0], rel=1e-6)
    assert np.argmax(losses[: found.peak + 5]) == found.peak
    risen = np.flatnonzero(losses >= losses[0] * 1.5)
    if found.steps is not None:
        assert abs(found.steps - risen[0]) <= 1


def test_a_gradient_that_feeds_the_second_moment_keeps_the_loss_down() -> None:
    free = outlook(1.02, 1e-6, momentum=0.9, refill=Refill(0.999, 1e-9, 0.0))
    fed = outlook(1.02, 1e-6, momentum=0.9, refill=Refill(0.999, 1e-9, 20.0))
    assert free.rise > 2
    assert fed.rise < 1.01
    assert fed.steps is None


def test_sharpening_brings_forward_what_is_to_come() -> None:
    slow, fast = (outlook(0.99, 1e-8, drift=drift) for drift in (1e-3, 1e-2))
    assert slow.steps is not None
    assert fast.steps is not None
    assert fast.steps < slow.steps
    assert outlook(0.99, 1e-8).rise == 1.0


def test_a_denominator_that_eps_holds_does_not_follow_the_second_moment() -> None:
    free, held = (outlook(0.99, 1e-6, refill=Refill(0.999, 0.0, 0.0, share=share)) for share in (1.0, 0.0))
    assert math.isinf(free.rise)
    assert held.rise == 1.0


@pytest.mark.parametrize("bad", [{"chi": math.nan}, {"share": -1.0}, {"momentum": 1.0}, {"refill": Refill(0.0, 1, 1)}])
def test_numbers_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        outlook(**({"chi": 1.0, "share": 0.1} | bad))
