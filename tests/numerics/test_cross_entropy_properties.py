"""The exact loss on logits of any gap, offset, type and shape, against the 80-bit reference and against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foreshock.errors import UsageError
from foreshock.numerics.cross_entropy import cross_entropy
from tests.numerics.logits import DTYPES, TOLERANCE, UNDERFLOW, confident, error, exactly, value_and_gradient

INF, NAN = math.inf, math.nan
REDUCTIONS = ("none", "mean", "sum")
properties = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def rows(draw: st.DrawFn, classes: tuple[int, ...] = (1, 2, 3, 10, 97, 1000)) -> tuple[Tensor, Tensor]:
    """Draws logits (N, K) whose right classes lead by up to 200 nats, or trail by as much, anywhere up to 1e4."""
    generator = seeded(draw(seeds))
    count, n = draw(st.sampled_from(classes)), draw(st.integers(1, 8))
    gap = draw(st.one_of(st.none(), st.floats(-200, 200), st.floats(0, 45)))
    offset = draw(st.sampled_from([0.0, 1e4, -1e4, 37.25, -512.0]))
    spread = draw(st.sampled_from([0.0, 1.0, 5.0, 30.0]))
    kind = draw(st.sampled_from(DTYPES))
    return confident(generator, n, count, kind, gap=gap, offset=offset, spread=spread)


def near(found: Tensor, true: Tensor) -> bool:
    """Returns whether a gradient Y p - y, where the two may cancel, is right to the rounding of numbers up to 1."""
    working = torch.finfo(torch.float64 if found.dtype == torch.float64 else torch.float32).eps
    floor = 32 * working + (1e-7 if found.dtype == torch.float16 else 0)
    return torch.allclose(found.double(), true, rtol=TOLERANCE[found.dtype], atol=floor)


@given(rows())
@properties
def test_value_and_every_gradient_are_exact_at_any_gap(case: tuple[Tensor, Tensor]) -> None:
    z, target = case
    value, gradient = value_and_gradient(cross_entropy, z, target, reduction="none")
    true_value, true_gradient = exactly(z, target, reduction="none")
    assert value.dtype == gradient.dtype == z.dtype
    assert error(value, true_value, z.dtype) < TOLERANCE[z.dtype]
    assert error(gradient, true_gradient, z.dtype) < TOLERANCE[z.dtype]


@given(rows())
@properties
def test_the_class_sum_is_nothing_beside_the_wrong_mass(case: tuple[Tensor, Tensor]) -> None:
    z, target = case
    _, gradient = value_and_gradient(cross_entropy, z, target, reduction="sum")
    wide = gradient.double()
    mass = wide.scatter(1, target[:, None], 0.0).sum(1)
    # each entry is rounded once; the sum in float32 adds its own
    allowed = 2 * torch.finfo(z.dtype).eps + (1e-13 if z.dtype == torch.float64 else 1e-6)
    lost = z.shape[1] * UNDERFLOW[z.dtype]
    assert (wide.sum(1).abs() <= allowed * mass + lost).all()


@given(rows(), st.sampled_from(REDUCTIONS), st.booleans(), st.sampled_from([0.0, 0.1, 0.7, 1.0]), seeds)
@properties
def test_weights_smoothing_and_ignored_rows_mean_what_the_reference_says(
    case: tuple[Tensor, Tensor], reduction: str, weighted: bool, smoothing: float, seed: int
) -> None:
    z, target = case
    draws = seeded(seed)
    target = torch.where(torch.rand(len(target), generator=draws) < 0.3, -100, target)
    weight = torch.rand(z.shape[1], generator=draws, dtype=torch.float64).to(z.dtype) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    value, gradient = value_and_gradient(cross_entropy, z, target, **options)
    true_value, true_gradient = exactly(z, target, **options)
    if not (target != -100).any():
        assert value.isnan() if reduction == "mean" else not value.any()
        return
    if z.dtype == torch.float16 and true_value.abs().max() > 6e4:
        return
    assert value.shape == true_value.shape
    assert torch.allclose(value.double(), true_value, rtol=TOLERANCE[z.dtype], atol=UNDERFLOW[z.dtype])
    if smoothing:
        assert near(gradient, true_gradient)
    else:
        assert error(gradient, true_gradient, z.dtype) < TOLERANCE[z.dtype]


@given(rows((2, 3, 10, 97)), st.sampled_from(REDUCTIONS), st.booleans(), st.sampled_from([0.0, 0.2]), seeds)
@properties
def test_class_probabilities_mean_what_the_reference_says(
    case: tuple[Tensor, Tensor], reduction: str, weighted: bool, smoothing: float, seed: int
) -> None:
    z, target = case
    draws = seeded(seed)
    peaked = 20 * torch.rand(len(z), 1, generator=draws) * F.one_hot(target, z.shape[1])
    y = (torch.randn(z.shape, generator=draws, dtype=torch.float64) + peaked).softmax(1).to(z.dtype)
    weight = (0.1 + torch.rand(z.shape[1], generator=draws, dtype=torch.float64)).to(z.dtype) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    value, gradient = value_and_gradient(cross_entropy, z, y, **options)
    true_value, true_gradient = exactly(z, y, **options)
    assert torch.allclose(value.double(), true_value, rtol=TOLERANCE[z.dtype], atol=1e-6)
    assert near(gradient, true_gradient)


@given(seeds, st.sampled_from([1, 2, 3, 10, 97, 1000]), st.sampled_from(REDUCTIONS), st.booleans(), st.booleans())
@properties
def test_ordinary_logits_give_what_torch_gives_to_a_millionth(
    seed: int, classes: int, reduction: str, weighted: bool, smooth: bool
) -> None:
    draws = seeded(seed)
    z, target = torch.randn(12, classes, generator=draws), torch.randint(classes, (12,), generator=draws)
    weight = torch.rand(classes, generator=draws) + 0.1 if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1 * smooth}
    found, stock = (value_and_gradient(loss, z, target, **options) for loss in (cross_entropy, F.cross_entropy))
    for mine, theirs in zip(found, stock, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        scale = theirs.abs().max().clamp_min(1e-30)
        assert (mine - theirs).abs().max() <= 1e-6 * scale


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 5), st.integers(0, 3), st.booleans(), seeds)
@properties
def test_any_number_of_dimensions_with_the_classes_anywhere(
    others: list[int], classes: int, place: int, hard: bool, seed: int
) -> None:
    """dim = d is torch's loss of the logits with that dimension moved to where torch has it."""
    draws = seeded(seed)
    dim = place % (len(others) + 1)
    shape = (*others[:dim], classes, *others[dim:])
    z = torch.randn(shape, generator=draws, dtype=torch.float64)
    usual = min(1, len(others))
    if hard:
        target = moved = torch.randint(classes, others, generator=draws)
    else:
        target = torch.rand(shape, generator=draws, dtype=torch.float64).softmax(dim)
        moved = target.movedim(dim, usual)
    for reduction in REDUCTIONS:
        found = value_and_gradient(cross_entropy, z, target, reduction=reduction, dim=dim)
        stock = value_and_gradient(lambda z, r=reduction: F.cross_entropy(z.movedim(dim, usual), moved, reduction=r), z)
        for mine, theirs in zip(found, stock, strict=True):
            assert mine.shape == theirs.shape
            assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-13)
    if dim == usual:
        assert torch.equal(cross_entropy(z, target), cross_entropy(z, target, dim=dim))


