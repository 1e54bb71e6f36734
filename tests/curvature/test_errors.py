"""Bad input: each error says what was wrong, where, and what to do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.curvature import Hessian
from foreshock.errors import UsageError


def pair():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x = torch.randn(5, 3)
    return net, list(net.parameters()), lambda: net(x).square().mean()


NOT_A_LOSS = [
    (lambda loss: loss.expand(3), r"scalar.*shape \(3,\).*mean"),
    (lambda loss: loss.detach(), r"none: it was detached"),
    (lambda loss: loss.to(torch.complex64), r"real number, got torch.complex64"),
    (lambda loss: loss * float("nan"), r"the loss is nan"),
    (lambda loss: loss * float("inf"), r"the loss is inf"),
]


@pytest.mark.parametrize(("returned", "match"), NOT_A_LOSS)
def test_a_tensor_that_is_no_loss_is_named(returned, match) -> None:
    _, params, closure = pair()
    with pytest.raises(UsageError, match=match):
        _ = Hessian(returned(closure()), params).loss
    with pytest.raises(UsageError, match=match):
        _ = Hessian(lambda: returned(closure()), params).loss


@pytest.mark.parametrize("returned", [1.5, None, (1, 2), [3.0]])
def test_a_closure_that_returns_something_else_is_named(returned) -> None:
    _, params, _ = pair()
    with pytest.raises(UsageError, match=f"the closure must return a scalar tensor .*got {type(returned).__name__}"):
        _ = Hessian(lambda: returned, params).loss


def test_a_loss_of_one_element_is_a_scalar() -> None:
    _, params, closure = pair()
    assert Hessian(lambda: closure().reshape(1, 1), params).loss == Hessian(closure, params).loss


def test_parameters_that_cannot_be_differentiated_are_named_by_place_and_shape() -> None:
    net, params, closure = pair()
    net[0].bias.requires_grad_(False)
    with pytest.raises(UsageError, match=r"params\[1\], of shape \(4,\), does not require gradients.*requires_grad"):
        Hessian(closure, params)
    with pytest.raises(UsageError, match=r"params\[0\].*float16 on the CPU.*float\(\)"):
        Hessian(closure, [torch.ones(2, dtype=torch.float16, requires_grad=True)])
    with pytest.raises(UsageError, match=r"params\[0\].*real"):
        Hessian(closure, [torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(UsageError, match="at least one"):
        Hessian(closure, [])
    with pytest.raises(UsageError, match="listed twice"):
        Hessian(closure, [params[0], params[0]])


def test_parameters_may_come_as_a_generator() -> None:
    net, params, closure = pair()
    assert torch.equal(Hessian(closure, net.parameters()) @ torch.ones(26), Hessian(closure, params) @ torch.ones(26))


def test_a_loss_that_does_not_depend_on_them_is_refused() -> None:
    _, _, closure = pair()
    other = [torch.ones(2, requires_grad=True)]
    for route in ("kept", "fresh", "differences"):
        with pytest.raises(UsageError, match="does not depend on any of the parameters"):
            _ = Hessian(closure, other, route=route).loss


def test_no_loss_at_all_is_refused() -> None:
    _, params, closure = pair()
    with pytest.raises(UsageError, match=r"loss: .*got int"):
        Hessian(3, params)
    with pytest.raises(UsageError, match=r"closure\(batch\)"):
        Hessian(closure(), params, data=[1])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_graph_that_was_freed_is_named(when) -> None:
    _, params, closure = pair()
    loss = closure()
    hessian = Hessian(loss, params)
    if when == "after":
        _ = hessian.loss
    loss.backward()
    with pytest.raises(UsageError, match=r"freed.*backward\(retain_graph=True\)"):
        hessian @ torch.ones(26)


def test_a_step_between_loss_and_product_is_named() -> None:
    _, params, closure = pair()
    optimizer = torch.optim.SGD(params, lr=0.1)
    loss = closure()
    hessian = Hessian(loss, params)
    vector = hessian.start()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(UsageError, match=r"changed in place.*optimizer step"):
        hessian @ vector
    with pytest.raises(UsageError, match=r"changed in place"):
        _ = Hessian(loss, params).loss


class Spoiled(torch.autograd.Function):
    """The identity, with a NaN in the gradient, or in the gradient's gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, order: int) -> Tensor:
        ctx.order = order
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor):
        return (g * float("nan") if ctx.order == 1 else Spoiled.apply(g, ctx.order - 1)), None


def test_a_gradient_that_is_not_finite_is_named_with_the_parameter() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    for closure in (
        lambda: a.square().sum() + b.sqrt().sum(),
        lambda: a.square().sum() + Spoiled.apply(b, 1).square().sum(),
    ):
        with pytest.raises(
            UsageError, match=r"gradient is NaN or infinite.*loss is finite.*params\[1\], of shape \(3,\)"
        ):
            _ = Hessian(closure, [a, b]).loss


def test_a_product_that_is_not_finite_is_named_with_the_parameter() -> None:
    """b^1.5 has a gradient at 0 and no second derivative."""
    a, b = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    hessian = Hessian(lambda: a.square().sum() + (b**1.5).sum(), [a, b])
    with pytest.raises(UsageError, match=r"product H v is NaN or infinite.*params\[1\], of shape \(3,\)"):
        hessian @ torch.ones(5)
    with pytest.raises(UsageError, match="vector: it contains NaN"):
        Hessian(lambda: a.square().sum(), [a]) @ torch.tensor([1.0, float("nan")])


def test_vectors_of_another_shape_are_refused() -> None:
    _, params, closure = pair()
    hessian = Hessian(closure, params)
    with pytest.raises(UsageError, match=r"\(26,\), got \(3,\)"):
        hessian @ torch.ones(3)
    with pytest.raises(UsageError, match="one tensor for each of the 4"):
        hessian @ [torch.ones(3)]


def test_errors_of_the_closure_are_its_own() -> None:
    _, params, _ = pair()

    def closure() -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        _ = Hessian(closure, params).loss


def test_construction_computes_nothing() -> None:
    _, params, _ = pair()
    calls = []
    for route in ("auto", "kept", "fresh", "differences"):
        Hessian(lambda: calls.append(1), params, route=route)
    assert not calls


def test_sparse_gradients_are_made_dense_in_a_closure_and_refused_on_a_live_graph() -> None:
    sparse = nn.Embedding(5, 3, sparse=True)
    dense = nn.Embedding(5, 3, _weight=sparse.weight.detach().clone())
    tokens = torch.tensor([0, 1, 1, 3])
    truth = Hessian(lambda: dense(tokens).tanh().square().sum(), [dense.weight])
    closure = lambda: sparse(tokens).tanh().square().sum()  # noqa: E731
    assert torch.equal(Hessian(closure, [sparse.weight]) @ truth.start(), truth @ truth.start())
    assert sparse.sparse
    with pytest.raises(UsageError, match=r"sparse gradient of params\[0\]"):
        _ = Hessian(closure(), [sparse.weight]).loss


def test_embedding_bags_have_differences_only() -> None:
    bag = nn.EmbeddingBag(5, 3)
    tokens = torch.tensor([[0, 1], [2, 2]])
    hessian = Hessian(lambda: F.softplus(bag(tokens)).square().sum(), [bag.weight])
    product = hessian @ hessian.start()
    dense = nn.Embedding(5, 3, _weight=bag.weight.detach().clone())
    truth = Hessian(lambda: F.softplus(dense(tokens).mean(1)).square().sum(), [dense.weight]) @ hessian.start()
    assert "differences" in hessian.route
    assert float((product - truth).norm() / truth.norm()) < 2e-2
