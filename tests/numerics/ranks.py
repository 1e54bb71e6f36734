"""What every rank of a group checks of the vocabulary-parallel loss: `python ranks.py RANK RANKS PORT`.

Prints one JSON object, {name of the fact: what was wrong with it, or nothing}. All ranks run the same checks in the
same order; a reference is computed on each rank from all logits.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import traceback
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.parallel import parallel_cross_entropy
from tests.reference.margin_loss import margin_loss

DOUBLE = torch.float64
FACTS: list[Callable[[], None]] = []
OPTIONS = [
    {"reduction": reduction, "label_smoothing": smoothing, "weighted": weighted}
    for reduction in ("none", "mean", "sum")
    for smoothing in (0.0, 0.1)
    for weighted in (False, True)
]


def fact(check: Callable[[], None]) -> Callable[[], None]:
    FACTS.append(check)
    return check


def rank() -> int:
    return dist.get_rank()


def ranks() -> int:
    return dist.get_world_size()


def slices(classes: int) -> list[slice]:
    """Returns each rank's classes: two thirds, one third, and none where there is a third rank."""
    cut = (2 * classes) // 3
    return [slice(0, cut), slice(cut, classes), slice(classes, classes)][: ranks()]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def targets(rows: int, classes: int, seed: int = 0) -> Tensor:
    found = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    if rows > 2:
        found[2] = -100
    return found


def mine(logits: Tensor) -> Tensor:
    return logits.detach()[..., slices(logits.shape[-1])[rank()]].clone().requires_grad_()


def part(whole: Tensor, like: Tensor) -> Tensor:
    found = whole[..., slices(whole.shape[-1])[rank()]]
    assert found.shape == like.shape
    return found


def near(found: Tensor, true: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found.double(), true.double(), rtol=tolerance, atol=tolerance)


@fact
def loss_and_gradient_are_those_of_all_logits():
    for options in OPTIONS:
        settings = dict(options)
        weight = torch.linspace(0.1, 2, 11, dtype=DOUBLE) if settings.pop("weighted") else None
        whole, target = normal(9, 11).requires_grad_(), targets(9, 11)
        truth = margin_loss(whole, target, weight=weight, **settings)
        local = mine(whole)
        own = None if weight is None else part(weight, local[0])
        loss = parallel_cross_entropy(local, target, weight=own, **settings)
        near(loss, truth)
        along = torch.ones_like(truth)
        (true,) = torch.autograd.grad(truth, whole, along)
        near(torch.autograd.grad(loss, local, along)[0], part(true, local))


@fact
def hessian_products_are_those_of_all_logits():
    for options in OPTIONS:
        settings = dict(options)
        weight = torch.linspace(0.1, 2, 11, dtype=DOUBLE) if settings.pop("weighted") else None
        whole, target, direction = normal(9, 11).requires_grad_(), targets(9, 11), normal(9, 11, seed=1)
        scale = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
        truth = (margin_loss(whole, target, weight=weight, **settings) * scale).square().sum()
        (first,) = torch.autograd.grad(truth, whole, create_graph=True)
        true = torch.autograd.grad(first, (whole, scale), direction)
        local = mine(whole)
        own = None if weight is None else part(weight, local[0])
        loss = (parallel_cross_entropy(local, target, weight=own, **settings) * scale).square().sum()
        (first,) = torch.autograd.grad(loss, local, create_graph=True)
        found = torch.autograd.grad(first, (local, scale), part(direction, local))
        near(found[0], part(true[0], local), 1e-10)
        near(found[1], true[1], 1e-10)


