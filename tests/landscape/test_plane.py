"""A plane is orthonormal, keeps its lengths, and knows how far off it a training runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.curvature import Hessian, edge, eigsh
from foreshock.curvature.space import Space
from foreshock.errors import UsageError
from foreshock.landscape import Trajectory, drift_plane, plane_of
from tests.curvature import zoo
from tests.landscape import tl


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def drawn(params, seed):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in params]


@pytest.mark.parametrize("seed", range(3))
def test_axes_are_orthonormal_and_span_what_was_given(seed):
    params = zoo.case("group norm, conv", seed).params
    first, second = drawn(params, seed), drawn(params, seed + 10)
    plane = plane_of(params, first, second)
    e1, e2 = (flat(axis) for axis in plane.axes)
    assert torch.allclose(torch.stack([e1 @ e1, e1 @ e2, e2 @ e2]), torch.tensor([1.0, 0.0, 1.0]).double(), atol=1e-14)
    assert torch.allclose(e1 * plane.lengths[0], flat(first))
    rest = flat(second) - (flat(second) @ e1) * e1
    assert torch.allclose(e2 * plane.lengths[1], rest)


def test_nearly_parallel_directions_still_give_a_right_angle():
    w = torch.zeros(50, dtype=torch.float64)
    first, aside = drawn([w], 0)[0], drawn([w], 1)[0]
    plane = plane_of([w], first, first + 1e-4 * aside)
    assert abs(float(plane.axes[0][0] @ plane.axes[1][0])) < 1e-14


def test_the_origin_is_a_copy_and_the_parameters_are_never_moved():
    case = zoo.case("tanh, mse")
    before = flat(case.params)
    plane = plane_of(case.params, drawn(case.params, 0), drawn(case.params, 1))
    with torch.no_grad():
        case.params[0].add_(1.0)
    assert torch.equal(flat(plane.origin), before)
    assert torch.equal(flat(plane.point(0.0, 0.0)), before)


def test_parameters_stand_at_a_point_for_a_block_only():
    case = zoo.case("tanh, mse")
    plane = plane_of(case.params, drawn(case.params, 0), drawn(case.params, 1))
    before, versions = flat(case.params), [p._version for p in case.params]
    with plane.at(0.3, -0.2):
        assert torch.allclose(flat(case.params), before + 0.3 * flat(plane.axes[0]) - 0.2 * flat(plane.axes[1]))
    with pytest.raises(ValueError, match="odd"), plane.at(0.3, -0.2):
        raise ValueError("odd")
    assert torch.equal(flat(case.params), before)
    assert [p._version for p in case.params] == versions


def test_eigenvectors_readings_and_flat_vectors_are_directions():
    case = zoo.case("tanh, mse")
    pairs = eigsh(Hessian(case.closure, case.params), 2, tol=1e-8)
    plane = plane_of(case.params, pairs)
    assert plane.names == ("u1", "u2")
    for axis, vector in zip(plane.axes, pairs.vectors, strict=True):
        assert torch.allclose(flat(axis), flat(vector), atol=1e-10)
    reading = edge(case.closure, torch.optim.SGD(case.params, lr=0.1), tol=1e-6)
    along = plane_of(case.params, reading, flat(pairs.vectors[1]))
    assert abs(float(flat(along.axes[0]) @ flat(pairs.vectors[0]))) == pytest.approx(1.0, abs=1e-4)


def test_the_drift_loses_its_part_along_the_sharpest_direction():
    net = tl.Net(5000)
    _, vectors = tl.sharpest(5000)
    drift = tl.at(5125) - tl.at(4525)
    plane = drift_plane(net.params, tl.at(4525), tl.at(5125), vectors[0])
    assert plane.names == ("drift", "u1")
    assert abs(float(flat(plane.axes[1]) @ vectors[0])) == pytest.approx(1.0)
    rest = drift - (drift @ vectors[0]) * vectors[0]
    assert plane.lengths == pytest.approx((float(rest.norm()), 1.0))
    assert torch.allclose(flat(plane.axes[0]), rest / rest.norm())


def test_projection_returns_coordinates_and_the_distance_from_the_plane():
    case = zoo.case("tanh, mse")
    plane = plane_of(case.params, drawn(case.params, 0), drawn(case.params, 1))
    aside = flat(drawn(case.params, 2))
    for axis in plane.axes:
        aside = aside - (aside @ flat(axis)) * flat(axis)
    aside = aside / aside.norm()
    base = flat(plane.origin)
    coordinates = [(0.0, 0.0, 0.0), (1.0, -2.0, 0.5), (-0.25, 0.125, 1e-9)]
    rows = [base + a * flat(plane.axes[0]) + b * flat(plane.axes[1]) + c * aside for a, b, c in coordinates]
    found = plane.project(rows, steps=[3, 5, 8])
    np.testing.assert_allclose(np.stack([found.alphas, found.betas, found.off], 1), coordinates, atol=1e-13)
    assert found.steps.tolist() == [3, 5, 8]
    lists = plane.project([Space(case.params).split(row) for row in rows])
    np.testing.assert_allclose(lists.off, found.off, atol=1e-13)


def test_a_trajectory_brings_its_steps():
    net = tl.Net(5000)
    trajectory = Trajectory(net.params)
    for t in range(5000, 5010, 3):
        trajectory.add(tl.at(t), step=t)
    plane = drift_plane(net.params, tl.at(4525), tl.at(5125), tl.sharpest(5000)[1][0])
    found = plane.project(trajectory)
    assert found.steps.tolist() == [5000, 5003, 5006, 5009]
    assert abs(found.alphas[0]) < 1e-12


def test_a_grid_covers_the_trajectory_at_two_scales():
    w = torch.zeros(2, dtype=torch.float64)
    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    found = plane.project([torch.tensor([a, 0.01 * a]).double() for a in (0.0, 1.0, 2.0)])
    alphas, betas = found.grid(5, margin=0.25)
    np.testing.assert_allclose(alphas, [-0.5, 0.25, 1.0, 1.75, 2.5])
    np.testing.assert_allclose(betas, 0.01 * alphas)
    still = plane.project([torch.tensor([1.0, 0.0]).double()]).grid(3)
    assert all((np.diff(axis) > 0).all() for axis in still)


def test_what_spans_no_plane_is_refused():
    w = torch.zeros(3)
    line = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="parallel"):
        plane_of([w], line, -2 * line)
    with pytest.raises(UsageError, match="axis2"):
        plane_of([w], line, torch.zeros(3))
    with pytest.raises(UsageError, match="axis1"):
        plane_of([w], line * float("nan"), line)
    with pytest.raises(UsageError, match="two directions"):
        plane_of([w], line)
    with pytest.raises(UsageError, match="shape"):
        plane_of([w], line, torch.ones(4))
    with pytest.raises(UsageError, match="no snapshot"):
        plane_of([w], line, torch.tensor([1.0, 0.0, 0.0])).project([])
