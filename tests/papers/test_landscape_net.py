"""The tanh network in closed form, against autograd in float64 and against numbers that are known of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.papers.landscape_net import DENSE, tanh_problem, two_waves
from foreshock.papers.landscape_training import descend, quietly


@pytest.mark.parametrize(("seed", "neurons", "points"), [(0, 20, 20), (3, 5, 11), (8, 1, 2)])
def test_gradient_and_hessian_are_those_of_autograd(seed, neurons, points):
    problem = tanh_problem(seed, neurons=neurons, points=points)
    theta = problem.theta + 0.3 * np.random.default_rng(seed + 1).normal(size=len(problem.theta))
    flat, loss, outputs = problem.tensors(theta)
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)

    def by_hand(vector):
        w, b, a = vector[:neurons], vector[neurons : 2 * neurons], vector[2 * neurons : 3 * neurons]
        return sum(a[j] * torch.tanh(w[j] * x + b[j]) for j in range(neurons)) + vector[-1]

    def mean_square(vector):
        return ((by_hand(vector) - y) ** 2).mean()

    found = problem.curvature(theta)
    vector = torch.from_numpy(theta)
    assert found.loss == pytest.approx(float(mean_square(vector)), rel=1e-13)
    assert float(loss().detach()) == pytest.approx(found.loss, rel=1e-13)
    np.testing.assert_allclose(outputs().detach().numpy(), problem.outputs(theta), rtol=1e-12, atol=1e-13)
    jacobian = torch.autograd.functional.jacobian(by_hand, vector)
    np.testing.assert_allclose(problem.jacobian(theta), jacobian.numpy(), rtol=1e-11, atol=1e-12)
    gradient = torch.autograd.functional.jacobian(mean_square, vector)
    np.testing.assert_allclose(found.gradient, gradient.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(problem.gradient(theta)[1], found.gradient, rtol=1e-14)
    hessian = torch.autograd.functional.hessian(mean_square, vector)
    np.testing.assert_allclose(found.hessian, hessian.numpy(), rtol=1e-9, atol=1e-11)
    assert flat.shape == theta.shape


def test_the_start_is_drawn_in_the_published_order():
    problem, draw = tanh_problem(5), np.random.default_rng(5)
    w, b, a, c = draw.normal(size=20), draw.normal(size=20), draw.normal(size=20), draw.normal()
    assert np.array_equal(problem.theta, np.concatenate([w, b, a, [c]]))
    assert np.array_equal(problem.neurons_of(problem.theta), np.stack([w, b], axis=1))
    assert problem.x[[0, -1]].tolist() == [-np.pi, np.pi]
    assert np.array_equal(problem.y, np.sin(problem.x) + np.sin(4 * problem.x))


def test_the_test_error_is_on_a_dense_grid():
    problem = tanh_problem(2)
    x = np.linspace(-np.pi, np.pi, DENSE)
    by_hand = np.mean((problem.outputs(problem.theta, x) - two_waves(x)) ** 2)
    assert problem.test_error(problem.theta) == pytest.approx(by_hand)
    assert problem.test_error(problem.theta) != pytest.approx(problem.loss(problem.theta), rel=1e-3)


def test_readings_are_the_dense_hessian_s_and_a_step_is_gradient_descent():
    trace = descend(tanh_problem(1), 0.08, least=40)
    assert len(trace.losses) == 41
    for t in (0, 10, 40):
        loss, gradient, hessian = trace.problem.curvature(trace.thetas[t])
        values, vectors = np.linalg.eigh(hessian)
        assert trace.losses[t] == loss
        assert trace.sharpness[t] == pytest.approx(values[-1])
        assert trace.alignment[t] == pytest.approx(abs(gradient @ vectors[:, -1]) / np.linalg.norm(gradient))
        assert trace.chi_gradient[t] == pytest.approx(0.04 * (gradient @ hessian @ gradient) / (gradient @ gradient))
        if t < 40:
            assert np.array_equal(trace.thetas[t + 1], trace.thetas[t] - 0.08 * gradient)
    values, vectors = trace.top(10, 3)
    assert values[0] == trace.sharpness[10]
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    losses, thetas = quietly(trace.problem, trace.problem.theta, 0.08, 40)
    np.testing.assert_allclose(losses, trace.losses, rtol=1e-12)
    assert thetas.shape == trace.thetas.shape


def test_a_descent_ends_where_it_is_low_enough_or_no_longer_finite():
    problem = tanh_problem(0)
    whole, _ = quietly(problem, problem.theta, 0.02, 100)
    part, thetas = quietly(problem, problem.theta, 0.02, 100, until=float(whole[60]) * (1 + 1e-12))
    assert len(part) == 61
    assert problem.loss(thetas[-1]) == pytest.approx(part[-1])
    wild, _ = quietly(problem, problem.theta, 1e3, 500)
    assert 2 < len(wild) < 500
    assert len(descend(problem, 1e3, least=500).losses) == len(wild)


def test_a_run_says_what_was_read_and_leaves_out_what_was_not():
    trace = descend(tanh_problem(4), 0.01, least=25)  # far below the edge: a reading every ten updates
    run = trace.to_run("quiet", seed=4)
    steps, chi = run.measured("chi")
    assert steps.tolist() == [0, 10, 20]
    np.testing.assert_allclose(chi, trace.sharpness[[0, 10, 20]] * 0.01 / 2)
    assert run.measured("threshold")[1].tolist() == [200.0] * 3
    assert run.measured("chi_gradient")[0].tolist() == list(range(26))
    assert run["lr"].tolist() == [0.01] * 26
    steps, growth = run.measured("chi_growth_landscape")
    assert steps.tolist() == [10, 20]
    np.testing.assert_allclose(growth, np.diff(np.log(chi)))
    assert run.measured("chi_growth_preconditioner")[1].tolist() == [0.0, 0.0]
    assert run.meta["paper"] == "landscape-spikes"
