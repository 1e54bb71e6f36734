"""Rows of the interaction matrix: <U, g_i> for every example i, without one gradient for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock.curvature.harmless import harmless
from foreshock.curvature.surroundings import modules_of, surroundings
from foreshock.errors import UsageError

METHODS = ("auto", "ghost", "jvp", "double", "each")


@dataclass(frozen=True, slots=True)
class RowProducts:
    """What every example's gradient has along a direction.

    Attributes:
        values: w_i <U, g_i>, shape (n,), float32 or wider, on the device of the losses.
        coverage: covered <U, G> over all of <U, G>, G = sum_i w_i g_i; 1 where every parameter was accounted for.
        method: how they were obtained.
        missing: names of the parameters that the values know nothing of.
    """

    values: Tensor
    coverage: float
    method: str
    missing: tuple[str, ...] = ()


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

    Args:
        per_example_loss: called without arguments, returns the losses, shape (n,), with their graph.
        params: what the losses are differentiated by.
        direction: U, tensors shaped like the parameters; None counts as zeros.
        model: the module that is run; by default those that the closure's code names.
        weights: w, shape (n,); by default ones.
        method: "auto", "ghost", "jvp", "double" or "each".

    Raises:
        UsageError: arguments that do not belong together.
    """
    if method not in METHODS:
        raise UsageError(f"row_products(method): one of {', '.join(METHODS)}, got {method!r}")
    if len(direction) != len(params):
        raise UsageError(f"row_products(direction): {len(direction)} tensors for {len(params)} params")
    roots = modules_of(per_example_loss) if model is None else [model]
    modules = list(dict.fromkeys(inner for root in roots for inner in root.modules()))
    with harmless(params, modules), surroundings(modules, params[0].device):
        losses = per_example_loss()
        scale = torch.ones_like(losses) if weights is None else weights.to(losses)
        scale = scale.detach().clone().requires_grad_()
        pairs = [(p, u) for p, u in zip(params, direction, strict=True) if u is not None]
        grads = torch.autograd.grad(
            (losses * scale).sum(), [p for p, _ in pairs], create_graph=True, allow_unused=True
        )
        dots = [(g * u.to(g)).sum().to(losses) for g, (_, u) in zip(grads, pairs, strict=True) if g is not None]
        if not dots:
            return RowProducts(torch.zeros_like(losses).float().detach(), 1.0, "double backward")
        (values,) = torch.autograd.grad(torch.stack(dots).sum(), [scale])
        values = (values * scale).detach()
        return RowProducts(values.to(torch.promote_types(values.dtype, torch.float32)), 1.0, "double backward")
