"""The margin form against the 80-bit reference at every gap, and against torch on ordinary logits and arguments."""

from __future__ import annotations

import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.numerics.margin import margin_cross_entropy
from tests.numerics.logits import DTYPES, TOLERANCE, confident, error, exactly, value_and_gradient

INF = math.inf


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_docstring_holds() -> None:
    assert doctest.testmod(sys.modules[margin_cross_entropy.__module__]).failed == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 97, 1000])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_value_and_gradient_are_exact_at_every_gap_and_offset(
    dtype: torch.dtype, classes: int, offset: float
) -> None:
    z, target = confident(seeded(classes), 30, classes, dtype, offset=offset)
    value, gradient = value_and_gradient(margin_cross_entropy, z, target, reduction="none")
    true_value, true_gradient = exactly(z, target, reduction="none")
    assert value.dtype == gradient.dtype == dtype
    assert error(value, true_value, dtype) < TOLERANCE[dtype]
    assert error(gradient, true_gradient, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((9, 5), 1), ((5,), 0), ((4, 5, 6), 1), ((3, 4, 5), 2), ((2, 5, 3, 4), 1)])
def test_ordinary_logits_give_what_torch_gives(
    reduction: str, smoothing: float, weighted: bool, shape: tuple[int, ...], dim: int
) -> None:
    z = 3 * torch.randn(shape, generator=seeded(0), dtype=torch.float64)
    target = torch.randint(5, shape[:dim] + shape[dim + 1 :], generator=seeded(1))
    if target.ndim:
        target.view(-1)[::4] = -100
    weight = torch.tensor([1.0, 0.5, 0.0, 3.0, 2.0], dtype=torch.float64) if weighted else None
    options = {"reduction": reduction, "label_smoothing": smoothing}
    found = value_and_gradient(margin_cross_entropy, z, target, weight, **options)
    stock = value_and_gradient(
        lambda z: F.cross_entropy(z.movedim(dim, min(1, z.ndim - 1)), target, weight, **options), z
    )
    for mine, theirs in zip(found, stock, strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14)


def test_smoothing_and_weights_agree_with_the_reference_at_any_gap() -> None:
    z, target = confident(seeded(2), 40, 7, torch.float32)
    weight = torch.rand(7, generator=seeded(3)) + 0.1
    options = {"weight": weight, "label_smoothing": 0.2, "reduction": "none"}
    for mine, true in zip(value_and_gradient(margin_cross_entropy, z, target, **options), exactly(z, target, **options),
                          strict=True):
        assert torch.allclose(mine.double(), true, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("row", [
    [5.0, -INF, -INF], [5.0, 1.0, -INF], [5.0], [-INF, 2.0, 3.0], [0.0, -INF, 300.0], [-120.0, 0.0, 0.0],
    [200.0, 0.0, 0.0],
])
def test_masked_classes_give_no_nan_where_torch_gives_none(row: list[float]) -> None:
    z, target = torch.tensor([row]), torch.tensor([0])
    stock = value_and_gradient(F.cross_entropy, z, target)
    found = value_and_gradient(margin_cross_entropy, z, target)
    for mine, theirs in zip(found, stock, strict=True):
        assert not theirs.isnan().any()
        assert torch.allclose(mine, theirs, atol=1e-7)


@pytest.mark.parametrize("row", [
    [INF, 0.0, 1.0], [0.0, INF, 1.0], [math.nan, 0.0, 1.0], [0.0, 1.0, math.nan], [-INF] * 3,
])
def test_what_is_no_number_gives_nan_as_torch_does(row: list[float]) -> None:
    z, target = torch.tensor([row]), torch.tensor([0])
    assert F.cross_entropy(z, target).isnan()
    assert margin_cross_entropy(z, target).isnan()


def test_nothing_to_average_is_nan_and_nothing_to_sum_is_zero() -> None:
    ignored = torch.tensor([-100, -100])
    assert margin_cross_entropy(torch.zeros(2, 3), ignored).isnan()
    assert margin_cross_entropy(torch.zeros(2, 3), ignored, reduction="sum") == 0
    assert margin_cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()


def test_derivatives_of_first_and_second_order_check_in_float64() -> None:
    z = torch.randn(6, 4, generator=seeded(4), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 3, -100, 1, 2, 2])

    def loss(logits: Tensor) -> Tensor:
        return margin_cross_entropy(logits, target, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, (z,))
    assert torch.autograd.gradgradcheck(loss, (z,))


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_hessian_products_are_exact_under_a_gap(gap: float) -> None:
    z, target = confident(seeded(5), 20, 8, torch.float32, gap=gap)
    u = torch.randn(20, 8, generator=seeded(6))
    z.requires_grad_()
    (g,) = torch.autograd.grad(margin_cross_entropy(z, target, reduction="sum"), z, create_graph=True)
    (product,) = torch.autograd.grad(g, z, u)
    p = z.detach().double().softmax(1)
    shifted = u.double() - u.double().gather(1, target[:, None])
    pull = (p * shifted).sum(1, keepdim=True)
    true = (p * (shifted - pull)).scatter(1, target[:, None], -p.gather(1, target[:, None]) * pull)
    assert error(product, true, torch.float32) < 1e-3


def test_autocast_gives_float32_as_torch_does() -> None:
    z, target = confident(seeded(7), 8, 5, torch.bfloat16, gap=9.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert margin_cross_entropy(z, target).dtype == F.cross_entropy(z, target).dtype == torch.float32


@pytest.mark.parametrize(("change", "message"), [
    ({"logits": torch.zeros(4, 3, dtype=torch.long)}, "floating"),
    ({"target": torch.rand(4, 3)}, "takes probabilities"),
    ({"target": torch.zeros(3, dtype=torch.long)}, "one entry for each row"),
    ({"weight": torch.ones(4)}, r"weight has shape \(4,\)"),
    ({"reduction": "average"}, "none, mean, sum"),
    ({"label_smoothing": 1.5}, "label_smoothing = 1.5"),
])
def test_arguments_that_cannot_work_are_named(change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.zeros(4, 3), "target": torch.zeros(4, dtype=torch.long)} | change
    with pytest.raises(UsageError, match=message):
        margin_cross_entropy(**arguments)


def test_a_single_row_takes_its_class_as_a_list_of_one_as_torch_does() -> None:
    z, target = torch.randn(3, generator=seeded(8)), torch.tensor([1])
    found = margin_cross_entropy(z, target, reduction="none")
    assert found.shape == F.cross_entropy(z, target, reduction="none").shape
    assert torch.allclose(found, F.cross_entropy(z, target))


def test_shapes_can_be_worked_out_without_numbers() -> None:
    """On the meta device, which has no autocast to ask about."""
    z, target = torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    assert margin_cross_entropy(z, target).shape == ()
