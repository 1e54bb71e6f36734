"""One step's estimates of tr Sigma and |G|^2, from what its backward passes have shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from foreshock.batch_size import Pair, pair
from foreshock.noise.examples import ExampleNorms
from foreshock.noise.passes import Passes

CLOSE = 0.05  # by how much sums over examples may miss the gradient, relative to its norm: bfloat16 rounds by 0.004


def of_passes(passes: Passes, sizes: Sequence[float], ranks: int = 1) -> tuple[Pair, float] | str:
    """Returns the estimates from the gradients of micro-batches and ranks, and the size of the whole batch; or why not.

    With c_j what backward multiplied the loss of micro-batch j with, the small gradients are g_j / c_j, and the big one
    is their mean with weights c_j, of variance tr Sigma / B, 1/B = sum c_j^2 / b_j / (sum c_j)^2 over the ranks: micro-
    batches of unequal size need not be weighted by it. Losses are means over their batches.

    Args:
        passes: of the step.
        sizes: b_j, examples of each micro-batch.
        ranks: over how many `.grad` was averaged.
    """
    why = unfit(passes, len(sizes))
    if why:
        return why
    found = [passes.found[place] for place in range(len(sizes))]
    if len(sizes) * ranks < 2:
        return "one batch, and no smaller ones in it"
    if found[-1].whole is None:
        return "the whole gradient was not measured"
    if not all(size >= 1 for size in sizes):
        return "how many examples the batches have is not known"
    tensors = [total(each.squares.values()) for each in found] + [found[-1].whole]
    tensors += [torch.ones(()) if each.weight is None else each.weight for each in found]
    tensors += [torch.zeros(()) if passes.before is None else passes.before]
    *values, before = to_host(tensors)
    if before > 0.0:
        return "there was a gradient before the step's own"
    k = len(sizes)
    small, big, weights = values[:k], values[k], values[k + 1 :]
    if not all(weight != 0.0 and math.isfinite(weight) for weight in weights):
        return "a loss was multiplied by 0, or by something that is not finite"
    total_weight = math.fsum(weights)
    batch = ranks * total_weight**2 / math.fsum(c * c / b for c, b in zip(weights, sizes, strict=True))
    norms = [square / (c * c) for square, c in zip(small, weights, strict=True)]
    return pair(norms, big / total_weight**2, small=list(sizes), big=batch), batch


def of_examples(
    found: ExampleNorms, passes: Passes, among: Sequence[str] | None = None
) -> tuple[Pair, float] | str:
    """Returns the estimates from the norms of examples and of their mean, and how many there were; or why not.

    Args:
        found: of the step's first batch.
        passes: of the step; without parameters, the totals of the examples are the gradient.
        among: the parameters that count; None: all that are covered.
    """
    if found.n < 2:
        return "one example"
    why = unfit(passes, 1)
    if why:
        return why
    one = passes.found[0]
    weight = torch.ones(()) if one.weight is None else one.weight
    names = [name for name in found.by_parameter if among is None or name in among]
    if not names:
        return "no such parameter is covered"
    if passes.params:
        whole = [one.squares[name] for name in names if name in one.squares]
    else:
        whole = [found.totals[name].square().sum() for name in names if name in found.totals]
    mean = torch.stack([found.by_parameter[name].mean() for name in names]).sum()
    small, big, c = to_host([mean, total(whole), weight])
    if not (c != 0.0 and math.isfinite(c)):
        return "the loss was multiplied by 0, or by something that is not finite"
    return pair(small / c**2, big / c**2, small=1, big=found.n), float(found.n)


def unfit(passes: Passes, losses: int) -> str:
    """Returns why a step's passes cannot be told apart, empty where they can."""
    if passes.errors:
        raise passes.errors[0]
    if passes.mixed:
        return "several losses were differentiated together"
    runs = [passes.found[place].runs if place in passes.found else 0 for place in range(losses)]
    if any(run != 1 for run in runs):
        return "a loss was not differentiated, or more than once"
    return ""


def total(values: Iterable[Tensor]) -> Tensor:
    """Returns the sum of tensors of one element; 0 of none."""
    listed = list(values)
    return torch.stack([each.to(listed[0].device) for each in listed]).sum() if listed else torch.zeros(())


def to_host(tensors: Sequence[Tensor]) -> list[float]:
    """Returns tensors of one element as numbers, by one copy for each device."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [float(tensor) for tensor in tensors]
    where = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    kind = torch.float64 if where.type != "mps" else torch.float32
    found: list[float] = torch.stack([tensor.detach().reshape(()).to(where, kind) for tensor in tensors]).tolist()
    return found
