"""The identity node: values untouched, gradients those of the exact loss, in front of any loss of that family."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.numerics.repair import exact_gradient
from tests.numerics.logits import DTYPES, TOLERANCE, confident, error, exactly, value_and_gradient


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def repaired(z: Tensor, target: Tensor, **options: object) -> Tensor:
    return F.cross_entropy(exact_gradient(z, target), target, **options)


def test_the_docstring_holds() -> None:
    assert doctest.testmod(sys.modules[exact_gradient.__module__]).failed == 0


def test_the_forward_pass_is_a_view_of_the_same_numbers() -> None:
    z, target = confident(seeded(0), 5, 7, torch.float32)
    version = z._version
    out = exact_gradient(z.requires_grad_(), target)
    assert out.data_ptr() == z.data_ptr()
    assert out.shape == z.shape
    assert torch.equal(out, z)
    assert z._version == version


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 10, 97, 1000])
def test_every_entry_of_the_gradient_is_exact_at_any_gap(dtype: torch.dtype, classes: int) -> None:
    z, target = confident(seeded(classes), 40, classes, dtype)
    # half precision goes through float32, or torch's loss keeps log p in it: an error of the gap times 2^-9 in bfloat16
    wide = dtype if dtype == torch.float64 else torch.float32
    _, found = value_and_gradient(lambda z: F.cross_entropy(exact_gradient(z, target).to(wide), target), z)
    _, true = exactly(z, target)
    assert error(found, true, dtype) < TOLERANCE[dtype]


def test_stock_gradients_sum_to_the_wrong_mass_where_repaired_ones_sum_to_zero() -> None:
    z, target = confident(seeded(1), 64, 10, torch.float32, gap=30.0)
    _, stock = value_and_gradient(F.cross_entropy, z, target)
    _, found = value_and_gradient(repaired, z, target)
    mass = stock.abs().sum(1)
    assert torch.allclose(stock.sum(1), mass)
    assert (found.sum(1).abs() <= 1e-6 * mass).all()


def test_wrong_classes_keep_the_gradient_they_had_bit_for_bit() -> None:
    z, target = confident(seeded(2), 30, 12, torch.float32)
    _, stock = value_and_gradient(F.cross_entropy, z, target)
    _, found = value_and_gradient(repaired, z, target)
    wrong = torch.ones_like(z, dtype=torch.bool).scatter(1, target[:, None], False)
    assert torch.equal(found[wrong], stock[wrong])


@pytest.mark.parametrize("options", [
    {"label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 0.5, 2.0, 3.0, 0.0])}, {"reduction": "sum"},
    {"weight": torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1]), "label_smoothing": 0.3}, {},
])
def test_gradients_of_ordinary_logits_stay_what_they_were(options: dict[str, object]) -> None:
    z = torch.randn(9, 5, generator=seeded(3))
    target = torch.randint(5, (9,), generator=seeded(4))
    _, stock = value_and_gradient(F.cross_entropy, z, target, **options)
    _, found = value_and_gradient(repaired, z, target, **options)
    assert torch.allclose(found, stock, rtol=1e-5, atol=1e-7)


def test_ignored_rows_pass_unchanged() -> None:
    z = torch.randn(6, 4, generator=seeded(5), requires_grad=True)
    target = torch.tensor([0, -100, 3, 7, 2, -100])
    coming = torch.randn(6, 4, generator=seeded(6))
    (found,) = torch.autograd.grad(exact_gradient(z, torch.where(target == 7, 1, target)), z, coming)
    ignored = target == -100
    assert torch.equal(found[ignored], coming[ignored])
    assert found[~ignored].sum(1).abs().max() < 1e-6


def test_another_ignore_index_may_be_a_class() -> None:
    z = torch.randn(4, 3, generator=seeded(7), requires_grad=True)
    target = torch.tensor([0, 1, 2, 1])
    coming = torch.randn(4, 3, generator=seeded(8))
    (found,) = torch.autograd.grad(exact_gradient(z, target, ignore_index=1), z, coming)
    assert torch.equal(found[1::2], coming[1::2])


@pytest.mark.parametrize(("shape", "dim", "given"), [
    ((4, 5), 1, None), ((5,), 0, None), ((4, 5, 6), 1, None), ((4, 6, 5), 2, None), ((2, 5, 3, 4), 1, None),
    ((5, 4), 0, 0), ((4, 5, 4), 1, -2), ((3, 3, 3), 2, 2), ((0, 5), 1, None),
])
def test_the_classes_may_lie_in_any_dimension(shape: tuple[int, ...], dim: int, given: int | None) -> None:
    z = torch.randn(shape, generator=seeded(9), requires_grad=True)
    target = torch.randint(shape[dim], shape[:dim] + shape[dim + 1 :], generator=seeded(10))
    coming = torch.randn(shape, generator=seeded(11))
    (found,) = torch.autograd.grad(exact_gradient(z, target, dim=given), z, coming)
    right = F.one_hot(target, shape[dim]).movedim(-1, dim).bool()
    assert torch.equal(found[~right], coming[~right])
    assert torch.allclose(found.sum(dim), torch.zeros(target.shape), atol=1e-5)


def test_a_single_row_takes_its_class_as_a_list_of_one_as_torch_does() -> None:
    z, target = torch.tensor([30.0, 0.0, 0.0]), torch.tensor([0])
    _, found = value_and_gradient(lambda z: F.cross_entropy(exact_gradient(z, target), target[0]), z)
    assert found[0] == -(found[1] + found[2]) < 0


def test_a_shifted_causal_loss_is_repaired_by_shifted_targets() -> None:
    """As losses of causal language models are written: position t predicts token t + 1."""
    tokens = torch.randint(9, (2, 6), generator=seeded(12))
    z = (40 * F.one_hot(F.pad(tokens[:, 1:], (0, 1)), 9)).float()

    def causal(logits: Tensor) -> Tensor:
        shifted = logits[..., :-1, :].contiguous().float()
        return F.cross_entropy(shifted.view(-1, 9), tokens[..., 1:].reshape(-1))

    aligned = F.pad(tokens[..., 1:], (0, 1), value=-100)
    _, stock = value_and_gradient(causal, z)
    _, found = value_and_gradient(lambda logits: causal(exact_gradient(logits, aligned)), z)
    assert stock.sum(-1)[:, :-1].abs().min() > 1e-18
    assert found.sum(-1).abs().max() < 1e-23
    assert found[:, -1].abs().max() == 0


def test_second_derivatives_are_those_of_the_map_and_of_the_loss() -> None:
    z = torch.randn(6, 4, generator=seeded(13), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, -100, 1, 2, 2])
    coming = torch.randn(6, 4, generator=seeded(14), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g: torch.autograd.grad(exact_gradient(z, target), z, g, create_graph=True)[0], (coming,)
    )
    assert torch.autograd.gradgradcheck(lambda logits: repaired(logits, target), (z,))


def test_hessian_products_are_exact_where_the_gradient_would_be_absorbed() -> None:
    """(Hu)_k = p_k (u'_k - sum_j p_j u'_j) with u' = u - u_r, which is 0 for the right class."""
    z, target = confident(seeded(15), 20, 8, torch.float32, gap=25.0)
    u = torch.randn(20, 8, generator=seeded(16))
    z.requires_grad_()
    (g,) = torch.autograd.grad(repaired(z, target, reduction="sum"), z, create_graph=True)
    (product,) = torch.autograd.grad(g, z, u)
    p = z.detach().double().softmax(1)
    shifted = u.double() - u.double().gather(1, target[:, None])
    true = p * (shifted - (p * shifted).sum(1, keepdim=True))
    assert error(product, true, torch.float32) < 1e-5


