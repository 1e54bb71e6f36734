"""Rows of the interaction matrix M_ij = U_j g_ij: <U, g_i> for every example i, without a gradient for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.attribution.asked import METHODS, Asked, largest
from foreshock.errors import UsageError


@dataclass(frozen=True, slots=True)
class RowProducts:
    """What every example's gradient has along a direction.

    Attributes:
        values: w_i <U, g_i>, shape (n,), float32 or wider.
        coverage: covered <U, G> over all of <U, G>, G = sum_i w_i g_i: 1 unless parameters are missing.
        method: how they were obtained: "forward", "ghost", "double", "each", or two of them ("ghost, forward").
        missing: names of the parameters that the values know nothing of.
        rest: names of the parameters that ghost products did not cover, so that the second method was asked about them.
        note: what has to be known to read them, empty when nothing has.
    """

    values: Tensor
    coverage: float
    method: str
    missing: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    note: str = ""


def row_products(
    per_example_loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    *,
    model: nn.Module | None = None,
    weights: Tensor | None = None,
    method: str = "auto",
) -> RowProducts:
    """Returns w_i <U, g_i> for every example i, g_i the gradient of example i's loss at the parameters as they are.

    | method | what is done | cost in gradients (MLP / conv / GPT) | does not work |
    |---|---|---|---|
    | "ghost" | `ghost.py`: one forward and two backward passes | 2.1 / 1.9 / 2.0 | losses that share activations |
    | "forward" | one pass in forward mode | 1.8 / 1.4 / 1.6 | operations that lack it; rounds under 16 bits |
    | "double" | two derivatives in reverse mode | 2.4 / 2.9 / 2.5 | graphs that cannot be differentiated twice |
    | "each" | n backward passes | n | - |

    "auto" takes the first that works, in this order. Parameters that ghost products do not reach (used by operations
    that cannot be caught) are given to the others. All are exact up to rounding; dot products are in float32 or wider.

    Where examples share something, as statistics of the batch in training mode, g_i is the gradient of l_i through what
    is shared; sum_i g_i is then still the gradient of the sum. `note` says so; `model.eval()` freezes statistics.

    Nothing is left behind: `.grad`, buffers, modes, random streams, hooks and version counters are as before, also when
    the closure raises. On several ranks each has the rows of its own examples; DistributedDataParallel is passed by,
    sharded parameters are gathered.

    Args:
        per_example_loss: called without arguments, returns the losses, shape (n,), with their graph; the same at each
            call, which begins with the same random numbers.
        params: what the losses are differentiated by.
        direction: U, tensors shaped like the parameters, of any floating type; None counts as zeros.
        model: the module that is run; by default those that the closure's code names.
        weights: w, shape (n,); by default ones.
        method: as above.

    Raises:
        UsageError: arguments that do not belong together, a closure that does not return one loss per example, a method
            that does not work here, an embedding with scale_grad_by_freq.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> row_products(lambda: (x @ w) ** 2, [w], [torch.tensor([1.0, 0.0])]).values.tolist()
    [2.0, 6.0]
    """
    moves = moves_of(params, direction, method)
    asked = Asked(per_example_loss, params, moves, model)
    found = asked.answer(method)
    values = found.values
    if weights is not None:
        if weights.shape != values.shape:
            raise UsageError(f"row_products(weights): shape {tuple(weights.shape)} for losses of {tuple(values.shape)}")
        values = values * weights.detach().to(values)
    coverage = 1.0
    if found.missing:
        covered, rest = float(values.double().sum()), asked.along(found.missing, weights)
        coverage = covered / (covered + rest) if covered + rest else math.nan
    return RowProducts(values, coverage, found.method, asked.names(found.missing), asked.names(found.rest), found.note)


def moves_of(params: Sequence[Tensor], direction: Sequence[Tensor | None], method: str = "auto") -> dict[int, Tensor]:
    """Returns the direction by the place of the parameter, float32 or wider, zeros left out."""
    if method not in METHODS:
        raise UsageError(f"row_products(method): one of {', '.join(METHODS)}, got {method!r}")
    if not params:
        raise UsageError("row_products(params): there are none")
    if len(direction) != len(params):
        raise UsageError(f"row_products(direction): {len(direction)} tensors for {len(params)} params")
    moves: dict[int, Tensor] = {}
    for i, (param, given) in enumerate(zip(params, direction, strict=True)):
        if given is None:
            continue
        if given.shape != param.shape:
            raise UsageError(
                f"row_products(direction): entry {i} is of shape {tuple(given.shape)}, its parameter of "
                f"{tuple(param.shape)}"
            )
        tensor = distributed.whole(given.detach())
        most = largest(tensor)
        if not math.isfinite(most):
            raise UsageError(f"row_products(direction): entry {i} is not finite everywhere")
        if most:
            moves[i] = tensor.to(param.device, torch.promote_types(tensor.dtype, torch.float32))
    return moves
