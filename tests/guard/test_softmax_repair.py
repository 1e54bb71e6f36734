"""The repair of a softmax's gradient inside the loop's own backward pass: what it makes exact, and what it leaves."""

from __future__ import annotations

import doctest
import gc
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.guard import softmax as module
from foreshock.guard.softmax import ExactGradient
from foreshock.monitor import Monitor
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.margin import margin_cross_entropy
from foreshock.numerics.repair import exact_gradient
from foreshock.probes import Softmax
from tests.live.softmaxes import make, signals
from tests.nightly import thinned
from tests.numerics.logits import DTYPES, TOLERANCE, confident, error, exactly

Loss = Callable[[Tensor, Tensor], Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(
    z: Tensor, target: Tensor, loss_of: Loss, *, armed: bool = True, found: bool = True, scale: float = 1.0
) -> Tensor:
    """Returns the gradient of a loss by logits that are the output of something, as a network's are."""
    leaf = z.detach().clone().requires_grad_()
    loss = loss_of(leaf * 1, target)
    if armed:
        repair = ExactGradient()
        assert repair.arm(loss) is found
    (scale * loss).backward()
    if armed:
        assert repair.error is None
    assert leaf.grad is not None
    return leaf.grad


def inside(loss_of: Loss) -> Loss:
    return lambda z, target: loss_of(exact_gradient(z, target), target)


def test_the_docstring_holds() -> None:
    assert doctest.testmod(sys.modules[ExactGradient.__module__]).failed == 0


OPTIONS = {
    "mean": {}, "sum": {"reduction": "sum"}, "smoothed": {"label_smoothing": 0.01}, "ignored": {"ignore_index": 3},
    "weighted": {"weight": torch.linspace(0.1, 3.0, 10)},
    "all at once": {"weight": torch.linspace(0.1, 3.0, 10), "ignore_index": 2, "label_smoothing": 0.001},
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_it_is_bit_for_bit_the_repair_in_front_of_the_loss(dtype: torch.dtype, options: dict[str, object]) -> None:
    z, target = confident(seeded(0), 40, 10, dtype)
    options = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in options.items()}

    def loss_of(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(z, target, **options)

    assert torch.equal(gradient(z, target, loss_of), gradient(z, target, inside(loss_of), armed=False))
    if options == {}:
        assert not torch.equal(gradient(z, target, loss_of), gradient(z, target, loss_of, armed=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_every_entry_is_exact_at_any_gap(dtype: torch.dtype, classes: int) -> None:
    z, target = confident(seeded(classes), 40, classes, dtype)
    wide = dtype if dtype == torch.float64 else torch.float32  # as autocast has it; else torch keeps log p in bfloat16
    _, true = exactly(z, target)
    assert error(gradient(z, target, lambda z, y: F.cross_entropy(z.to(wide), y)), true, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wrong_classes_in_half_precision_stay_as_torch_has_them(dtype: torch.dtype) -> None:
    z, target = confident(seeded(1), 40, 10, dtype, gap=9.0, spread=1.0)
    stock, found = gradient(z, target, F.cross_entropy, armed=False), gradient(z, target, F.cross_entropy)
    wrong = torch.ones_like(stock, dtype=torch.bool).scatter_(1, target[:, None], False)
    assert torch.equal(found[wrong], stock[wrong])
    others = torch.where(wrong, stock, 0).float().sum(1).to(dtype)
    assert torch.equal(found.gather(1, target[:, None])[:, 0], -others)
    assert (others > 0).all()


def test_several_positions_and_any_arrangement_of_them_are_repaired() -> None:
    z, target = confident(seeded(2), 24, 7, torch.float32)
    true = gradient(z, target, inside(F.cross_entropy), armed=False)
    rows = z.reshape(4, 6, 7)

    def flattened(z: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(z.log_softmax(-1).view(-1, 7), y.view(-1))

    channels, labels = rows.transpose(1, 2).contiguous(), target.reshape(4, 6)
    images = gradient(channels.reshape(4, 7, 2, 3), labels.reshape(4, 2, 3), F.cross_entropy).reshape(4, 7, 6)
    for found in (
        gradient(rows, labels, flattened),
        gradient(channels, labels, F.cross_entropy).transpose(1, 2),
        images.transpose(1, 2),
    ):
        assert torch.allclose(found.reshape(-1, 7), true, rtol=1e-5, atol=1e-38)


def written_with_softmax(z: Tensor, target: Tensor) -> Tensor:
    return -z.softmax(1).gather(1, target[:, None]).log().mean()


def written_with_logsumexp(z: Tensor, target: Tensor) -> Tensor:
    return (z.logsumexp(1) - z.gather(1, target[:, None])[:, 0]).mean()


def written_with_indices(z: Tensor, target: Tensor) -> Tensor:
    return z.logsumexp(1).mean() - z[torch.arange(len(z)), target].mean()


def of_probabilities(z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, F.one_hot(target, z.shape[1]).to(z.dtype))


def by_divergence(z: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(z.log_softmax(1), F.one_hot(target, z.shape[1]).to(z.dtype), reduction="batchmean")


HANDMADE = (written_with_softmax, written_with_logsumexp, written_with_indices, of_probabilities, by_divergence)


@pytest.mark.parametrize("loss_of", HANDMADE)
def test_losses_written_by_hand_are_made_exact(loss_of: Loss) -> None:
    z, target = confident(seeded(3), 40, 10, torch.float32, gap=18.0)
    _, true = exactly(z, target)
    stock = gradient(z, target, loss_of, armed=False)
    assert (stock.sum(1) > 0.5 * true.abs().amax(1)).any()
    assert error(gradient(z, target, loss_of), true, torch.float32) < 3e-5  # logsumexp of 20 nats has lost digits


def test_a_logsumexp_that_does_not_sum_to_zero_is_left_alone() -> None:
    z, target = confident(seeded(4), 40, 10, torch.float32, gap=18.0)

    def other(z: Tensor, target: Tensor) -> Tensor:
        return (z.logsumexp(1) - 0.9 * z.gather(1, target[:, None])[:, 0]).mean()

    assert torch.equal(gradient(z, target, other), gradient(z, target, other, armed=False))


def squared(z: Tensor) -> Tensor:
    return 1e-4 * z.logsumexp(1).square().mean()


def multiplied(z: Tensor) -> Tensor:
    lse = z.logsumexp(1)
    return 1e-4 * (lse * lse).mean() + 1e-5 * lse.mean()


@pytest.mark.parametrize("penalty", [squared, multiplied])
def test_a_penalty_on_the_logits_beside_the_loss_keeps_its_gradient(penalty: Callable[[Tensor], Tensor]) -> None:
    z, target = confident(seeded(5), 40, 10, torch.float32, gap=25.0)
    found = gradient(z, target, lambda z, y: F.cross_entropy(z, y) + penalty(z))
    exact = gradient(z, target, lambda z, y: cross_entropy(z, y) + penalty(z), armed=False)
    assert torch.allclose(found, exact, rtol=1e-5, atol=0)


def test_several_losses_in_one_graph_are_repaired_and_our_own_left_as_it_is() -> None:
    z, target = confident(seeded(6), 40, 10, torch.float32)

    def three(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) + 0.5 * F.cross_entropy(2 * z, y.flip(0), reduction="sum") + cross_entropy(z, y)

    def exact(z: Tensor, y: Tensor) -> Tensor:
        other = inside(lambda z, y: F.cross_entropy(z, y, reduction="sum"))
        return inside(F.cross_entropy)(z, y) + 0.5 * other(2 * z, y.flip(0)) + cross_entropy(z, y)

    assert torch.allclose(gradient(z, target, three), gradient(z, target, exact, armed=False), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss_of", [cross_entropy, inside(F.cross_entropy), inside(cross_entropy)])
def test_what_is_exact_already_stays_bit_for_bit(loss_of: Loss) -> None:
    z, target = confident(seeded(7), 40, 10, torch.float32)
    assert torch.equal(gradient(z, target, loss_of), gradient(z, target, loss_of, armed=False))


@pytest.mark.parametrize("loss_of", [lambda z, y: z.square().mean(), margin_cross_entropy])
def test_a_loss_without_a_softmax_to_be_seen_is_said_and_left_alone(loss_of: Loss) -> None:
    z, target = confident(seeded(8), 40, 10, torch.float32)
    assert torch.equal(gradient(z, target, loss_of, found=False), gradient(z, target, loss_of, armed=False))
    assert not ExactGradient().arm(torch.tensor(1.0))


def test_the_loss_keeps_its_value_and_classes_that_are_masked_stay_without_gradient() -> None:
    z, target = confident(seeded(9), 40, 10, torch.float32, gap=20.0)
    z[:, 3] = torch.where(target == 3, z[:, 3], -torch.inf)
    loss = F.cross_entropy(z.requires_grad_(), target)
    before = loss.item()
    assert ExactGradient().arm(loss)
    loss.backward()
    assert loss.item() == before == 0.0
    assert z.grad is not None
    assert (z.grad[target != 3, 3] == 0).all()
    assert (z.grad.sum(1).abs() <= 1e-6 * z.grad.abs().sum(1)).all()
    assert (z.grad.gather(1, target[:, None]) < 0).all()


def test_scaled_losses_and_accumulated_micro_batches_are_repaired() -> None:
    z, target = confident(seeded(10), 40, 10, torch.float32, gap=20.0)
    exact = gradient(z, target, inside(F.cross_entropy), armed=False)
    assert torch.equal(gradient(z, target, F.cross_entropy, scale=1024.0), 1024 * exact)
    leaf = z.clone().requires_grad_()
    for part in (slice(0, 20), slice(20, 40)):
        loss = F.cross_entropy(leaf[part], target[part]) / 2
        assert ExactGradient().arm(loss)
        loss.backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, exact, rtol=1e-6, atol=0)


def test_under_autocast_the_gradient_is_repaired_in_float32() -> None:
    model, x, target = make(stretch=120.0)
    body, repair = x.reshape(-1, 8), ExactGradient()

    def grads(*, armed: bool, loss_of: Loss = F.cross_entropy) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(body), target.reshape(-1))
            assert not armed or repair.arm(loss)
            loss.backward()  # inside, as some have it
        grad = model.head.bias.grad
        assert grad is not None
        return grad

    found, stock, exact = grads(armed=True), grads(armed=False), grads(armed=False, loss_of=cross_entropy)
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert (stock - exact).norm() > 0.5 * exact.norm()


def test_backward_passes_again_and_gradients_of_gradients_are_repaired() -> None:
    z, target = confident(seeded(11), 12, 6, torch.float64, gap=38.0)

    def products(loss_of: Loss, *, armed: bool) -> tuple[Tensor, Tensor]:
        leaf = z.clone().requires_grad_()
        loss = loss_of(leaf * 1, target)
        assert not armed or ExactGradient().arm(loss)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), leaf, retain_graph=True)
        (again,) = torch.autograd.grad(loss, leaf)
        assert torch.allclose(again, first, rtol=1e-12, atol=0)
        return first.detach(), second

    found, exact = products(F.cross_entropy, armed=True), products(cross_entropy, armed=False)
    assert torch.allclose(found[0], exact[0], rtol=1e-12, atol=0)
    assert torch.allclose(found[1], exact[1], rtol=1e-12, atol=1e-30)


def test_what_fails_leaves_the_gradient_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    z, target = confident(seeded(12), 8, 5, torch.float32)
    stock = gradient(z, target, F.cross_entropy, armed=False)
    leaf, repair = z.clone().requires_grad_(), ExactGradient()
    loss = F.cross_entropy(leaf, target)
    assert repair.arm(loss)

    def fails(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_exact", fails)
    loss.backward()
    assert torch.equal(leaf.grad, stock)
    assert str(repair.error) == "out of memory"
    monkeypatch.setattr(module, "softmaxes", fails)
    assert not repair.arm(loss)


NODES: list[weakref.ref[object]] = []


class Noted(torch.autograd.Function):
    """Hands a tensor on; its node, an object of Python's, lives as long as the graph."""

    @staticmethod
    def forward(ctx: object, value: Tensor) -> Tensor:
        NODES.append(weakref.ref(ctx))
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("loss_of", thinned([F.cross_entropy, *HANDMADE], 4))
@pytest.mark.parametrize("differentiated", [True, False])
def test_graphs_are_freed(loss_of: Loss, differentiated: bool) -> None:
    z, target = confident(seeded(13), 8, 5, torch.float32)
    loss = loss_of(Noted.apply(z.requires_grad_()), target)
    assert ExactGradient().arm(loss)
    if differentiated:
        loss.backward()
    del loss
    gc.collect()
    assert NODES.pop()() is None


@pytest.mark.parametrize("beside", [0.0, 1e-4])
def test_the_monitor_sees_the_gradient_that_goes_on(beside: float) -> None:
    def residual(*, armed: bool) -> dict[str, float]:
        model, x, target = make(stretch=120.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with Monitor(model, optimizer, probes=[Softmax()]) as monitor:
            z = model(x.reshape(-1, 8))
            loss = F.cross_entropy(z, target.reshape(-1))
            loss = loss + beside * z.logsumexp(1).square().mean() if beside else loss
            monitor.observe(loss)
            assert not armed or ExactGradient().arm(loss)
            loss.backward()
            optimizer.step()
            return signals(monitor.run)

    stock, exact = residual(armed=False), residual(armed=True)
    assert stock["absorbed"] > 0.5
    assert stock["residual"] > 0.1
    assert exact["absorbed"] == 0.0
    assert exact["residual"] < 1e-5


def test_a_model_whose_losses_are_never_armed_is_trained_as_without_it() -> None:
    def trained(*, made: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(8, 5)
        optimizer = torch.optim.Adam(model.parameters())
        repair = ExactGradient() if made else None
        for _ in range(3):
            loss = F.cross_entropy(model(torch.randn(6, 8)), torch.randint(5, (6,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        del repair
        return [param.detach() for param in model.parameters()]

    assert all(map(torch.equal, trained(made=True), trained(made=False)))
