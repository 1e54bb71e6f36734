"""The Gauss-Newton matrix against J' H_L J built from dense float64 factors."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foreshock.curvature.gauss_newton as gauss_newton_module
from foreshock.curvature import Hessian
from foreshock.curvature.checks import symmetry_check
from foreshock.curvature.gauss_newton import GaussNewton
from foreshock.errors import UsageError
from tests.curvature.zoo import CASES, Case, case, dense, dense_gauss_newton

ONCE = {"fused attention", "multihead attention", "transformer layer", "checkpointed, reentrant"}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def parts(loss: Case):
    """Returns the outputs of a case's module, and its loss as a function of them."""
    inputs = loss.inputs
    if "labels" in inputs:
        given = inputs.get("x", inputs.get("tokens"))
        return lambda: loss.module(given), lambda z: F.cross_entropy(z.flatten(0, -2), inputs["labels"])
    if "target" in inputs:
        return lambda: loss.module(inputs["x"]), lambda z: F.mse_loss(z, inputs["target"])
    return lambda: loss.module(inputs["x"]), lambda z: z.square().mean() + z.exp().mean()


def test_the_docstring_holds() -> None:
    assert doctest.testmod(gauss_newton_module).failed == 0


@pytest.mark.parametrize("name", CASES)
def test_every_layer_has_the_matrix_of_dense_factors(name) -> None:
    loss = case(name)
    outputs, loss_fn = parts(loss)
    truth = dense_gauss_newton(loss, outputs, loss_fn)
    operator = GaussNewton(outputs, loss_fn, loss.params, deterministic="fix")
    matrix = operator.dense()
    assert relative(matrix, truth) < 1e-8
    assert symmetry_check(operator) < 1e-12
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert float(eigenvalues[0]) > -1e-10 * float(eigenvalues[-1])  # these losses are convex in the outputs


@pytest.mark.parametrize("name", sorted(set(CASES) - ONCE))
def test_live_outputs_have_the_matrix_of_dense_factors(name) -> None:
    loss = case(name, seed=1)
    outputs, loss_fn = parts(loss)
    truth = dense_gauss_newton(loss, outputs, loss_fn)
    z = outputs()
    operator = GaussNewton(z, loss_fn, loss.params)
    assert relative(operator.dense(), truth) < 1e-8
    loss_fn(z).backward()  # the graph is still the caller's


def test_a_loss_that_is_not_convex_keeps_its_negative_curvature() -> None:
    loss = case("tanh, mse")
    outputs, _ = parts(loss)
    loss_fn = lambda z: (z.square().sum() - 1).square() - 9 * z[0, 0] ** 2  # noqa: E731
    operator = GaussNewton(outputs, loss_fn, loss.params)
    truth = dense_gauss_newton(loss, outputs, loss_fn)
    assert relative(operator.dense(), truth) < 1e-8
    assert float(torch.linalg.eigvalsh(truth)[0]) < 0


def test_it_is_the_hessian_where_the_model_is_linear() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(0, 3, (7,))
    params = list(model.parameters())
    operator = GaussNewton(lambda: model(x), lambda z: F.cross_entropy(z, y), params)
    hessian = Hessian(lambda: F.cross_entropy(model(x), y), params)
    assert relative(operator.dense(), hessian.dense()) < 1e-12
    assert torch.allclose(operator.start(), hessian.start(), rtol=1e-12)
    assert operator.loss == pytest.approx(hessian.loss, rel=1e-14)


def test_over_data_it_is_that_of_the_whole_batch() -> None:
    loss = case("layer norm")
    x, y = loss.inputs["x"], loss.inputs["labels"]
    outputs, loss_fn = parts(loss)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    operator = GaussNewton(
        lambda batch: loss.module(batch[0]), lambda z, batch: F.cross_entropy(z, batch[1]), loss.params, data=batches
    )
    assert relative(operator.dense(), dense_gauss_newton(loss, outputs, loss_fn)) < 1e-8
    assert operator.batch_size == 6


def test_a_block_is_the_block_of_the_whole_and_refresh_follows_the_parameters() -> None:
    loss = case("gelu")
    outputs, loss_fn = parts(loss)
    operator = GaussNewton(outputs, loss_fn, loss.params)
    n = loss.params[0].numel()
    for _ in range(2):  # before and after it was opened
        assert (
            relative(operator.block(loss.params[:1]).dense(), dense_gauss_newton(loss, outputs, loss_fn)[:n, :n]) < 1e-8
        )
        _ = operator.loss
    with torch.no_grad():
        loss.params[0].mul_(1.1)
    with pytest.raises(UsageError, match="changed in place"):
        operator @ operator.start()
    operator.refresh()
    assert relative(operator.dense(), dense_gauss_newton(loss, outputs, loss_fn)) < 1e-8
    live = GaussNewton(outputs(), loss_fn, loss.params)
    live.refresh(outputs())
    block = live.block(loss.params[:1])
    assert relative(block.dense(), dense_gauss_newton(loss, outputs, loss_fn)[:n, :n]) < 1e-8
    block.refresh(outputs())
    assert relative(block.dense(), dense_gauss_newton(loss, outputs, loss_fn)[:n, :n]) < 1e-8
    assert relative(live.dense(), dense_gauss_newton(loss, outputs, loss_fn)) < 1e-8


def test_a_loss_linear_in_the_outputs_has_none() -> None:
    loss = case("gelu")
    outputs, _ = parts(loss)
    operator = GaussNewton(outputs, lambda z: z.sum(), loss.params)
    assert not (operator @ operator.start()).any()
    assert float(dense(loss).norm()) > 0


def test_bad_arguments_are_named() -> None:
    loss = case("gelu")
    outputs, loss_fn = parts(loss)
    with pytest.raises(UsageError, match="loss_fn"):
        GaussNewton(outputs, torch.zeros(1), loss.params)
    with pytest.raises(UsageError, match="outputs"):
        GaussNewton(3, loss_fn, loss.params)
    with pytest.raises(UsageError, match="outputs: must be one tensor"):
        _ = GaussNewton(lambda: (outputs(), 1), loss_fn, loss.params).loss
    with pytest.raises(UsageError, match="no graph"):
        _ = GaussNewton(lambda: outputs().detach(), loss_fn, loss.params).loss
    with pytest.raises(UsageError, match="scalar"):
        _ = GaussNewton(outputs, lambda z: z, loss.params).loss
    with pytest.raises(UsageError, match="do not depend"):
        _ = GaussNewton(outputs, loss_fn, [torch.ones(2, dtype=torch.float64, requires_grad=True)]).loss
