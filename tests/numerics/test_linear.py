"""The fused loss is the dense one, row chunks or not, at every gap; and it is cheap where it says so."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from foreshock.errors import UsageError
from foreshock.numerics.linear import linear_cross_entropy
from tests.reference.margin_loss import margin_loss

torch.set_num_threads(1)
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def case(rows: int = 7, width: int = 4, classes: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    target = torch.randint(classes, (rows,), generator=generator)
    if rows > 2:
        target[2] = -100
    return {"features": normal(rows, width), "head": normal(classes, width), "target": target, "bias": normal(classes)}


def dense(features: Tensor, head: Tensor, target: Tensor, bias: Tensor | None = None, **settings) -> Tensor:
    """The reference: all logits in float64, then the margin form by autograd."""
    return margin_loss(F.linear(features, head, bias).flatten(0, -2), target.flatten(), **settings)


def gradients(loss: Tensor, *inputs: Tensor, along: Tensor | None = None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, along)


class Watch(TorchDispatchMode):
    """Counts matrix products and the elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.largest = 0
        self.copied: set[int] = set()  # elements of the tensors that scaling made, instead of scaling in place

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if function.overloadpacket == torch.ops.aten.mul:
            self.copied.add(made.numel())
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return made


WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("rows", [None, 1, 3, 100])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_value_and_gradients_are_those_of_all_logits_at_once(rows, reduction, smoothing, weight):
    given_ = case()
    inputs = [given_[name] for name in ("features", "head", "bias")]
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    ours, truth = linear_cross_entropy(**given_, **options, rows=rows), dense(**given_, **options)
    torch.testing.assert_close(ours, truth)
    along = torch.linspace(-1, 2, truth.numel(), dtype=truth.dtype).reshape(truth.shape)
    for mine, true in zip(gradients(ours, *inputs, along=along), gradients(truth, *inputs, along=along), strict=True):
        torch.testing.assert_close(mine, true)


def test_leading_dimensions_are_rows():
    given_ = case(rows=12)
    shaped = {**given_, "features": given_["features"].view(2, 3, 2, 4), "target": given_["target"].view(2, 3, 2)}
    torch.testing.assert_close(linear_cross_entropy(**shaped), dense(**given_))
    each = linear_cross_entropy(**shaped, reduction="none")
    torch.testing.assert_close(each, dense(**given_, reduction="none").view(2, 3, 2))
    alone = linear_cross_entropy(given_["features"][0], given_["head"], given_["target"][0], reduction="none")
    torch.testing.assert_close(alone, dense(given_["features"], given_["head"], given_["target"], reduction="none")[0])


def test_inputs_may_be_transposed_expanded_or_strided():
    plain = case(rows=6, width=4, classes=4)
    features, head = plain["features"].detach(), plain["head"].detach()
    strided = torch.zeros(6, 8, dtype=torch.float64)
    strided[:, ::2] = features
    transposed, expanded = features.T.contiguous().T, features[:1].expand(6, 4)
    for x, w in ((strided[:, ::2], head.T), (transposed, head.T.contiguous()), (expanded, head.T)):
        x, w = x.requires_grad_(), w.requires_grad_()
        ours, truth = (loss(x, w, plain["target"]) for loss in (linear_cross_entropy, dense))
        torch.testing.assert_close(gradients(ours, x, w), gradients(truth, x, w))