@given(seeds, st.sampled_from(["t", "step", "expand", "flip"]), st.booleans())
@properties
def test_strides_do_not_matter(seed: int, view: str, hard: bool) -> None:
    draws = seeded(seed)
    z = torch.randn(6, 6, generator=draws, dtype=torch.float64)
    z = {"t": z.t(), "step": z[::2, 1::2], "expand": z[:, :1].expand(6, 4), "flip": z[:, ::5]}[view]
    n, classes = z.shape
    target = torch.randint(classes, (n,), generator=draws)
    target = target if hard else F.one_hot(target, classes).double() * 0.9 + 0.1 / classes
    leaf = z.detach().clone(memory_format=torch.contiguous_format)
    found = value_and_gradient(cross_entropy, z, target)
    stock = value_and_gradient(F.cross_entropy, leaf, target)
    for mine, theirs in zip(found, stock, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-14)


@given(rows((2, 3, 10)), seeds)
@properties
def test_hessian_products_are_exact_at_any_gap(case: tuple[Tensor, Tensor], seed: int) -> None:
    """(Hu)_k = p_k (u'_k - sum_j p_j u'_j), u' = u - u_r: the largest rivals' curvature is what is left of a row."""
    z, target = case
    u = torch.randn(z.shape, generator=seeded(seed), dtype=torch.float64).to(z.dtype)
    leaf = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(leaf, target, reduction="sum"), leaf, create_graph=True)
    (product,) = torch.autograd.grad(g, leaf, u)
    p = z.double().softmax(1)
    shifted = u.double() - u.double().gather(1, target[:, None])
    pull = (p * shifted).sum(1, keepdim=True)
    # a difference of two means may cancel: right relative to its terms
    terms = p * (shifted.abs() + (p * shifted.abs()).sum(1, keepdim=True))
    allowed = 2 * TOLERANCE[z.dtype] * terms + z.shape[1] * UNDERFLOW[z.dtype]
    assert ((product.double() - p * (shifted - pull)).abs() <= allowed).all()