@fact
def gradients_are_exact_at_every_gap():
    """On a grid of 1/64, of which float32 has all numbers up to 1e4 and their differences: nothing is rounded."""
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        classes, gap = int(torch.randint(2, 40, (), generator=draw)), float(200 * torch.rand((), generator=draw))
        offset = float(2e4 * torch.rand((), generator=draw)) - 1e4
        target = torch.randint(classes, (5,), generator=draw)
        whole = torch.randn(5, classes, generator=draw, dtype=DOUBLE)
        whole[torch.arange(5), target] = whole.amax(1) + gap * torch.tensor([1, 1, 0.5, 0.1, -1], dtype=DOUBLE)
        whole = ((whole + offset) * 64).round() / 64
        exact = whole.clone().requires_grad_()
        truth = margin_loss(exact, target, reduction="none")
        (true,) = torch.autograd.grad(truth.sum(), exact)
        for dtype in (torch.float64, torch.float32):
            local = mine(whole.to(dtype))
            loss = parallel_cross_entropy(local, target, reduction="none")
            assert loss.dtype == dtype
            (found,) = torch.autograd.grad(loss.sum(), local)
            info = torch.finfo(dtype)
            allowed, least = 40 * classes**0.5 * info.eps, 4 * info.smallest_normal * info.eps
            own = part(true, local)
            assert torch.all((found.double() - own).abs() <= allowed * own.abs() + least), (seed, dtype)
            assert torch.all((loss.double() - truth).abs() <= allowed * truth.abs() + least), (seed, dtype)


@fact
def every_rank_has_the_same_bits():
    loss = parallel_cross_entropy(mine(normal(9, 11, dtype=torch.float32)), targets(9, 11), label_smoothing=0.1)
    every = [torch.empty(()) for _ in range(ranks())]
    dist.all_gather(every, loss.detach())
    assert len({float(each) for each in every}) == 1


@fact
def forward_takes_two_reductions_and_backward_none():
    calls = []
    true = dist.all_reduce

    def counting(*args, **kwargs):
        calls.append(args)
        return true(*args, **kwargs)

    dist.all_reduce = counting
    try:
        local = mine(normal(9, 11))
        loss = parallel_cross_entropy(local, targets(9, 11), label_smoothing=0.1)
        assert len(calls) == 2, len(calls)
        (first,) = torch.autograd.grad(loss, local, create_graph=True)
        assert len(calls) == 2, len(calls)
        torch.autograd.grad(first.square().sum(), local)
        assert len(calls) == 4, len(calls)
    finally:
        dist.all_reduce = true


@fact
def narrow_logits_give_narrow_gradients_and_autocast_a_wide_loss():
    for dtype in (torch.bfloat16, torch.float16):
        whole, target = normal(9, 11, dtype=dtype).requires_grad_(), targets(9, 11)
        truth = margin_loss(whole, target)
        (true,) = torch.autograd.grad(truth, whole)
        local = mine(whole)
        loss = parallel_cross_entropy(local, target)
        assert loss.dtype == dtype
        (found,) = torch.autograd.grad(loss, local)
        assert found.dtype == dtype
        near(found, part(true, local), 2 * torch.finfo(dtype).eps)
        with torch.autocast("cpu", torch.bfloat16):
            wide = parallel_cross_entropy(local, target)
        assert wide.dtype == torch.float32
        near(wide, truth, 1e-6)


@fact
def nothing_to_learn_from_gives_nan_and_no_gradient():
    for target in (torch.empty(0, dtype=torch.long), torch.tensor([-100, -100])):
        local = mine(normal(len(target), 11))
        loss = parallel_cross_entropy(local, target)
        assert loss.isnan()
        (found,) = torch.autograd.grad(loss, local)
        assert not found.any()
        assert parallel_cross_entropy(local, target, reduction="sum").tolist() == 0
        assert parallel_cross_entropy(local, target, reduction="none").tolist() == [0.0] * len(target)


@fact
def classes_may_be_in_any_dimension():
    whole, target = normal(2, 3, 11), targets(6, 11).view(2, 3)
    truth = margin_loss(whole.flatten(0, 1), target.flatten(), reduction="none").view(2, 3)
    near(parallel_cross_entropy(mine(whole), target, reduction="none"), truth)
    moved = mine(whole).detach().movedim(-1, 1)
    near(parallel_cross_entropy(moved, target.int(), reduction="none", dim=1), truth)
    assert parallel_cross_entropy(mine(whole)[0, 0], target[0, 0]).shape == ()


@fact
def a_rank_may_have_no_classes():
    whole, target = normal(5, 4).requires_grad_(), targets(5, 4)
    truth = margin_loss(whole, target, label_smoothing=0.1)
    (true,) = torch.autograd.grad(truth, whole)
    local = (whole if rank() == 1 else whole[:, :0]).detach().requires_grad_()
    loss = parallel_cross_entropy(local, target, label_smoothing=0.1)
    near(loss, truth)
    near(torch.autograd.grad(loss, local)[0], true if rank() == 1 else true[:, :0])