def test_probabilities_may_be_the_target():
    given_ = case()
    inputs = [given_[name] for name in ("features", "head", "bias")]
    given_["target"] = torch.rand(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        for smoothing in (0.0, 0.3):
            options = {"weight": WEIGHT, "reduction": reduction, "label_smoothing": smoothing}
            ours = linear_cross_entropy(**given_, **options, rows=2)
            stock = F.cross_entropy(F.linear(*inputs), given_["target"], **options)
            torch.testing.assert_close(ours, stock)
            torch.testing.assert_close(gradients(ours.sum(), *inputs), gradients(stock.sum(), *inputs))


@settings(max_examples=40, deadline=None)
@given(
    gap=st.floats(0, 200), offset=st.floats(-1e4, 1e4), classes=st.integers(2, 40), seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    reduction=st.sampled_from(["mean", "sum", "none"]), rows=st.integers(1, 6),
)
def test_gradients_are_exact_at_every_gap(gap, offset, classes, seed, dtype, reduction, rows):
    """Features are unit vectors, so that the logits are numbers of the head, unrounded, and its gradient is theirs."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (5,), generator=generator)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(5), target] = logits.amax(1) + gap * torch.tensor([1, 1, 0.5, 0.1, -1], dtype=torch.float64)
    head = (logits + offset).to(dtype).T.contiguous().requires_grad_()
    features = torch.eye(5, dtype=dtype).requires_grad_()
    exact = head.detach().double().T.requires_grad_()
    truth = margin_loss(exact, target, reduction=reduction)
    along = torch.ones_like(truth)
    (true,) = gradients(truth, exact, along=along)
    ours = linear_cross_entropy(features, head, target, reduction=reduction, rows=rows)
    dx, dw = gradients(ours, features, head, along=torch.ones_like(ours))
    # float32 holds no number below 2^-149, float16 none below 2^-24; up to a few of their units may be missing
    work = torch.float32 if dtype != torch.float64 else dtype
    least = max(torch.finfo(dtype).smallest_normal, torch.finfo(work).smallest_normal) * 8 * ROUNDING[dtype]
    # exp(-gap) carries the rounding of the gap
    scale = (40 * classes**0.5 + 2 * gap) * ROUNDING[work] + 4 * ROUNDING[dtype]
    assert torch.all((dw.T.double() - true).abs() <= scale * true.abs() + 4 * least)
    if dtype in (torch.float64, torch.float32):
        sizes = truth.detach().abs()
        assert torch.all((ours.double() - truth).abs() <= scale * sizes + 4 * least)
    wide = head.detach().double()
    allowed = 8 * scale * (true.abs() @ wide.abs()) + 8 * least * (1 + wide.abs().sum(0))
    assert torch.all((dx.double() - true @ wide).abs() <= allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_narrow_gradients_are_those_of_float64_to_their_rounding(dtype, reduction):
    given_ = case(rows=60, width=16, classes=50, dtype=dtype)
    names = ("features", "head", "bias")
    wide = {name: given_[name].detach().double().requires_grad_() for name in names}
    ours = linear_cross_entropy(**given_, reduction=reduction, rows=13)
    truth = dense(**wide, target=given_["target"], reduction=reduction)
    assert ours.dtype == dtype
    mine = gradients(ours.sum(), *(given_[name] for name in names))
    for a, b, name in zip(mine, gradients(truth.sum(), *wide.values()), names, strict=True):
        assert a.dtype == dtype
        assert float((a.double() - b).norm() / b.norm()) < 4 * ROUNDING[dtype], name


def test_the_heads_gradient_does_not_lose_chunks_in_bfloat16():
    """4,096 rows of the same gradient, one a chunk: a bfloat16 sum would stand still at 256 of them."""
    features = torch.ones(4096, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(features, head, torch.zeros(4096, dtype=torch.long), reduction="sum", rows=8)
    assert gradients(loss, head)[0].tolist() == [[-2048.0], [2048.0]]


def test_a_loss_scale_reaches_float16_gradients_before_they_are_rounded():
    """w/N = 3e-10 is below float16; a scaler's 65536 lifts it, as it does for the stock loss."""
    features = torch.ones(512, 1, dtype=torch.float16)
    head = torch.tensor([[16.0], [0.0]], dtype=torch.float16, requires_grad=True)
    target = torch.zeros(512, dtype=torch.long)
    target[1:] = -100
    target = target.roll(3)
    each = linear_cross_entropy(features, head, target, reduction="sum").float() / 512
    scaled = gradients(each * 2.0**24, head)[0]
    w = 1 / (1 + torch.tensor(16.0, dtype=torch.float64).exp())
    assert float((scaled[1, 0].double() / (w * 2.0**15)) - 1) < 1e-2


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_first_and_second_derivatives_pass_the_numerical_check(reduction, smoothing):
    given_ = case(rows=4, width=2, classes=3)
    target = given_.pop("target")
    weight = WEIGHT[:3]

    def loss(features: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing, "rows": 2}
        return linear_cross_entropy(features, head, target, bias, **options)

    inputs = (given_["features"], given_["head"], given_["bias"])
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_third_derivatives_pass_the_numerical_check():
    given_ = case(rows=3, width=2, classes=3)
    target = given_.pop("target")

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(*inputs[:2], target, inputs[2], label_smoothing=0.1, rows=2)
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (given_["features"], given_["head"], given_["bias"]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_many_outputs_may_be_taken_at_once(reduction):
    given_ = case()
    inputs = (given_["features"], given_["head"], given_["bias"])
    along = torch.eye(7, dtype=torch.float64) if reduction == "none" else torch.tensor([2.0, 3.0], dtype=torch.float64)
    ours = linear_cross_entropy(**given_, reduction=reduction)
    together = torch.autograd.grad(ours, inputs, along, is_grads_batched=True)
    truth = dense(**given_, reduction=reduction)
    for at, each in enumerate(along):
        alone = torch.autograd.grad(truth, inputs, each, retain_graph=True)
        torch.testing.assert_close(tuple(one[at] for one in together), alone)


@pytest.mark.parametrize("gap", [0.0, 20.0, 45.0, 90.0, 200.0])
def test_hessian_products_are_exact_at_every_gap(gap):
    features, target = torch.eye(3, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 2])
    head = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head[target, torch.arange(3)] += gap
    head.requires_grad_()
    inputs = (features, head)
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]
    products = []
    for loss in (linear_cross_entropy(features, head, target, rows=2), dense(features, head, target)):
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        products.append(torch.autograd.grad(first, inputs, directions))
    for mine, true in zip(*products, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=0)