def test_derivatives_check_in_float64_for_every_kind_of_target() -> None:
    z = torch.randn(5, 4, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    y = torch.rand(5, 4, generator=seeded(1), dtype=torch.float64).softmax(1).requires_grad_()
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64)
    target = torch.tensor([0, 3, -100, 1, 2])
    for smoothing in (0.0, 0.2):
        for given_weight in (None, weight):
            options = {"weight": given_weight, "label_smoothing": smoothing}
            assert torch.autograd.gradcheck(lambda z, o=options: cross_entropy(z, target, **o), (z,))
            assert torch.autograd.gradgradcheck(lambda z, o=options: cross_entropy(z, target, **o), (z,))
            assert torch.autograd.gradcheck(lambda z, y, o=options: cross_entropy(z, y, **o), (z, y))
            assert torch.autograd.gradgradcheck(lambda z, y, o=options: cross_entropy(z, y, **o), (z, y))


@pytest.mark.parametrize("row", [
    [5.0, -INF, -INF], [5.0, 1.0, -INF], [5.0], [-INF, 2.0, 3.0], [0.0, -INF, 300.0], [-120.0, 0.0, 0.0],
    [200.0, 0.0, 0.0],
])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_classes_give_no_nan_where_torch_gives_none(row: list[float], dtype: torch.dtype) -> None:
    z, target = torch.tensor([row], dtype=dtype), torch.tensor([0])
    stock = value_and_gradient(F.cross_entropy, z.double(), target)
    found = value_and_gradient(cross_entropy, z, target)
    for mine, theirs in zip(found, stock, strict=True):
        assert not theirs.isnan().any()
        assert torch.allclose(mine.double(), theirs, atol=1e-7, rtol=TOLERANCE[dtype])
    leaf = z.requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(leaf, target), leaf, create_graph=True)
    (second,) = torch.autograd.grad(g.sum() + (g * torch.arange(len(row))).sum(), leaf)
    assert not second.isnan().any()


