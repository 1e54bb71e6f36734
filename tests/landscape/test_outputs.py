"""J u against finite differences, and projections against their definitions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from foreshock.curvature import Hessian, eigsh
from foreshock.errors import UsageError
from foreshock.landscape import eigen_projections, output_change, output_changes, real_change, spectrum_1d
from tests.curvature import zoo
from tests.landscape import tl

SMOOTH = [name for name in zoo.CASES if name not in {"relu, cross entropy", "instance norm, max pool"}]


def outputs(case):
    first = next(iter(case.inputs.values()))
    return lambda: case.module(first)


def moved(case, direction, step):
    """Returns the outputs of a copy of the module whose parameters moved along a direction."""
    other = copy.deepcopy(case.module)
    places = [name for name, p in case.module.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, piece in zip(places, direction, strict=True):
            other.get_parameter(name).add_(piece, alpha=step)
    return outputs(zoo.Case(other, case.inputs, case.loss))().detach()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_first_order_change_is_that_of_small_differences(name):
    case = zoo.case(name)
    draws = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in case.params]
    found = output_change(outputs(case), case.params, direction)
    step = 1e-4
    expected = (moved(case, direction, step) - moved(case, direction, -step)) / (2 * step)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max() + 1))
    assert float(expected.norm()) > 0.1


def test_several_directions_are_those_one_by_one():
    case = zoo.case("layer norm")
    pairs = eigsh(Hessian(case.closure, case.params), 3, tol=1e-6)
    together = output_changes(outputs(case), case.params, pairs)
    for change, vector in zip(together, pairs.vectors, strict=True):
        assert torch.allclose(change, output_change(outputs(case), case.params, vector), atol=1e-14)
    flat = torch.cat([piece.flatten() for piece in pairs.vectors[0]])
    assert torch.allclose(output_change(outputs(case), case.params, flat), together[0], atol=1e-14)


def test_a_real_change_tends_to_the_first_order_one():
    net = tl.Net(5000)
    direction = torch.randn(61, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = output_change(net.outputs, net.params, direction)
    errors = []
    for step in (1e-3, 5e-4):
        real = real_change(net.outputs, net.params, tl.at(5000), tl.at(5000) + step * direction)
        errors.append(float((real / step - first).norm()))
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.05)


def test_dropout_has_one_draw_for_both_ends():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 1)).double()
    x, params = torch.randn(4, 3).double(), list(model.parameters())
    point = torch.cat([p.detach().flatten() for p in params])
    assert float(real_change(lambda: model(x), params, point, point).abs().max()) == 0.0


def test_outputs_that_cannot_be_differentiated_are_refused():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(UsageError, match="no graph"):
        output_change(lambda: w.detach() * 2, [w], torch.ones(2))
    with pytest.raises(UsageError, match="must be one tensor"):
        output_change(lambda: (w, w), [w], torch.ones(2))
    with pytest.raises(UsageError, match="do not depend"):
        output_change(lambda: torch.ones(1, requires_grad=True) * 2, [w], torch.ones(2))
    with pytest.raises(UsageError, match="function that computes"):
        output_change(w * 2, [w], torch.ones(2))


def test_projections_are_their_definitions():
    net = tl.Net(5000)
    values, vectors = tl.sharpest(5000, 4)
    pairs = eigsh(Hessian(net.loss, net.params), 4, tol=1e-10)
    grid = torch.linspace(-3, 3, 50, dtype=torch.float64)

    def elsewhere():
        w, b, a, c = net.params
        return torch.tanh(grid[:, None] * w + b) @ a + c

    found = eigen_projections(net.outputs, net.params, pairs, (tl.at(5100), tl.at(5174)), test=elsewhere)
    np.testing.assert_allclose(found.values, values, rtol=1e-8)
    for row, t in zip(found.parameters, (5100, 5174), strict=True):
        np.testing.assert_allclose(np.abs(row), (vectors @ (tl.at(t) - tl.at(5000))).abs().numpy(), atol=1e-7)
    apart = real_change(net.outputs, net.params, tl.at(5174), tl.at(5100))
    for q, change in zip(found.train, found.changes, strict=True):
        assert q == pytest.approx(float(apart @ change / change.norm()) / 20)
    assert found.difference[0] == pytest.approx(float(apart.norm()) / 20)
    assert (np.abs(found.train) <= found.difference[0]).all()
    assert (np.abs(found.test) <= found.difference[1]).all()
    assert found.test_changes[0].shape == (50,)
    assert 0.8 < spectrum_1d(found.changes[0])[1] < 0.87
    assert found.distances[1] == pytest.approx(float((tl.at(5174) - tl.at(5000)).norm()))


def test_a_reference_may_be_elsewhere_and_test_inputs_may_be_missing():
    net = tl.Net(4600)
    pairs = eigsh(Hessian(net.loss, net.params), 2, tol=1e-8)
    net.put(5200)  # the parameters have moved on
    found = eigen_projections(
        net.outputs, net.params, pairs, (tl.at(4600), tl.at(5200)), reference=tl.at(4600)
    )
    np.testing.assert_allclose(found.parameters[0], 0, atol=1e-14)
    assert found.distances[0] == 0.0
    assert found.test is None
    assert np.isnan(found.difference[1])
    net.put(4600)
    assert torch.allclose(found.changes[0], output_change(net.outputs, net.params, pairs))


def test_senseless_solutions_are_refused():
    net = tl.Net(5000)
    with pytest.raises(UsageError, match="eigsh"):
        eigen_projections(net.outputs, net.params, [tl.at(0)], (tl.at(0), tl.at(1)))
    with pytest.raises(UsageError, match="two of them"):
        eigen_projections(
            net.outputs, net.params, eigsh(Hessian(net.loss, net.params)), (tl.at(0),)
        )
