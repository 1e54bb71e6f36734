"""Forms P, S and U against their definitions on dense matrices, and what they foretell against what happens."""

from __future__ import annotations

import doctest
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from foreshock.curvature import ExplicitOperator, Hessian
from foreshock.curvature.directional import directional
from foreshock.errors import UsageError
from tests.curvature.matrices import operator, outliers

N = 60


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(seed: int) -> Tensor:
    """Returns W over five decades, as Adam's are, with some zeros."""
    w = 10.0 ** (-5 * torch.rand(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    w[::9] = 0.0
    return w


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(sys.modules[directional.__module__]).failed == 0


@pytest.mark.parametrize("seed", range(4))
def test_all_forms_are_what_their_definitions_say(seed: int) -> None:
    a = operator(outliers(N), seed=seed)
    h, w = a.matrix, weights_of(seed)
    g, delta = drawn(seed + 10, N), -w * drawn(seed + 10, N) - 0.01 * drawn(seed + 20, N)
    found = directional(a, [w], g, step=delta)
    hat = torch.diag(w) @ h
    assert found.chi_gradient == pytest.approx(float(g @ hat @ g / (g @ g)), rel=1e-10)
    assert found.chi_gradient_sym == pytest.approx(float((w * g) @ h @ (w * g) / (g @ (w * g))), rel=1e-10)
    assert found.slope == pytest.approx(float(g @ delta), rel=1e-10)
    assert found.bend == pytest.approx(float(delta @ h @ delta), rel=1e-10)
    assert found.change == pytest.approx(found.slope + found.bend / 2)
    assert found.chi_step == pytest.approx(found.bend / (-2 * found.slope))
    assert found.matvecs == a.matvecs == 2


@pytest.mark.parametrize("seed", range(8))
def test_form_s_never_exceeds_chi_and_form_p_may(seed: int) -> None:
    a = operator(outliers(N), seed=seed)
    w = weights_of(seed)
    chi = float(torch.linalg.eigvalsh(w.sqrt()[:, None] * a.matrix * w.sqrt())[-1])
    assert directional(a, [w], drawn(seed, N)).chi_gradient_sym <= chi * (1 + 1e-12)


def test_form_p_can_exceed_chi() -> None:
    h = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    w = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    g = torch.tensor([0.8, 1.0], dtype=torch.float64)
    chi = float(torch.linalg.eigvalsh(w.sqrt()[:, None] * h * w.sqrt())[-1])
    assert directional(ExplicitOperator(10 * h), [w], 0.1 * g).chi_gradient == pytest.approx(
        float(10 * g @ (w * (h @ g)) / (g @ g))
    )
    tilted = torch.tensor([0.5, 1.0], dtype=torch.float64)
    steep = torch.tensor([[1.0, 5.0], [5.0, 30.0]], dtype=torch.float64)
    assert directional(ExplicitOperator(steep), [w], tilted).chi_gradient > 2 * chi


def test_along_the_top_eigenvector_all_forms_are_chi() -> None:
    a = operator(outliers(N), seed=3)
    w = weights_of(3).clamp(min=1e-3)
    values, vectors = torch.linalg.eigh(w.sqrt()[:, None] * a.matrix * w.sqrt())
    gradient = vectors[:, -1] / w.sqrt()
    found = directional(a, [w], gradient, step=-2 * w * gradient, top=7.0 * w.sqrt() * vectors[:, -1])
    for form in (found.chi_gradient, found.chi_gradient_sym, found.chi_step):
        assert form == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.alignment == pytest.approx(1.0)
    other = directional(a, [w], gradient, top=w.sqrt() * vectors[:, 0])
    assert other.alignment == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_plain_descent_takes_one_product_for_all_three(dtype: torch.dtype) -> None:
    a = operator(outliers(N), seed=1, dtype=dtype)
    w, g = weights_of(1).to(dtype), drawn(1, N).to(dtype)
    found = directional(a, [w], g, step=-2 * w * g)  # W is half the step's factor
    assert found.matvecs == 1
    assert found.chi_step == pytest.approx(found.chi_gradient_sym, rel=1e-5)


def test_an_uphill_step_has_a_sum_but_no_quotient() -> None:
    a = operator(outliers(N), seed=1)
    g = drawn(1, N)
    found = directional(a, [torch.ones(N)], g, step=0.01 * g)
    assert math.isnan(found.chi_step)
    assert found.slope > 0
    assert found.change == pytest.approx(float(0.01 * g @ g + 0.5e-4 * g @ a.matrix @ g))


def test_where_there_is_nothing_to_divide_by_there_is_no_number() -> None:
    a = operator(outliers(N))
    found = directional(a, [torch.zeros(N)], torch.zeros(N), step=torch.zeros(N), top=torch.zeros(N))
    quotients = (found.chi_gradient, found.chi_gradient_sym, found.chi_step, found.alignment)
    assert all(math.isnan(each) for each in quotients)
    assert found.change == 0.0
    bare = directional(a, [torch.ones(N)], drawn(0, N))
    assert all(math.isnan(each) for each in (bare.chi_step, bare.slope, bare.bend, bare.change, bare.alignment))
    assert bare.matvecs == 1


def test_a_hessian_knows_its_gradient_and_an_explicit_operator_does_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = drawn(0, 20, 5)
    params = list(model.parameters())
    weights = [torch.full_like(p, 0.1) for p in params]

    def loss() -> Tensor:
        return model(x).square().mean()

    gradient = torch.autograd.grad(loss(), params)
    dense = Hessian(loss, params).dense()
    flat = torch.cat([g.flatten() for g in gradient])
    found = directional(Hessian(loss(), params), weights, step=[-0.2 * g for g in gradient])
    expected = float(0.1 * flat @ dense @ flat / (flat @ flat))
    for form in (found.chi_gradient, found.chi_gradient_sym, found.chi_step):
        assert form == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UsageError, match="knows no gradient"):
        directional(operator([1.0, 2.0]), [torch.ones(2)])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_sum_form_foretells_whether_the_loss_rises(momentum: float) -> None:
    """On a quadratic exactly, whatever the momentum, with sign and size; without momentum form S tells the same."""
    h = torch.diag(torch.tensor([12.0, 3.0, 0.5, 0.1], dtype=torch.float64))
    theta = nn.Parameter(torch.tensor([1e-3, 1.0, 1.0, 1.0], dtype=torch.float64))
    lr = 0.18
    optimizer = torch.optim.SGD([theta], lr=lr * (1 + momentum), momentum=momentum)
    rises = 0
    for _ in range(60):
        loss = 0.5 * theta @ h @ theta
        optimizer.zero_grad()
        before = theta.detach().clone()
        hessian = Hessian(loss, [theta])
        gradient = hessian.gradient()
        loss.backward(retain_graph=True)
        product = ExplicitOperator(h, [theta])
        optimizer.step()
        step = theta.detach() - before
        weights = [torch.full((4,), lr / 2, dtype=torch.float64)]
        found = directional(product, weights, gradient, step=[step])
        change = float(0.5 * theta.detach() @ h @ theta.detach()) - float(loss.detach())
        assert found.change == pytest.approx(change, rel=1e-6, abs=1e-12)
        rises += change > 0
        if not momentum:
            assert (found.chi_gradient_sym > 1) == (change > 0)
    assert 5 < rises < 58