def test_torch_func_sees_through_it() -> None:
    z = torch.randn(5, 4, generator=seeded(17), dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 2, 2])
    stock, found = (torch.func.jacrev(torch.func.grad(loss))(z, target) for loss in (F.cross_entropy, repaired))
    assert torch.allclose(found, stock, atol=1e-14)
    each = torch.func.vmap(torch.func.grad(repaired))(z, target)
    assert torch.allclose(each, torch.func.vmap(torch.func.grad(F.cross_entropy))(z, target), atol=1e-14)


def test_it_serves_autocast_and_loss_scaling() -> None:
    layer = nn.Linear(8, 5)
    x, target = torch.randn(16, 8, generator=seeded(18)), torch.randint(5, (16,), generator=seeded(19))
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        assert logits.dtype == torch.bfloat16
        loss = F.cross_entropy(exact_gradient(logits, target), target) * 1024
    loss.backward()
    assert layer.bias.grad.sum().abs() < 1e-2 * layer.bias.grad.abs().sum()


def test_the_logits_may_change_no_gradient_at_all() -> None:
    z = torch.randn(3, 4, generator=seeded(20))
    assert not exact_gradient(z, torch.tensor([0, 1, 2])).requires_grad


@pytest.mark.parametrize(("target", "dim", "message"), [
    (torch.rand(4, 3), None, "index of the right class"),
    (torch.tensor([True, False, True, True]), None, "index of the right class"),
    (torch.zeros(3, dtype=torch.long), None, r"shape \(3,\)"),
    (torch.zeros(4, dtype=torch.long), 0, "dim = 0"),
    (torch.zeros(4, dtype=torch.long), 5, "dim = 5"),
])
def test_what_is_no_right_class_is_refused(target: Tensor, dim: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        exact_gradient(torch.zeros(4, 3), target, dim=dim)


def test_a_z_loss_behind_it_is_what_it_is_not_for() -> None:
    """The warning in the docstring, as a fact: (log sum exp)^2 has a gradient that does not sum to zero."""
    z = torch.randn(4, 3, generator=seeded(21))
    target = torch.tensor([0, 1, 2, 0])
    _, true = value_and_gradient(lambda logits: logits.logsumexp(1).square().sum(), z)
    _, found = value_and_gradient(lambda logits: exact_gradient(logits, target).logsumexp(1).square().sum(), z)
    assert not torch.allclose(found, true, rtol=0.1)