def test_a_gradient_penalty_differentiates_through_a_scaled_loss():
    given_ = case()
    inputs = (given_["features"], given_["head"])
    results = []
    for loss in (linear_cross_entropy, dense):
        scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(loss(**given_) * scale, inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(penalty, (*inputs, scale)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("wanted", [("features",), ("head",), ("bias",), ("features", "bias"), ("head", "bias")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_of_the_inputs_may_need_no_gradient(wanted, reduction):
    given_ = case()
    for name in ("features", "head", "bias"):
        given_[name].requires_grad_(name in wanted)
    inputs = [given_[name] for name in wanted]
    results = []
    for loss in (linear_cross_entropy, dense):
        first = torch.autograd.grad(loss(**given_, reduction=reduction).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append((first, second))
    torch.testing.assert_close(*results)


def test_products_with_the_head_are_as_few_as_can_be():
    given_ = case(dtype=torch.float32)
    features, head, target = given_["features"], given_["head"], given_["target"]

    def products(work: Callable[[], object]) -> int:
        with Watch() as watch:
            work()
        return watch.products

    def step(**options) -> None:
        linear_cross_entropy(features, head, target, **options).sum().backward()

    assert products(step) == 3
    assert products(lambda: step(reduction="none")) == 4
    with torch.no_grad():
        assert products(lambda: linear_cross_entropy(features, head, target)) == 1
    features.requires_grad_(False)
    assert products(step) == 2
    head.requires_grad_(False)
    assert products(lambda: linear_cross_entropy(features, head, target)) == 1


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_ever_as_large_as_all_logits(reduction, dtype):
    given_ = case(rows=200, width=3, classes=150, dtype=dtype)
    inputs = [given_[name] for name in ("features", "head", "bias")]
    with Watch() as watch:
        loss = linear_cross_entropy(**given_, reduction=reduction, rows=10).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        torch.autograd.grad(sum(g.float().square().sum() for g in first), inputs)
    assert watch.largest <= 10 * 150


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    tokens = torch.tensor([[0, 3, 2], [1, 1, 4]])
    grads = []
    for loss in (linear_cross_entropy, dense):
        torch.manual_seed(0)
        embedding = nn.Embedding(5, 4, dtype=torch.float64)
        loss(torch.tanh(embedding(tokens[:, :-1])), embedding.weight, tokens[:, 1:]).backward()
        grads.append(embedding.weight.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", [[], [-100, -100]], ids=["empty", "ignored"])
def test_nothing_to_learn_from_gives_what_torch_gives(reduction, target):
    results, target = [], torch.tensor(target, dtype=torch.long)
    for loss in (linear_cross_entropy, lambda x, w, t, **o: F.cross_entropy(F.linear(x, w), t, **o)):
        features = torch.ones(len(target), 4, requires_grad=True)
        head = torch.ones(5, 4, requires_grad=True)
        value = loss(features, head, target, reduction=reduction)
        results.append((value, torch.autograd.grad(value.sum(), (features, head))))
    torch.testing.assert_close(*results, equal_nan=True)


def test_ignored_rows_may_hold_anything():
    given_ = case(dtype=torch.float32)
    given_["features"] = given_["features"].detach()
    given_["features"][2] = float("nan")  # the row that is ignored
    clean = {**given_, "features": given_["features"].nan_to_num()}
    torch.testing.assert_close(linear_cross_entropy(**given_), linear_cross_entropy(**clean))


def test_backward_may_be_run_again():
    given_ = case()
    inputs = (given_["features"], given_["head"], given_["bias"])
    loss = linear_cross_entropy(**given_)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, inputs, retain_graph=True), tuple(2 * g for g in first))
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), first)


def test_backward_runs_again_bit_for_bit_and_leaves_no_copy_behind():
    """The head's gradient is handed over where the graph is not kept, and copied where it is."""
    given_ = case(rows=50, width=8, classes=300, dtype=torch.float32)
    head = given_["head"]
    loss = linear_cross_entropy(**given_)
    with Watch() as watch:
        kept = [torch.autograd.grad(3 * loss, head, retain_graph=True)[0] for _ in range(2)]
    assert head.numel() in watch.copied
    with Watch() as watch:
        (last,) = torch.autograd.grad(3 * loss, head)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], last)
    assert head.numel() not in watch.copied
    assert watch.products == 0


