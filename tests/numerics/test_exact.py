"""Derivatives of exact cross-entropy: every order, every way torch has of asking for them."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from foreshock.curvature import Hessian
from foreshock.errors import UsageError
from foreshock.numerics import rows
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.exact import losses

# torch's own: forward-mode rules are scripted, and torch.compile instantiates autograd functions
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

CASES = ("hard", "smoothed", "probabilities", "middle")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(name: str) -> tuple[Tensor, dict[str, object]]:
    """Returns float64 logits and the other arguments of `losses`."""
    shape = (3, 5, 4) if name == "middle" else (6, 5)
    dim = 1 if name == "middle" else -1
    one = list(shape)
    one[dim] = 1
    z = 3 * torch.randn(shape, dtype=torch.float64, generator=seeded())
    right = torch.randint(5, one, generator=seeded(1))
    given: dict[str, object] = {"right": right, "dim": dim}
    if name == "smoothed":
        given |= {"spread": torch.rand(1, 5, dtype=torch.float64, generator=seeded(2)), "mass": torch.rand(
            one, dtype=torch.float64, generator=seeded(3))}  # fmt: skip
    if name == "probabilities":
        y = torch.rand(shape, dtype=torch.float64, generator=seeded(4))
        given |= {"spread": y, "right": y.argmax(-1, keepdim=True)}
    return z, given


def reference(
    z: Tensor, right: Tensor, spread: Tensor | None = None, mass: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Returns -sum_k y_k log p_k with torch's own log-softmax."""
    y = torch.zeros_like(z) if spread is None else spread.expand_as(z)
    extra = torch.ones(right.shape, dtype=z.dtype) if spread is None else mass
    if extra is not None:
        y = y.scatter_add(dim, right, extra)
    return -(y * z.log_softmax(dim)).sum(dim, keepdim=True)


