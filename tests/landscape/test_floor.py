"""The floor of a valley is its minimum across, and the index tells which way it sharpens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from foreshock.curvature import Hessian, eigsh
from foreshock.errors import UsageError
from foreshock.landscape import drift_plane, floor_index, floor_of, plane_of, sharpness, surface
from tests.curvature import zoo
from tests.landscape import tl

ALONG, ACROSS = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def valley(growth, bend=0.2, start=0.4):
    """A valley that falls along w0, whose curvature goes as exp(growth w0), with a bent floor at w1 = bend w0^2."""
    w = torch.tensor([0.0, start], dtype=torch.float64, requires_grad=True)
    return w, lambda: torch.exp(-w[0]) + torch.exp(growth * w[0]) * (w[1] - bend * w[0] ** 2) ** 2 / 2


@pytest.mark.parametrize(("growth", "relation"), [(1.0, "lower is sharper"), (-1.0, "lower is flatter")])
def test_the_floor_of_a_known_valley(growth, relation):
    w, loss = valley(growth)
    offsets = np.array([1.5, -0.5, 0.0, 0.7])  # in no order
    found = floor_index(loss, [w], ALONG, ACROSS, offsets, rise=0.02)
    np.testing.assert_allclose(found.positions + 0.4, 0.2 * offsets**2, atol=1e-9)
    np.testing.assert_allclose(found.losses, np.exp(-offsets), rtol=1e-12)
    np.testing.assert_allclose(found.curvatures, np.exp(growth * offsets), rtol=1e-9)
    np.testing.assert_allclose(found.widths, 2 * np.sqrt(0.04 * np.exp(-growth * offsets)), rtol=1e-4)
    assert found.index.relation == relation
    assert found.index.correlation == pytest.approx(-growth, abs=0.12)


def test_a_valley_of_even_width_has_no_index():
    w, loss = valley(0.0)
    found = floor_index(loss, [w], ALONG, ACROSS, [0.0, 0.5, 1.0])
    assert found.index.relation == "neither"


def test_walls_that_are_not_parabolas_are_found_where_they_are():
    w = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    found = floor_index(lambda: torch.cosh(w[1]) + w[0], [w], ALONG, ACROSS, [0.0, 1.0, 2.0], rise=2.0)
    np.testing.assert_allclose(found.widths, 2 * math.acosh(3.0), rtol=1e-4)


def test_a_kinked_valley_has_its_floor_at_the_kink():
    w = torch.tensor([0.0, 0.7], dtype=torch.float64, requires_grad=True)
    found = floor_index(lambda: (w[1] - 0.1).abs() + 0.1 * w[1].square() + 1 + w[0].square(), [w], ALONG, ACROSS, [0.0])
    assert found.positions[0] == pytest.approx(-0.6, abs=1e-6)
    assert found.index is None


def test_from_a_slope_without_curvature_the_floor_is_still_found():
    w = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    found = floor_index(lambda: torch.log1p(w[1].square()) + 1 + 0 * w[0], [w], ALONG, ACROSS, [0.0])
    assert found.positions[0] == pytest.approx(-3.0, abs=1e-6)
    assert found.curvatures[0] == pytest.approx(2.0)


def test_where_there_is_no_floor_it_is_missing_and_said():
    w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    found = floor_index(lambda: torch.exp(w[1]) + w[0].square(), [w], ALONG, ACROSS, [0.0])
    assert np.isnan(found.positions).all()
    assert any("no floor" in note for note in found.notes)


def test_the_floor_is_the_minimum_across_at_the_base_of_a_network():
    case = zoo.case("tanh, mse")
    pairs = eigsh(Hessian(case.closure, case.params), 3, tol=1e-8)
    found = floor_index(case.closure, case.params, pairs.vectors[2], pairs, [-0.02, 0.0, 0.02])
    plane = plane_of(case.params, pairs, pairs.vectors[2])
    for a, b, loss, curvature in zip(found.offsets, found.positions, found.losses, found.curvatures, strict=True):
        with plane.at(b, a):
            hessian = Hessian(case.closure, case.params)
            u = torch.cat([piece.flatten() for piece in plane.axes[0]])
            assert hessian.loss == pytest.approx(loss, rel=1e-12)
            assert abs(float(torch.cat([g.flatten() for g in hessian.gradient()]) @ u)) < 1e-7
            assert float(u @ (hessian @ u)) == pytest.approx(curvature, rel=1e-9)


def test_the_floor_read_off_a_surface_agrees():
    net = tl.Net(5000)
    _, vectors = tl.sharpest(5000)
    plane = drift_plane(net.params, tl.at(4525), tl.at(5125), vectors[0])
    alphas = np.linspace(-0.45, 0.15, 7)
    loss = surface(net.loss, plane, alphas, np.linspace(-0.1, 0.1, 41))
    sharp = sharpness(net.loss, plane, np.linspace(-0.46, 0.16, 4), np.linspace(-0.05, 0.05, 3), tol=1e-4)
    read = floor_of(loss, sharp)
    exact = floor_index(net.loss, net.params, plane.axes[0], plane.axes[1], alphas)
    np.testing.assert_allclose(read.losses, exact.losses, rtol=1e-3)
    np.testing.assert_allclose(read.positions, exact.positions, atol=1e-4)
    np.testing.assert_allclose(read.curvatures, exact.curvatures, rtol=1e-2)  # lambda_max is at least u'Hu
    assert read.index.relation == exact.index.relation == "lower is sharper"


def test_a_floor_at_the_rim_of_a_surface_is_missing():
    w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    plane = plane_of([w], ALONG, ACROSS)
    loss = surface(lambda: torch.exp(w[1]) + w[0].square(), plane, [0.0, 1.0], [0.0, 1.0, 2.0])
    sharp = sharpness(lambda: torch.exp(w[1]) + w[0].square(), plane, [0.0, 1.0], [0.0, 2.0])
    found = floor_of(loss, sharp)
    assert np.isnan(found.losses).all()
    assert "rim" in found.notes[0]
    other = plane_of([w], ACROSS, ALONG)
    with pytest.raises(UsageError, match="different planes"):
        floor_of(loss, sharpness(lambda: w.square().sum(), other, [0.0, 1.0], [0.0, 1.0]))


def test_senseless_offsets_are_refused():
    w, loss = valley(1.0)
    with pytest.raises(UsageError, match="offsets"):
        floor_index(loss, [w], ALONG, ACROSS, [])
    with pytest.raises(UsageError, match="offsets"):
        floor_index(loss, [w], ALONG, ACROSS, [0.0, float("nan")])
