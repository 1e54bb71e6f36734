"""Curvature from losses alone, on quadratics with closed forms, and what it leaves untouched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.curvature.forward import critical_lr, step_curvature
from foreshock.errors import UsageError
from tests.curvature.matrices import outliers, symmetric


def quadratic(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, Tensor]:
    h = symmetric(outliers(40).abs(), seed, dtype)
    return nn.Parameter(torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=dtype)), h


@pytest.mark.parametrize("start", [1e-6, 0.05, 0.3, 40.0, 1e5])
@pytest.mark.parametrize("seed", range(3))
def test_the_critical_lr_of_a_quadratic_is_two_over_its_curvature(start: float, seed: int) -> None:
    theta, h = quadratic(seed)
    gradient = (h @ theta).detach()
    found = critical_lr(lambda: 0.5 * theta @ h @ theta, [theta], [-gradient], start=start)
    curvature = float(gradient @ h @ gradient / (gradient @ gradient))
    assert found.converged
    assert found.lr / (1 + 1 / 16) <= 2 / curvature <= found.lr
    assert found.sharpness == pytest.approx(2 / found.lr)
    assert found.bracket[0] < found.lr == found.bracket[1]
    tight = critical_lr(lambda: 0.5 * theta @ h @ theta, [theta], [-gradient], start=start, precision=1e-8)
    assert tight.sharpness == pytest.approx(curvature, rel=1e-7)


def test_a_warm_start_takes_five_passes_and_a_factor_of_two_nine() -> None:
    theta, h = quadratic()
    gradient = (h @ theta).detach()
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * theta @ h @ theta

    first = critical_lr(loss, [theta], [-gradient], start=0.2)
    for start, most in ((first.lr, 5), (first.bracket[0], 5), (first.lr / 2, 9), (first.lr * 2, 9)):
        calls = 0
        again = critical_lr(loss, [theta], [-gradient], start=start)
        assert again.forwards == calls <= most
        assert abs(again.lr / first.lr - 1) < 2 / 16


def test_a_direction_that_climbs_has_no_lr_and_one_that_falls_for_ever_has_no_limit() -> None:
    theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    uphill = critical_lr(lambda: theta.sum(), [theta], [torch.ones(2)])
    assert (uphill.lr, uphill.sharpness, uphill.converged) == (0.0, math.inf, False)
    downhill = critical_lr(lambda: theta.sum(), [theta], [-torch.ones(2)])
    assert (downhill.lr, downhill.sharpness, downhill.converged) == (math.inf, 0.0, False)


def test_a_loss_that_overflows_counts_as_a_rise() -> None:
    theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    found = critical_lr(lambda: torch.sqrt(1.0 - theta).sum(), [theta], [torch.ones(1)], start=1e-3)
    assert found.lr == pytest.approx(1.0, rel=0.07)  # NaN beyond 1


def noisy_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def test_nothing_is_touched_and_a_live_graph_survives() -> None:
    model, x, y = noisy_net()
    params = list(model.parameters())
    loss = F.cross_entropy(model(x), y)  # the graph of a training step, waiting for its backward
    expected = torch.autograd.grad(loss, params, retain_graph=True)
    values = [t.clone() for t in [*params, *model.buffers()]]
    places = [(p.data_ptr(), p._version, p.grad) for p in params]
    stream = torch.get_rng_state()
    found = critical_lr(lambda: F.cross_entropy(model(x), y), params, [-g for g in expected], start=0.1)
    assert found.converged  # dropout is the same at each pass
    assert all(torch.equal(a, b) for a, b in zip(values, [*params, *model.buffers()], strict=True))
    assert places == [(p.data_ptr(), p._version, p.grad) for p in params]
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(loss, params), strict=True))


def test_parameters_come_back_when_the_closure_raises() -> None:
    theta, h = quadratic()
    before, calls = theta.detach().clone(), 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ZeroDivisionError("on purpose")
        return 0.5 * theta @ h @ theta

    with pytest.raises(ZeroDivisionError):
        critical_lr(loss, [theta], [-(h @ theta).detach()])
    assert torch.equal(theta, before)


def test_bad_input_of_a_critical_lr_is_named() -> None:
    theta, h = quadratic()
    direction = [-(h @ theta).detach()]
    values = iter(range(100))
    with pytest.raises(UsageError, match=r"0\.0 and then 1\.0"):
        critical_lr(lambda: torch.tensor(float(next(values))), [theta], direction)
    with pytest.raises(UsageError, match=r"one real number.*\(40,\)"):
        critical_lr(lambda: h @ theta, [theta], direction)
    with pytest.raises(UsageError, match="str"):
        critical_lr(lambda: "loss", [theta], direction)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="nan before any step"):
        critical_lr(lambda: torch.tensor(math.nan), [theta], direction)
    with pytest.raises(UsageError, match="start"):
        critical_lr(lambda: theta.sum(), [theta], direction, start=0.0)
    with pytest.raises(UsageError, match="shaped like its parameter"):
        critical_lr(lambda: theta.sum(), [theta], [torch.ones(3)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_curvature_along_a_step_is_exact_on_a_quadratic_within_its_rounding(dtype: torch.dtype) -> None:
    theta, h = quadratic(dtype=dtype)

    def loss() -> Tensor:
        return 0.5 * theta @ h @ theta

    for scale in (1e-1, 1e-2, 1e-4, 1e-6):
        gradient = (h @ theta).detach()
        step = -scale * gradient
        before = loss().detach()
        held = theta.detach().clone()
        with torch.no_grad():
            theta += step
        taken = theta.detach() - held
        found = step_curvature(loss, before, [gradient], [taken])
        exact = float(taken.double() @ h.double() @ taken.double())
        assert abs(found.bend - exact) <= found.rounding + 1e-12 * abs(exact)
        assert found.slope == pytest.approx(float(gradient.double() @ taken.double()), rel=1e-6)
        if scale >= 1e-2:
            assert found.rounding < 0.1 * exact
            assert found.chi_step == pytest.approx(exact / (-2 * found.slope), rel=0.05)
    assert found.rounding > exact or dtype == torch.float64  # it says where float32 has nothing left to tell


def test_an_uphill_step_has_a_bend_but_no_quotient() -> None:
    theta, h = quadratic()
    found = step_curvature(lambda: 0.5 * theta @ h @ theta, 1.0, [torch.ones(40)], [torch.ones(40)])
    assert math.isnan(found.chi_step)
    assert found.slope == 40.0
    none = step_curvature(lambda: 0.5 * theta @ h @ theta, 1.0, [None], [torch.ones(40)])
    assert none.slope == 0.0


def test_the_pass_after_a_step_leaves_dropout_and_batch_statistics_alone() -> None:
    model, x, y = noisy_net()
    params = list(model.parameters())
    stream = torch.get_rng_state()
    loss = F.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, params)
    buffers = [b.clone() for b in model.buffers()]
    torch.set_rng_state(stream)
    step_curvature(lambda: F.cross_entropy(model(x), y), loss, gradient, [-0.1 * g for g in gradient])
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(p.grad is None for p in params)
    with pytest.raises(UsageError, match="1 gradients for 2 steps"):
        step_curvature(lambda: loss, 1.0, gradient[:1], gradient[:2])