@pytest.mark.parametrize("row", [
    [INF, 0.0, 1.0], [0.0, INF, 1.0], [NAN, 0.0, 1.0], [0.0, 1.0, NAN], [-INF, -INF, -INF], [INF, INF, 0.0],
])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 2.0, 3.0])}])
def test_what_is_no_number_gives_nan_as_torch_does(row: list[float], options: dict[str, object]) -> None:
    z, target = torch.tensor([row, [0.0, 1.0, 2.0]]), torch.tensor([0, 1])
    found = value_and_gradient(cross_entropy, z, target, reduction="none", **options)
    stock = value_and_gradient(F.cross_entropy, z, target, reduction="none", **options)
    for mine, theirs in zip(found, stock, strict=True):
        assert theirs.isnan().any()
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.allclose(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 2.0])])
def test_nothing_to_average_is_nan_and_nothing_to_sum_is_zero(smoothing: float, weight: Tensor | None) -> None:
    options = {"label_smoothing": smoothing, "weight": weight}
    empty, ignored = torch.zeros(0, dtype=torch.long), torch.tensor([-100, -100])
    for z, target in [(torch.zeros(0, 3), empty), (torch.randn(2, 3, generator=seeded(2)), ignored),
                      (torch.zeros(0, 3), torch.zeros(0, 3)), (torch.zeros(2, 3, 0), torch.zeros(2, 0).long())]:
        for reduction in REDUCTIONS:
            mine, g = value_and_gradient(cross_entropy, z, target, reduction=reduction, **options)
            theirs, h = value_and_gradient(F.cross_entropy, z, target, reduction=reduction, **options)
            assert torch.equal(mine.isnan(), theirs.isnan())
            assert torch.allclose(mine, theirs, equal_nan=True)
            assert torch.allclose(g, h, equal_nan=True)


@pytest.mark.parametrize("legacy", [
    {"size_average": False}, {"size_average": True}, {"reduce": False}, {"reduce": True, "size_average": False},
    {"reduce": False, "size_average": True, "reduction": "sum"},
])
def test_deprecated_arguments_mean_what_they_meant(legacy: dict[str, object]) -> None:
    z, target = torch.randn(4, 3, generator=seeded(3)), torch.tensor([0, 1, 2, 0])
    with pytest.warns(UserWarning, match="deprecated"):
        theirs = F.cross_entropy(z, target, **legacy)
    assert torch.allclose(cross_entropy(z, target, **legacy), theirs)


def test_arguments_may_be_given_in_the_order_torch_has_them() -> None:
    z, target = torch.randn(4, 3, generator=seeded(4)), torch.tensor([0, 1, 2, 0])
    weight = torch.tensor([1.0, 2.0, 3.0])
    theirs = F.cross_entropy(z, target, weight, None, 1, None, "sum", 0.1)
    assert torch.allclose(cross_entropy(z, target, weight, None, 1, None, "sum", 0.1), theirs)