@fact
def a_group_may_be_some_of_the_ranks():
    group = dist.new_group([0, 1])
    whole, target = normal(4, 6), targets(4, 6)
    if rank() < 2:
        local = whole[:, :2] if rank() == 0 else whole[:, 2:]
        near(parallel_cross_entropy(local, target, group=group), margin_loss(whole, target))
    else:
        said("not in the group", whole[:, :2], target, group=group)


@fact
def a_dtensor_brings_its_group_and_gets_its_gradient():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks(),))
    whole, target, weight = normal(9, 11).requires_grad_(), targets(9, 11), torch.linspace(0.5, 2, 11, dtype=DOUBLE)
    truth = margin_loss(whole, target, weight=weight, label_smoothing=0.1)
    (true,) = torch.autograd.grad(truth, whole)
    for placed in (Shard(-1), Shard(1)):
        logits = distribute_tensor(whole.detach(), mesh, [placed]).requires_grad_()
        own = distribute_tensor(weight, mesh, [Shard(0)])
        loss = parallel_cross_entropy(logits, target, weight=own, label_smoothing=0.1)
        near(loss, truth)
        (found,) = torch.autograd.grad(loss, logits)
        assert isinstance(found, DTensor)
        near(found.full_tensor(), true)
    with pytest.raises(UsageError, match="parallel_cross_entropy"):
        cross_entropy(logits, target)
    shared = distribute_tensor(target, mesh, [Replicate()])
    middle = distribute_tensor(whole.detach().T[None].expand(2, 11, 9).contiguous(), mesh, [Shard(1)])
    truth = margin_loss(whole, target, reduction="none")
    found = parallel_cross_entropy(middle, shared[None].expand(2, 9), reduction="none")
    near(found, truth.expand(2, 9))
    for placed in (Shard(0), Replicate()):
        logits = distribute_tensor(whole.detach(), mesh, [placed])
        if isinstance(placed, Replicate):
            said("must be split along one", logits, target)
        else:
            said("target", logits, target)


def said(words: str, *args, **kwargs) -> None:
    """Checks that the loss refuses, with these words."""
    with pytest.raises(UsageError, match=re.escape(words)):
        parallel_cross_entropy(*args, **kwargs)


@fact
def what_one_rank_does_wrong_every_rank_says():
    local, target = mine(normal(9, 11)), targets(9, 11)
    first = rank() == 0
    said("number of rows", local[: 8 + first], target[: 8 + first])
    said("target", local, target if first else target.roll(1))
    said("bits", local.float() if first else local, target)
    said("reduction", local, target, reduction="sum" if first else "mean")
    said("label_smoothing", local, target, label_smoothing=0.1 if first else 0.2)
    said("weight" if first else "other ranks", local, target, weight=local.new_ones(3) if first else None)
    said("reduction=" if first else "other ranks", local, target, reduction="average" if first else "mean")
    said("shape (9,)" if first else "other ranks", local, target[:5] if first else target)
    near(parallel_cross_entropy(local, target), margin_loss(normal(9, 11), target))  # and it works again


@fact
def impossible_targets_are_refused():
    local, target = mine(normal(4, 11)), torch.tensor([0, 1, 11, -100])
    said("class index 11 is out of range", local, target)
    said("class index -1 is out of range", local, target.clamp(max=1).where(target >= 0, -1))
    said("class probabilities", local, torch.ones_like(local))


@fact
def a_third_derivative_is_refused():
    local = mine(normal(4, 11))
    (first,) = torch.autograd.grad(parallel_cross_entropy(local, targets(4, 11)), local, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), local, create_graph=True)
    with pytest.raises(UsageError, match="third derivative"):
        torch.autograd.grad(second.square().sum() + local.square().sum(), local)


def main() -> None:
    torch.set_num_threads(1)
    number, count, port = (int(each) for each in sys.argv[1:])
    timeout = datetime.timedelta(seconds=120)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=count, timeout=timeout)
    wrong = {}
    for check in FACTS:
        try:
            check()
            wrong[check.__name__] = ""
        except Exception:
            wrong[check.__name__] = traceback.format_exc()
    print(json.dumps(wrong))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
