"""A step's estimates from the gradients of its micro-batches, whatever backward multiplied their losses with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foreshock.noise.passes import Passes, square_of
from foreshock.noise.precondition import inverse_squares
from foreshock.noise.step import of_passes

SIZES = (3, 5, 4)


def setting() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return nn.Linear(4, 2), [torch.randn(size, 4) for size in SIZES]


def step(model, batches, factors, *, clip=None, before=False):
    """Returns the passes of one accumulated step, watched as the probe does."""
    model.zero_grad()
    if before:
        model(batches[0]).sum().backward()
    passes = Passes(dict(model.named_parameters()))
    for place, (x, factor) in enumerate(zip(batches, factors, strict=True)):
        loss = model(x).square().mean()
        passes.watch(loss, place, whole=place == len(batches) - 1)
        (loss * factor).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    passes.close()
    return passes


def grads_of(model, batches):
    return [
        torch.cat([g.flatten() for g in torch.autograd.grad(model(x).square().mean(), list(model.parameters()))])
        for x in batches
    ]


@pytest.mark.parametrize("factors", [(0.25, 0.25, 0.25), (3 / 12, 5 / 12, 4 / 12), (1024.0, 1024.0, 1024.0)])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_micro_batches_are_small_batches_before_clipping_and_unscaling(factors, clip):
    model, batches = setting()
    pair, batch = of_passes(step(model, batches, factors, clip=clip), SIZES)
    grads, total = grads_of(model, batches), sum(factors)
    big = sum(c * g for c, g in zip(factors, grads, strict=True)) / total
    size = total**2 / sum(c * c / b for c, b in zip(factors, SIZES, strict=True))
    small = sum(b * float(g.square().sum()) for b, g in zip(SIZES, grads, strict=True)) / 12
    assert batch == pytest.approx(size)
    assert pair.tr_sigma == pytest.approx((small - float(big.square().sum())) / (1 / 4 - 1 / size), rel=1e-4)
    if factors[1] == 5 / 12:
        assert size == pytest.approx(12)


def test_unequal_weights_stay_unbiased():
    """Gradients are the inputs: tr Sigma = 3 and |G|^2 = 4, batches of 3, 5 and 4 each count a third."""
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(3, requires_grad=True)
    found = []
    for _ in range(200):
        w.grad = None
        passes = Passes({"w": w})
        for place, size in enumerate(SIZES):
            x = torch.randn(size, 3, generator=generator) + torch.tensor([2.0, 0, 0])
            loss = (x @ w).mean()
            passes.watch(loss, place, whole=place == 2)
            (loss / 3).backward()
        passes.close()
        found.append(of_passes(passes, SIZES)[0])
    table = torch.tensor(found)
    off = (table.mean(0) - torch.tensor([3.0, 4.0])).abs()
    assert bool((off < 4 * table.std(0) / 200**0.5).all())


@pytest.mark.parametrize(
    ("passes", "sizes", "why"),
    [
        (lambda m, b: step(m, b[:1], (1.0,)), SIZES[:1], "no smaller ones"),
        (lambda m, b: step(m, b, (1.0, 1.0, 1.0), before=True), SIZES, "a gradient before"),
        (lambda m, b: step(m, b, (1.0, 0.0, 1.0)), SIZES, "multiplied by 0"),
        (lambda m, b: step(m, b, (1.0, 1.0, 1.0)), (3, float("nan"), 4), "not known"),
        (lambda m, b: step(m, b[:2], (1.0, 1.0)), SIZES, "not differentiated"),
    ],
)
def test_a_step_that_cannot_be_told_apart_says_why(passes, sizes, why):
    assert why in of_passes(passes(*setting()), sizes)


def test_losses_differentiated_together_or_twice_are_told_apart_from_others():
    model, batches = setting()
    passes = Passes(dict(model.named_parameters()))
    pair = [model(x).square().mean() for x in batches[:2]]
    for place, loss in enumerate(pair):
        passes.watch(loss, place, whole=True)
    sum(pair).backward()
    assert "together" in of_passes(passes, SIZES[:2])
    passes.close()
    passes = Passes(dict(model.named_parameters()))
    loss = model(batches[0]).square().mean()
    passes.watch(loss, 0, whole=True)
    torch.autograd.grad(loss, list(model.parameters()), create_graph=True)  # a penalty's, which is looked through
    assert passes.found[0].runs == 0
    loss.backward(retain_graph=True)
    loss.backward()
    assert "more than once" in of_passes(passes, (3,), ranks=2)
    passes.close()
    assert not model.weight._backward_hooks


def test_squares_of_half_and_sparse_gradients_are_those_of_the_numbers():
    half = torch.full((300,), 3.0, dtype=torch.bfloat16)
    assert float(square_of([half])) == 2700.0
    places, values = torch.tensor([[1, 1, 2]]), torch.tensor([[1.0], [2.0], [4.0]])
    sparse = torch.sparse_coo_tensor(places, values, (4, 1), check_invariants=True)
    assert float(square_of([sparse, half])) == pytest.approx(2725.0)
    assert float(square_of([sparse], [torch.tensor([[9.0], [2.0], [0.5], [9.0]])])) == pytest.approx(26.0)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad"])
def test_denominators_are_those_of_the_optimizer_s_state(kind):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(torch.optim, kind)([w], lr=1e-3)
    assert inverse_squares(optimizer, {id(w): "w"}) is None
    for _ in range(40):
        w.grad = torch.tensor([2.0, -0.5, 0.0])
        optimizer.step()
    found = inverse_squares(optimizer, {id(w): "w"})["w"].rsqrt()
    if kind == "Adagrad":
        wanted = [2 * 40**0.5, 0.5 * 40**0.5]
    else:
        wanted = [2.0 * (1 - 0.99**40) ** 0.5, 0.5 * (1 - 0.99**40) ** 0.5] if kind == "RMSprop" else [2.0, 0.5]
    assert found[:2].tolist() == pytest.approx(wanted, rel=1e-4)
    assert float(found[2]) == float("inf")  # never had a gradient: counts for nothing