CALLS = {
    "a class index above the range": ({"target": torch.tensor([0, 1, 3, 0])}, "class index 3"),
    "a class index below it": ({"target": torch.tensor([0, 1, -1, 0])}, "class index -1"),
    "the default ignored index with another one given": (
        {"target": torch.tensor([0, 1, -100, 0]), "ignore_index": 2}, "class index -100"),
    "truth values": ({"target": torch.tensor([True, False, True, False])}, "bool"),
    "too few targets": ({"target": torch.tensor([0, 1, 2])}, r"\(3,\)"),
    "targets of another shape": ({"target": torch.zeros(4, 1, dtype=torch.long)}, r"\(4, 1\)"),
    "probabilities of another shape": ({"target": torch.rand(4, 2)}, r"\(4, 2\)"),
    "complex probabilities": ({"target": torch.rand(4, 3) + 0j}, "complex"),
    "integer logits": ({"logits": torch.zeros(4, 3, dtype=torch.long)}, "int64"),
    "no dimension": ({"logits": torch.tensor(1.0), "target": torch.tensor(0)}, "dimension"),
    "too few weights": ({"weight": torch.ones(2)}, "weight"),
    "weights in a column": ({"weight": torch.ones(3, 1)}, "weight"),
    "integer weights": ({"weight": torch.ones(3, dtype=torch.long)}, "weight"),
    "an unknown reduction": ({"reduction": "average"}, "none, mean, sum"),
    "too much smoothing": ({"label_smoothing": 1.1}, "label_smoothing"),
    "an index to ignore among probabilities": ({"target": torch.rand(4, 3), "ignore_index": 2}, "ignore_index"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_torch_refuses_is_refused_with_its_reason(name: str) -> None:
    change, message = CALLS[name]
    arguments = {"logits": torch.randn(4, 3, generator=seeded(5)), "target": torch.tensor([0, 1, 2, 0])} | change
    with pytest.raises(UsageError, match=message):
        cross_entropy(**arguments)
    logits = arguments.pop("logits")
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        F.cross_entropy(logits, **arguments)


def test_an_index_beyond_the_classes_may_be_ignored() -> None:
    z, target = torch.randn(4, 3, generator=seeded(6)), torch.tensor([0, 255, 2, 0])
    found = value_and_gradient(cross_entropy, z, target, ignore_index=255)
    stock = value_and_gradient(F.cross_entropy, z, target, ignore_index=255)
    for mine, theirs in zip(found, stock, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_single_row_takes_its_class_as_a_number_or_a_list_of_one(reduction: str) -> None:
    z = torch.randn(3, generator=seeded(10))
    for target in (torch.tensor(1), torch.tensor([1])):
        theirs = F.cross_entropy(z, target, reduction=reduction)
        found = cross_entropy(z, target, reduction=reduction)
        assert found.shape == theirs.shape
        assert torch.allclose(found, theirs)


def test_shapes_can_be_worked_out_without_numbers() -> None:
    """On the meta device, which has no autocast to ask about, and of fake tensors, which have no values to check."""
    z, target = torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    assert cross_entropy(z, target).shape == ()
    with FakeTensorMode():
        z, target = torch.randn(4, 3, requires_grad=True), torch.zeros(4, dtype=torch.long)
        cross_entropy(z, target).backward()
    assert z.grad.shape == z.shape


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_names_a_class(kind: torch.dtype) -> None:
    z, target = torch.randn(4, 3, generator=seeded(7)), torch.tensor([0, 1, 2, 0])
    assert torch.equal(cross_entropy(z, target.to(kind)), cross_entropy(z, target))


def test_the_module_of_torch_trains_with_it_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    z, target = torch.randn(6, 3, generator=seeded(8)), torch.tensor([0, 1, 2, 0, -1, 1])
    made = [
        {}, {"weight": torch.tensor([1.0, 2.0, 0.5])}, {"ignore_index": -1}, {"reduction": "sum", "ignore_index": -1},
        {"label_smoothing": 0.2, "ignore_index": -1},
    ]
    for options in made:
        clean = target if options.get("ignore_index") == -1 else target.clamp_min(0)
        theirs = value_and_gradient(nn.CrossEntropyLoss(**options), z, clean)
        with monkeypatch.context() as patch:
            patch.setattr(F, "cross_entropy", cross_entropy)
            found = value_and_gradient(nn.CrossEntropyLoss(**options), z, clean)
        for mine, other in zip(found, theirs, strict=True):
            assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_gives_float32_as_torch_does(dtype: torch.dtype) -> None:
    z, target = confident(seeded(9), 8, 5, dtype, gap=9.0)
    leaf = z.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(leaf, target)
        assert loss.dtype == F.cross_entropy(leaf, target).dtype == torch.float32
    (g,) = torch.autograd.grad(loss, leaf)
    _, true = exactly(z, target)
    assert error(g, true, dtype) < TOLERANCE[dtype]


@given(rows((3, 10)))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_nothing_is_written_to_what_was_given(case: tuple[Tensor, Tensor]) -> None:
    z, target = case
    leaf, kept, aims = z.clone().requires_grad_(), z.clone(), target.clone()
    versions = leaf._version, target._version
    loss = cross_entropy(leaf, target)
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    again = torch.autograd.grad(loss, leaf)[0]
    assert torch.equal(first, again)
    assert torch.equal(leaf, kept)
    assert torch.equal(target, aims)
    assert (leaf._version, target._version) == versions
    assert leaf.grad is None