@pytest.mark.parametrize("name", CASES)
def test_values_and_two_derivatives_are_those_of_a_dense_float64_reference(name: str) -> None:
    z, given = case(name)
    z.requires_grad_()
    outer = torch.rand(given["right"].shape, dtype=z.dtype, generator=seeded(5))
    v = torch.randn(z.shape, dtype=z.dtype, generator=seeded(6))
    found, wanted = losses(z, **given), reference(z, **given)
    torch.testing.assert_close(found, wanted)
    first, second = (torch.autograd.grad((outer * each).sum(), z, create_graph=True)[0] for each in (found, wanted))
    torch.testing.assert_close(first, second)
    products = [torch.autograd.grad((g * v).sum(), z)[0] for g in (first, second)]
    torch.testing.assert_close(*products)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_differences_forward_backward_twice_and_batched(name: str) -> None:
    z, given = case(name)
    z = z[:2].requires_grad_()
    given = {k: v[:2] if isinstance(v, Tensor) and len(v) > 1 else v for k, v in given.items()}

    def rule(z: Tensor) -> Tensor:
        return losses(z, **given)

    assert torch.autograd.gradcheck(rule, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(rule, z, check_fwd_over_rev=True, check_batched_grad=True)


def test_probabilities_have_derivatives_of_their_own() -> None:
    z, given = case("probabilities")
    z, y = z[:2].requires_grad_(), given["spread"][:2].clone().requires_grad_()

    def rule(z: Tensor, y: Tensor) -> Tensor:
        return losses(z, y.detach().argmax(-1, keepdim=True), spread=y)

    assert torch.autograd.gradcheck(rule, (z, y), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rule, (z, y), check_fwd_over_rev=True)


def test_a_third_derivative_is_right() -> None:
    z, given = case("hard")

    def bent(z: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(losses(z, **given).sum(), z, create_graph=True)
        return torch.autograd.grad((g**3).sum(), z, create_graph=True)[0]

    given["right"] = given["right"][:2]
    assert torch.autograd.gradcheck(bent, z[:2].requires_grad_())


def test_torch_func_differentiates_maps_and_nests() -> None:
    z, given = case("hard")
    right = given["right"]
    p = z.softmax(-1)
    one_hot = torch.nn.functional.one_hot(right[:, 0], 5)

    def of_one(z: Tensor, right: Tensor) -> Tensor:
        return losses(z[None], right[None]).sum()

    torch.testing.assert_close(vmap(grad(of_one))(z, right), p - one_hot)
    torch.testing.assert_close(vmap(hessian(of_one))(z, right), torch.diag_embed(p) - p[:, :, None] * p[:, None])
    value, along = jvp(lambda z: losses(z, right), (z,), (torch.ones_like(z),))
    torch.testing.assert_close(value, losses(z, right))
    torch.testing.assert_close(along, torch.zeros_like(along))  # an offset changes nothing
    each = vmap(lambda z, t: cross_entropy(z, t))(z, right)
    torch.testing.assert_close(each.mean(), cross_entropy(z, right[:, 0]).mean())


@pytest.mark.parametrize("gap", [5.0, 17.0, 40.0, 80.0])
def test_the_hessian_of_a_confident_row_keeps_its_digits_in_float32(gap: float) -> None:
    """Products with it would be 0 beyond 16.6 nats if p_r (1 - p_r) were formed."""
    z = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    v = torch.tensor([[0.3, -1.0, 2.0]])
    (g,) = torch.autograd.grad(losses(z, torch.tensor([[0]])).sum(), z, create_graph=True)
    (found,) = torch.autograd.grad((g * v).sum(), z)
    p = z.detach().double().softmax(-1)
    u = v.double() - v.double()[:, :1]
    mean = (p * u).sum()
    torch.testing.assert_close(found.double(), p * (u - mean), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["hard", "smoothed", "probabilities", "middle"])
def test_the_compiled_loss_has_no_graph_break_and_the_same_gradients(kind: str) -> None:
    z, given = case(kind)
    z.requires_grad_()
    compiled = torch.compile(lambda z: losses(z, **given).sum(), fullgraph=True, backend="aot_eager")
    loss = compiled(z)
    torch.testing.assert_close(loss, losses(z, **given).sum())
    (found,) = torch.autograd.grad(loss, z)
    (wanted,) = torch.autograd.grad(losses(z, **given).sum(), z)
    torch.testing.assert_close(found, wanted)


def test_every_argument_has_torchs_place_and_default_and_can_be_called_by_torchs_name() -> None:
    ours, torchs = (inspect.signature(each).parameters for each in (cross_entropy, torch.nn.functional.cross_entropy))
    assert [(each.name, each.default) for each in list(ours.values())[2 : len(torchs)]] == [
        (each.name, each.default) for each in list(torchs.values())[2:]
    ]
    assert set(torchs) <= set(ours)
    with pytest.raises(UsageError, match="both are needed"):
        cross_entropy(torch.zeros(2, 4), torch.tensor([0, 1]), input=torch.ones(2, 4))
    z, y = torch.zeros(2, 4), torch.tensor([0, 1])
    assert cross_entropy(input=z, target=y, reduction="sum").item() == pytest.approx(2 * torch.tensor(4.0).log().item())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CASES:
        z, given = case(name)
        z.requires_grad_()
        for each in ("whole", "chunks"):
            if each == "chunks":
                monkeypatch.setattr(rows, "CHUNK", 7)
            found = losses(z, **given)
            kept = (found.detach(), torch.autograd.grad(found.sum(), z)[0])
            if each == "whole":
                wanted = kept
        monkeypatch.undo()
        torch.testing.assert_close(kept, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_gradients_can_be_taken_again_and_from_probabilities_or_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, given = case(name)
    z.requires_grad_()
    loss = losses(z, **given).sum()
    first, again = (torch.autograd.grad(loss, z, retain_graph=kept)[0] for kept in (True, False))
    assert torch.equal(first, again)
    monkeypatch.setattr(rows, "KEPT", 0)
    torch.testing.assert_close(torch.autograd.grad(losses(z, **given).sum(), z)[0], first, rtol=1e-13, atol=0)


@pytest.mark.parametrize("gap", [-300.0, -90.0, -20.0, 0.0, 20.0, 90.0])
def test_a_right_class_without_probability_costs_no_digits(gap: float) -> None:
    """Beside ordinary rows, whose ratio of probabilities it would overflow."""
    z = torch.tensor([[gap, 0.0], [1.0, 2.0]], requires_grad=True)
    found = losses(z, torch.tensor([[0], [0]]))
    (gradient,) = torch.autograd.grad(found.sum(), z)
    wide = z.detach().double().requires_grad_()
    true = losses(wide, torch.tensor([[0], [0]]))
    torch.testing.assert_close(found.double(), true, rtol=1e-6, atol=1e-44)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(true.sum(), wide)[0], rtol=1e-5, atol=1e-44)


def test_nothing_as_large_as_the_logits_is_kept_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEPT", 1000)
    z = torch.randn(64, 50, requires_grad=True, generator=seeded())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(z, torch.randint(50, (64,), generator=seeded(1)))
    large = [t for t in kept if t.numel() >= z.numel()]
    assert [t.data_ptr() for t in large] == [z.data_ptr()]


def test_the_engine_takes_products_with_it() -> None:
    """The Hessian of a small network under the exact loss is that under torch's."""
    model = torch.nn.Linear(4, 3).double()
    x, y = torch.randn(8, 4, dtype=torch.float64, generator=seeded()), torch.randint(3, (8,), generator=seeded(1))
    v = [torch.randn(p.shape, dtype=p.dtype, generator=seeded(2)) for p in model.parameters()]
    found, wanted = (
        Hessian(lambda loss=loss: loss(model(x), y), list(model.parameters())) @ v
        for loss in (cross_entropy, torch.nn.functional.cross_entropy)
    )
    torch.testing.assert_close(found, wanted)