def test_a_loss_that_is_dropped_frees_its_gradients_at_once():
    """Had they a cycle of references among themselves, they would wait for the garbage collector."""
    given_ = case(rows=3, width=7, classes=11)

    def held() -> int:
        return sum(type(each) is Tensor and each.shape == (11, 7) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = held()
        loss = linear_cross_entropy(**given_)
        assert held() > before
        del loss
        assert held() == before
    finally:
        gc.enable()


def test_nothing_given_is_changed():
    given_ = case()
    before = {name: (each.clone(), each._version) for name, each in given_.items()}
    stream = torch.get_rng_state()
    linear_cross_entropy(**given_).backward()
    assert torch.equal(stream, torch.get_rng_state())
    for name, (value, version) in before.items():
        assert torch.equal(given_[name], value)
        assert given_[name]._version == version


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_multiplies_narrow_and_keeps_loss_and_parameters_wide(reduction):
    given_ = case(rows=40, width=8, classes=30, dtype=torch.float32)
    names = ("features", "head", "bias")
    rounded = {name: given_[name].detach().bfloat16().double().requires_grad_() for name in names}
    logits = F.linear(*(given_[name].detach().bfloat16() for name in names)).double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(**given_, reduction=reduction, rows=7)
        stock = F.cross_entropy(F.linear(*(given_[name] for name in names)), given_["target"], reduction=reduction)
    assert ours.dtype == stock.dtype == torch.float32
    truth = margin_loss(logits, given_["target"], reduction=reduction)
    torch.testing.assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6)
    mine = gradients(ours.sum(), *(given_[name] for name in names))
    true = gradients(dense(**rounded, target=given_["target"], reduction=reduction).sum(), *rounded.values())
    for a, b, name in zip(mine, true, names, strict=True):
        assert a.dtype == torch.float32
        assert float((a.double() - b).norm() / b.norm()) < 8 * ROUNDING[torch.bfloat16], name


def test_torch_func_differentiates_it():
    given_ = case()

    def loss(features: Tensor, head: Tensor) -> Tensor:
        return linear_cross_entropy(features, head, given_["target"], rows=3)

    inputs = (given_["features"].detach(), given_["head"].detach())
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1))(*inputs), gradients(loss(*leaves), *leaves))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": torch.zeros(7, 3, dtype=torch.float64)}, r"features=.*as wide as the head"),
        ({"head": torch.zeros(5, dtype=torch.float64)}, "head"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, "bias"),
        ({"target": torch.zeros(6, dtype=torch.long)}, "target"),
        ({"target": torch.full((7,), 5)}, "target"),
        ({"target": torch.full((7,), -1)}, "target"),
        ({"weight": torch.ones(4)}, "weight"),
        ({"reduction": "average"}, "reduction"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"rows": 0}, "rows"),
        ({"head": torch.zeros(5, 4)}, "the head is float32"),
        ({"features": torch.zeros(7, 4, dtype=torch.long)}, "features"),
    ],
)
def test_what_cannot_work_is_said(change, says):
    with pytest.raises(UsageError, match=says):
        linear_cross_entropy(**{**case(), **change})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_caller_gets_the_same(reduction):
    given_ = case(dtype=torch.float32)
    inputs = (given_["features"], given_["head"])

    def loss(features: Tensor, head: Tensor) -> Tensor:
        return linear_cross_entropy(2 * features, head, given_["target"], reduction=reduction).sum() * 3

    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(*inputs), *inputs), gradients(loss(*inputs), *inputs))
