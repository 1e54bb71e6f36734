"""Adam in numpy on dense Hessians, held against autograd, torch's own Adam and the library's readings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from foreshock.curvature import edge, split
from foreshock.papers.adam_exact import Hyper, descend, resume
from foreshock.papers.adam_problems import UNITS, Parabola, sines
from foreshock.papers.adam_readings import moments, read
from foreshock.papers.adam_sines import recorded
from foreshock.run import is_absent
from foreshock.threads import one_thread

BETAS = (0.9, 0.99)


def loss_of(problem, theta: torch.Tensor) -> torch.Tensor:
    """The same loss in torch, written out."""
    x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
    w, b, a = theta[: 3 * UNITS].view(3, UNITS)
    return ((torch.tanh(x[:, None] * w + b) @ a + theta[-1] - y) ** 2).mean()


@pytest.mark.parametrize("samples", [20, 33])
def test_loss_gradient_and_hessian_are_those_of_autograd(samples):
    problem, start = sines(3, samples)
    points = np.stack([start, 0.3 * start + 0.1, start * 0])
    hessians = problem.hessians(points)
    for theta, hessian in zip(points, hessians, strict=True):
        loss, gradient = problem.gradient(theta)
        variable = torch.from_numpy(theta.copy()).requires_grad_()
        value = loss_of(problem, variable)
        assert loss == pytest.approx(value.item(), rel=1e-12)
        np.testing.assert_allclose(gradient, torch.autograd.grad(value, variable)[0].numpy(), rtol=1e-10, atol=1e-12)
        dense = torch.autograd.functional.hessian(lambda each: loss_of(problem, each), variable.detach()).numpy()
        np.testing.assert_allclose(hessian, dense, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(hessian, hessian.T)


def test_a_batch_is_the_loss_of_its_rows_alone():
    problem, start = sines(0, 20)
    halves = [problem.gradient(start, np.arange(10) + 10 * place) for place in range(2)]
    loss, gradient = problem.gradient(start)
    assert loss == pytest.approx((halves[0][0] + halves[1][0]) / 2, rel=1e-12)
    np.testing.assert_allclose(gradient, (halves[0][1] + halves[1][1]) / 2, rtol=1e-10)


def torch_training(problem, start: np.ndarray, steps: int, optimizer_of) -> tuple[torch.nn.Parameter, list]:
    """Trains in torch and reads the library's edge before each step."""
    theta = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer, found = optimizer_of([theta]), []
    with one_thread():
        for _ in range(steps):
            found.append(edge(lambda: loss_of(problem, theta), optimizer, tol=1e-6))
            optimizer.zero_grad()
            loss_of(problem, theta).backward()
            optimizer.step()
    return theta, found


def test_every_number_is_that_of_the_library_on_torchs_adam():
    problem, start = sines(1)
    steps = 6
    trail = descend(problem, start, Hyper(0.02, *BETAS), steps)
    theta, found = torch_training(
        problem, start, steps, lambda params: torch.optim.Adam(params, lr=0.02, betas=BETAS, eps=1e-8)
    )
    np.testing.assert_allclose(trail.thetas[-1] + trail.moves[-1], theta.detach().numpy(), rtol=1e-9)
    signals = read(problem, trail)
    names = {
        "chi": "chi", "chi_gradient": "chi_gradient", "chi_gradient_sym": "chi_gradient_sym", "chi_change": "change",
        "chi_alignment": "alignment", "sharpness": "sharpness", "threshold": "threshold",
        "max_stable_lr": "max_stable_lr",
    }  # fmt: skip
    for name, attribute in names.items():
        theirs = np.array([getattr(each, attribute) for each in found])
        np.testing.assert_allclose(signals[name], theirs, rtol=2e-4, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(
        np.where(is_absent(signals["chi_step"]), np.nan, signals["chi_step"]), [each.chi_step for each in found],
        rtol=1e-5,
    )
    parts = [split(before, after) for before, after in pairwise(found)]
    for name in ("growth", "momentum", "denominator", "preconditioner", "landscape"):
        column = signals["chi_growth" if name == "growth" else f"chi_growth_{name}"][1:]
        theirs = np.array([getattr(each, name) for each in parts])
        np.testing.assert_allclose(np.where(is_absent(column), np.nan, column), theirs, atol=3e-4, err_msg=name)
    np.testing.assert_allclose(signals["chi_overlap"][1:], [each.overlap for each in parts], atol=3e-3)


def test_growth_is_all_preconditioner_on_a_parabola_and_all_landscape_under_gradient_descent():
    trail = descend(Parabola(3.0), np.ones(1), Hyper(0.1, 0.9, 0.99), 300)
    found = read(Parabola(3.0), trail)
    np.testing.assert_allclose(found["chi_growth_preconditioner"][1:], found["chi_growth"][1:], atol=1e-12)
    problem, start = sines(0)
    _, edges = torch_training(problem, start, 4, lambda params: torch.optim.SGD(params, lr=1e-3))
    for before, after in pairwise(edges):
        part = split(before, after)
        assert part.preconditioner == 0.0
        assert part.landscape == pytest.approx(part.growth) != 0


def test_chi_is_the_top_eigenvalue_of_the_unsymmetric_product_and_never_below_its_quotient():
    problem, start = sines(2)
    trail = descend(problem, start, Hyper(), 200)
    found = read(problem, trail, 10)
    for row in range(0, 200, 10):
        plain = np.linalg.eigvals(trail.weights[row][:, None] * problem.hessians(trail.thetas[[row]])[0])
        assert found["chi"][row] == pytest.approx(plain.real.max(), rel=1e-8)
    assert is_absent(found["chi"]).sum() == 180
    assert np.nanmax(found["chi_gradient_sym"] - found["chi"]) < 1e-10
    shares = sum(found[f"chi_share/{name}"][::10] for name in problem.tensors)
    np.testing.assert_allclose(shares, 1.0)


def test_the_loss_goes_the_way_that_the_sum_form_says():
    problem, start = sines(0)
    trail = descend(problem, start, Hyper(), 300)
    found = read(problem, trail)
    rises = np.diff(trail.losses) > 0
    assert np.mean(rises == (found["chi_change"][:-1] > 0)) > 0.98


def test_a_training_taken_up_again_goes_on_as_if_it_had_not_stopped():
    problem, start = sines(0)
    whole = descend(problem, start, Hyper(), 60)
    for at in (0, 25):
        rest = resume(problem, whole, at, 60 - at)
        np.testing.assert_array_equal(rest.thetas, whole.thetas[at:])
        np.testing.assert_array_equal(rest.weights, whole.weights[at:])
    assert not np.array_equal(resume(problem, whole, 25, 35, eps=0.1).losses[1:], whole.losses[26:])


def test_a_run_holds_what_a_monitor_would_have_measured():
    problem, start = sines(0)
    trail = descend(problem, start, Hyper(), 40)
    found = moments(problem, trail)
    lengths = [np.linalg.norm(trail.v[row]) for row in range(40)]
    np.testing.assert_allclose(found["v_ratio"][1:], np.divide(lengths[1:], lengths[:-1]))
    assert is_absent(found["v_ratio"])[0]
    run = recorded(problem, trail, 0, every=4)
    assert run.tensors("v_ratio") == ("w", "b", "a", "c")
    assert len(run.measured("chi")[0]) == 10
    assert run.meta["optimizers"][0]["groups"][0]["betas"] == [0.9, 0.999]
