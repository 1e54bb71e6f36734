"""A surface is the loss at each of its points, however it was evaluated."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from foreshock.curvature import Hessian, eigsh
from foreshock.errors import UsageError
from foreshock.landscape import evaluate, plane_of, sharpness, surface
from foreshock.stability import edge_weights
from tests.curvature import zoo
from tests.landscape import tl

ALPHAS, BETAS = np.linspace(-0.4, 0.5, 4), np.linspace(-0.2, 0.3, 3)
# what vmap has no rule for, or must not do
POINTWISE = {"batch norm in train mode", "lstm"}


def axes(params, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [[torch.randn(p.shape, generator=draws, dtype=torch.float64).to(p) for p in params] for _ in range(2)]


def directly(case, plane, alphas, betas):
    """Returns the losses of copies of the module that hold the points' parameters."""
    values = np.empty((len(alphas), len(betas)))
    places = [name for name, p in case.module.named_parameters() if p.requires_grad]
    for i, a in enumerate(alphas):
        for j, b in enumerate(betas):
            module = copy.deepcopy(case.module)
            with torch.no_grad():
                for name, o, u, v in zip(places, plane.origin, *plane.axes, strict=True):
                    module.get_parameter(name).copy_(o + a * u + b * v)
            values[i, j] = float(case.loss(module, **case.inputs).detach())
    return values


@pytest.mark.parametrize("name", list(zoo.CASES))
def test_a_surface_is_the_loss_at_each_point(name):
    case = zoo.case(name)
    plane = plane_of(case.params, *axes(case.params))
    found = surface(case.closure, plane, ALPHAS, BETAS)
    np.testing.assert_allclose(found.values, directly(case, plane, ALPHAS, BETAS), rtol=1e-12, atol=0)
    assert found.quantity == "loss"
    if name in POINTWISE:
        assert found.notes[0].startswith("point by point")
    else:
        assert found.notes[0].startswith("one batched pass")


def test_a_surface_in_float32_is_that_of_float64_to_rounding():
    narrow, wide = zoo.case("tanh, mse", dtype=torch.float32), zoo.case("tanh, mse")
    lines = axes(wide.params)
    plane = plane_of(narrow.params, *[[tensor.float() for tensor in line] for line in lines])
    found = surface(narrow.closure, plane, ALPHAS, BETAS)
    exact = surface(wide.closure, plane_of(wide.params, *lines), ALPHAS, BETAS)
    np.testing.assert_allclose(found.values, exact.values, rtol=1e-5)


def test_a_surface_that_does_not_fit_at_once_is_the_same(monkeypatch):
    case = zoo.case("gelu")
    plane = plane_of(case.params, *axes(case.params))
    whole = surface(case.closure, plane, ALPHAS, BETAS)
    monkeypatch.setitem(evaluate._BYTES, "cpu", 9_000)
    parts = surface(case.closure, plane, ALPHAS, BETAS)
    assert whole.notes == ("one batched pass",)
    assert parts.notes[0].startswith("batched, ")
    monkeypatch.setitem(evaluate._BYTES, "cpu", 1)
    assert surface(case.closure, plane, ALPHAS, BETAS).notes[0].startswith("point by point: one point takes")
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-12)


def test_plain_tensors_are_moved_as_well_as_modules():
    net = tl.Net(100)
    plane = plane_of(net.params, *axes(net.params))
    found = surface(net.loss, plane, ALPHAS, BETAS)
    assert found.notes[0].startswith("one batched pass")
    for i, j in ((0, 0), (3, 2), (1, 1)):
        with plane.at(ALPHAS[i], BETAS[j]):
            assert found.values[i, j] == pytest.approx(net.loss().item(), rel=1e-12)


def test_dropout_is_one_draw_at_every_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1)).double()
    x, params = torch.randn(8, 4).double(), list(model.parameters())
    found = surface(lambda: model(x).square().mean(), plane_of(params, *axes(params)), [0.0, 1e-9, 0.3], [0.0, 1e-9])
    near = found.values[:2]
    assert np.ptp(near) < 1e-6 * near.mean()
    assert np.ptp(found.values) > 1e-3 * near.mean()


