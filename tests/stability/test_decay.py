"""The closed forms of free decay against simulations of the optimizer, and the values measured on one quadratic."""

from __future__ import annotations

import doctest
import math
import random
import subprocess
import sys
from collections.abc import Callable

import pytest

from foreshock.errors import UsageError
from foreshock.stability import critical_denominator, crossing_step, decay, eps_crit, waiting_time

State = tuple[int, float, float, float]


def adam(beta2: float, steps: int, *, eps: float = 1e-8, lr: float = 0.1, beta1: float = 0.9) -> list[State]:
    """Returns (t, v, P, chi) of Adam on theta^2/2 from 1; P = sqrt(vhat) + eps and chi include the step's gradient."""
    theta, m, v, found = 1.0, 0.0, 0.0, []
    for t in range(1, steps + 1):
        m, v = beta1 * m + (1 - beta1) * theta, beta2 * v + (1 - beta2) * theta * theta
        P = math.sqrt(v / (1 - beta2**t)) + eps
        chi = lr / 2 * (1 - beta1) / ((1 + beta1) * (1 - beta1**t)) / P
        found.append((t, v, P, chi))
        theta -= lr * m / (1 - beta1**t) / P
    return found


@pytest.mark.parametrize(("beta2", "crossing", "since"), [(0.99, 888, 200), (0.999, 6541, 1000), (0.95, 216, 120)])
def test_the_crossing_of_adam_on_a_quadratic_is_told_to_the_step(beta2: float, crossing: int, since: int) -> None:
    run = adam(beta2, crossing + 5)
    assert next(t for t, _, _, chi in run if chi >= 1 and t > 50) == crossing
    critical = critical_denominator(1.0, lr=0.1)
    for begun in (since, (since + crossing) // 2, crossing - 1):
        t, v, _, _ = run[begun - 1]
        assert crossing_step(v, beta2, critical, step=t, eps=1e-8) == crossing
        late = -math.log(1 - beta2**crossing) / -math.log(beta2)  # what is left of the bias correction
        assert waiting_time(v, beta2, critical - 1e-8) + late == pytest.approx(crossing - t, abs=1.0)


def test_the_eps_that_keeps_a_quadratic_below_its_edge_is_the_bound() -> None:
    bound = eps_crit(1.0, lr=0.1)
    assert bound == pytest.approx(0.1 / 38, rel=1e-12)
    late = [chi for _, _, _, chi in adam(0.99, 6000, eps=2.64e-3)[50:]]
    assert 2.63e-3 < bound < 2.64e-3
    assert max(late) < 1
    assert max(chi for _, _, _, chi in adam(0.99, 6000, eps=2.63e-3)[50:]) > 1
    assert eps_crit(1.0, lr=0.1, step=1) == pytest.approx(10 * bound)


def test_any_setting_crosses_where_a_step_by_step_decay_does() -> None:
    draw = random.Random(0)
    never = early = 0
    for _ in range(300):
        beta1, beta2 = draw.choice([0.0, 0.5, 0.9, 0.97]), draw.uniform(0.8, 0.995)
        lr, curvature = 10 ** draw.uniform(-3, 0), 10 ** draw.uniform(-1, 2)
        critical = critical_denominator(curvature, lr=lr, beta1=beta1)
        v, eps = (critical * 10 ** draw.uniform(-0.5, 3)) ** 2, critical * draw.choice([0.0, 0.1, 0.9, 1.2, 3.0])
        step = draw.choice([None, 1, 2, 5, 30, 400])
        begun = step or 0
        found = crossing_step(v, beta2, critical, step=step, beta1=beta1, eps=eps)
        seen, kept = None, v
        for t in range(begun, begun + 4000):
            vhat = kept if step is None else kept / (1 - beta2**t)
            q = 1.0 if step is None else 1 - beta1**t
            if math.sqrt(vhat) + eps <= critical / q:
                seen = t
                break
            kept *= beta2
        assert found == seen, (v, beta2, critical, step, beta1, eps)
        never += seen is None
        early += seen is not None and eps > critical
    assert never > 20
    assert early > 3


def test_without_gradient_long_enough_numbers_do_not_underflow() -> None:
    assert crossing_step(1.0, 0.999, 1e-200, step=10) == math.ceil(waiting_time(1.0, 0.999, 1e-200)) + 10
    assert crossing_step(1e-300, 0.999, 1e-4, step=10) == 10


@pytest.mark.parametrize(
    "call",
    [
        lambda: critical_denominator(-1.0, lr=0.1), lambda: critical_denominator(1.0, lr=0.0),
        lambda: critical_denominator(1.0, lr=0.1, beta1=1.0), lambda: critical_denominator(1.0, lr=0.1, step=0),
        lambda: eps_crit(math.nan, lr=0.1), lambda: waiting_time(0.0, 0.9, 1.0), lambda: waiting_time(1.0, 1.1, 1.0),
        lambda: crossing_step(1.0, 1.0, 0.1), lambda: crossing_step(1.0, 0.9, 0.1, step=0),
        lambda: crossing_step(1.0, 0.9, 0.1, eps=-1.0),
    ],
)
def test_senseless_numbers_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        call()


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(decay).failed == 0


def test_it_works_where_torch_is_absent() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from foreshock.stability import crossing_step, eps_crit, waiting_time, critical_denominator\n"
        "print(eps_crit(1.0, lr=0.38))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.01)
