"""Rows without a look inside: forward mode, two derivatives in reverse mode, or one example after the other.

All three are exact for whatever the losses are, coupled by statistics of the batch or not: g_i is the gradient of l_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foreshock.attribution.arguments import arguments_of, by_frequency, dual, replaced
from foreshock.errors import UsageError

Closure = Callable[[], Tensor]
# By how much, relative to its terms, the sum of the rows of two reverse derivatives may miss <U, G>.
_CLOSE = 1e-3


class _Watched(TorchFunctionMode):
    """Has tangents end where gradients do.

    Gradients do not pass blocks without them (a target that the same model makes), nor reach the padding of an
    embedding; tangents by themselves would.

    Attributes:
        coupled: whether statistics of the batch were used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coupled = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return function(*replaced(args, _primal), **replaced(kwargs, _primal))
        result = function(*args, **kwargs)
        if function is F.embedding:
            asked = arguments_of(function, args, kwargs)
            if asked["scale_grad_by_freq"]:
                raise UsageError(by_frequency())
            if asked["padding_idx"] is not None:
                padding = asked["padding_idx"] % asked["weight"].shape[0]
                result = torch.where((asked["input"] == padding)[..., None], _primal(result), result)
        elif function is F.batch_norm:
            self.coupled |= bool(arguments_of(function, args, kwargs)["training"])
        return result


def _primal(tensor: Tensor) -> Tensor:
    return forward_ad.unpack_dual(tensor).primal  # type: ignore[no-any-return, no-untyped-call]


def forward_rows(
    closure: Closure, params: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, bool, bool]:
    """Returns <U, g_i> = d l_i(theta + s U)/ds at s = 0, shape (n,): one forward pass in forward mode.

    Also whether the losses have tangents at all, and whether statistics of the batch couple the examples.

    The parameters get their tangents in place, by being copied onto themselves, bit for bit, so that whatever refers to
    them has them: closures, tied modules, recurrent layers.

    Args:
        closure: returns the losses.
        params: theta; their version counters move, and they do not require gradients afterwards.
        direction: U, of the parameters' types.

    Raises:
        RuntimeError: some operation has no derivative in forward mode.
    """
    watched = _Watched()
    with forward_ad.dual_level():
        for param, tangent in zip(params, direction, strict=True):
            param.requires_grad_(False)  # no graph
            param.copy_(dual(param.detach().clone(), tangent.to(param)))
        with watched:
            losses = closure()
        value, found = forward_ad.unpack_dual(losses)  # type: ignore[no-untyped-call]
        rows = torch.zeros_like(value) if found is None else found.clone()
    return rows.detach(), found is not None, watched.coupled


def double_rows(closure: Closure, params: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """Returns <U, g_i>, shape (n,), as the derivative of <U, sum_i s_i g_i> by s: two derivatives in reverse mode.

    Raises:
        RuntimeError: the graph cannot be differentiated twice, or its second derivative is not the one of its first:
            the sum of the rows is not <U, G>.
    """
    losses = closure()
    s = torch.ones_like(losses).requires_grad_()
    grads = torch.autograd.grad((losses * s).sum(), list(params), create_graph=True, allow_unused=True)
    dots = [(g * u.to(g)).sum().to(s) for g, u in zip(grads, direction, strict=True) if g is not None]
    if not dots or not any(dot.requires_grad for dot in dots):
        if any(bool(dot) for dot in dots):
            raise RuntimeError("the first derivative forgets what it was made of")
        return torch.zeros_like(losses)
    total = torch.stack(dots)
    (rows,) = torch.autograd.grad(total.sum(), [s])
    if not (rows.sum() - total.sum()).abs() <= _CLOSE * (total.abs().sum() + rows.abs().sum()):
        raise RuntimeError("the second derivative does not belong to the first")
    return rows


def each_rows(
    closure: Closure, params: Sequence[Tensor], direction: Sequence[Tensor], only: Set[int] | None = None
) -> Tensor:
    """Returns <U, g_i>, shape (n,), by n backward passes on one graph; or for some examples alone, zeros for others."""
    losses = closure()
    rows = losses.detach().new_zeros(len(losses), dtype=torch.promote_types(losses.dtype, torch.float32))
    for i, loss in enumerate(losses.unbind()):
        if only is not None and i not in only:
            continue
        grads = torch.autograd.grad(loss, list(params), retain_graph=True, allow_unused=True)
        for g, u in zip(grads, direction, strict=True):
            if g is not None:
                wide = torch.promote_types(g.dtype, rows.dtype)
                rows[i] += (g.to(wide) * u.to(g.device, wide)).sum()
    return rows