class Branching(nn.Module):
    """A branch on a value, which no batched pass can take."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2).double()

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 0 else 3 * y


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.square()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


def test_a_branch_on_values_is_taken_point_by_point():
    torch.manual_seed(0)
    module = Branching()
    x = torch.ones(5, 3, dtype=torch.float64)
    case = zoo.Case(module, {"x": x}, lambda module, x: module(x).square().mean())
    plane = plane_of(case.params, *axes(case.params))
    found = surface(case.closure, plane, ALPHAS * 5, BETAS * 5)
    np.testing.assert_allclose(found.values, directly(case, plane, ALPHAS * 5, BETAS * 5), rtol=1e-12)
    assert "point by point" in found.notes[0]


def test_functions_that_do_not_see_the_exchange_are_evaluated_point_by_point():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    found = surface(lambda: Square.apply(w).sum(), plane, [0.0, 1.0], [0.0, -2.0])
    np.testing.assert_allclose(found.values, [[5.0, 1.0], [8.0, 4.0]])
    assert "point by point" in found.notes[0]


def test_parameters_read_behind_torch_functions_are_noticed():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))

    def closure():
        with torch._C.DisableTorchFunction():
            return w.square().sum()

    found = surface(closure, plane, [0.0, 1.0], [0.0, -2.0])
    np.testing.assert_allclose(found.values, [[5.0, 1.0], [8.0, 4.0]])
    assert "differs from the direct one" in found.notes[0]


def test_a_loss_that_differentiates_in_itself_has_a_surface():
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)

    def closure():
        x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.sin(w * x).sum(), x, create_graph=True)
        return (slope - v).square().sum()

    plane = plane_of([w, v], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    found = surface(closure, plane, [0.0, 0.5], [0.0, 0.25])
    expected = [[(a * np.cos(0.7 * a) - b) ** 2 for b in (1.0, 1.25)] for a in (2.0, 2.5)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_parameters_that_are_not_contiguous_are_moved():
    case = zoo.case("group norm, conv")
    directions = axes(case.params)
    flat = surface(case.closure, plane_of(case.params, *directions), ALPHAS, BETAS)
    with torch.no_grad():
        case.module[0].weight.data = case.module[0].weight.data.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)
    assert not case.module[0].weight.is_contiguous()
    found = surface(case.closure, plane_of(case.params, *directions), ALPHAS, BETAS)
    np.testing.assert_allclose(found.values, flat.values, rtol=1e-12)


def test_points_of_parameters_in_16_bits_are_rounded_and_it_is_said():
    case = zoo.case("tanh, mse", dtype=torch.bfloat16)
    plane = plane_of(case.params, *axes(case.params))
    assert plane.axes[0][0].dtype == torch.float32
    assert surface(case.closure, plane, ALPHAS, BETAS).notes[-1].startswith("points are rounded to bfloat16")


def test_compiled_modules_have_surfaces_and_say_nothing():
    case = zoo.case("tanh, mse")
    plane = plane_of(case.params, *axes(case.params))
    compiled = torch.compile(case.module, backend="eager")
    found = surface(lambda: case.loss(compiled, **case.inputs), plane, ALPHAS, BETAS)
    np.testing.assert_allclose(found.values, surface(case.closure, plane, ALPHAS, BETAS).values, rtol=1e-12)


def test_a_data_set_is_one_loss():
    case = zoo.case("tanh, mse")
    plane = plane_of(case.params, *axes(case.params))
    x, target = case.inputs["x"], case.inputs["target"]
    batches = [(x[:4], target[:4]), (x[4:], target[4:])]
    found = surface(lambda batch: case.loss(case.module, *batch), plane, ALPHAS, BETAS, data=batches)
    np.testing.assert_allclose(found.values, surface(case.closure, plane, ALPHAS, BETAS).values, rtol=1e-12)


def test_points_where_the_loss_overflows_are_not_finite_and_the_others_are():
    w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    found = surface(lambda: torch.exp(w).sum(), plane, [0.0, 1e4], [0.0])
    assert found.values[0, 0] == 2.0
    assert np.isinf(found.values[1, 0])


def test_what_has_no_surface_is_refused():
    w = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    count = iter(range(1000))
    with pytest.raises(UsageError, match="not deterministic"):
        surface(lambda: w.sum() + next(count), plane, [0.0, 1.0], [0.0])
    with pytest.raises(UsageError, match="one real number"):
        surface(lambda: w * 2, plane, [0.0, 1.0], [0.0])
    with pytest.raises(UsageError, match="alphas"):
        surface(lambda: w.sum(), plane, [], [0.0])
    with pytest.raises(UsageError, match="function that computes the loss"):
        surface(w.sum(), plane, [0.0], [0.0])


def test_a_plane_of_other_parameters_gets_a_note():
    w, other = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plane = plane_of([other], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert "same at every point" in surface(lambda: w.sum(), plane, [0.0, 1.0], [0.0]).notes[-1]


def test_sharpness_is_the_largest_eigenvalue_at_each_point():
    case = zoo.case("tanh, mse")
    plane = plane_of(case.params, *axes(case.params))
    found = sharpness(case.closure, plane, ALPHAS, BETAS, tol=1e-6)
    assert found.quantity == "lambda_max"
    for i, a in enumerate(ALPHAS):
        for j, b in enumerate(BETAS):
            with plane.at(a, b):
                expected = torch.linalg.eigvalsh(Hessian(case.closure, case.params).dense())[-1]
            assert found.values[i, j] == pytest.approx(float(expected), rel=1e-5)


def test_neighbours_save_products():
    net = tl.Net(5000)
    _, vectors = tl.sharpest(5000)
    plane = plane_of(net.params, vectors[0], tl.at(5125) - tl.at(4525))
    found = sharpness(net.loss, plane, np.linspace(-0.1, 0.1, 4), np.linspace(-0.4, 0.2, 4))
    with plane.at(-0.1, -0.4):
        alone = eigsh(Hessian(net.loss, net.params)).matvecs
    assert found.passes < 16 * alone


def test_sharpness_with_weights_is_chi():
    case = zoo.case("tanh, mse")
    optimizer = torch.optim.SGD(case.params, lr=0.1)
    grads = torch.autograd.grad(case.closure(), case.params)
    plane = plane_of(case.params, *axes(case.params))
    chi = sharpness(case.closure, plane, [0.0, 0.2], [0.0], weights=edge_weights(optimizer, grads), tol=1e-5)
    raw = sharpness(case.closure, plane, [0.0, 0.2], [0.0], tol=1e-5)
    assert chi.quantity == "chi"
    np.testing.assert_allclose(chi.values, 0.05 * raw.values, rtol=1e-4)


def test_sharpness_is_missing_where_the_loss_is_not_finite():
    w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    found = sharpness(lambda: torch.exp(w).sum(), plane, [0.0, 1e4], [0.0])
    assert found.values[0, 0] == pytest.approx(1.0)
    assert np.isnan(found.values[1, 0])
