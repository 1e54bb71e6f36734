"""The right class's gradient put right in front of any loss: `loss_fn(exact_gradient(logits, target), target)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.numerics.layout import class_dim

NARROW = (torch.float16, torch.bfloat16)


def exact_gradient(logits: Tensor, target: Tensor, *, ignore_index: int = -100, dim: int | None = None) -> Tensor:
    """Returns the logits unchanged, as a view; what comes back through them is made to sum to zero over the classes.

    Backward, row by row, with r the right class:

        g_k := g_k  for k != r,      g_r := -sum_{k != r} g_k

    In exact arithmetic that changes nothing for a loss whose gradient sums to zero over the classes: cross-entropy with
    indices or probabilities that sum to one, with class weights, with label smoothing. In floating point the wrong
    classes' gradients are accurate down to underflow while the right class's, p_r - 1, loses all its digits once the
    others hold less than 2^-p of the mass; it is made from them anew. Second derivatives are those of the corrected
    gradient: the backward of this map is its adjoint, u_k := u_k - u_r, which also spares the Hessian the cancellation.

    **Not for a loss that tells logits from logits + c**: a z-loss (log sum exp)^2 or a penalty on logits has a gradient
    that does not sum to zero, and the right class would be given the difference. Compute those from the logits
    themselves, beside this. The value of the loss is not touched: it still reads 0 where stock losses do.

    The target must be aligned with the rows of these logits. Where the loss shifts by one position, as losses of causal
    language models do, so must the target given here, the last position ignored:

        outputs = exact_gradient(logits, F.pad(labels[..., 1:], (0, 1), value=-100))

    Args:
        logits: (N, K), (N, K, d1, ...), (B, T, K), ... of any floating type.
        target: the right classes, integers, in the shape of the logits without the classes' dimension. They are not
            checked for their range, which would have to wait for the device; the loss behind does that.
        ignore_index: rows with this target pass unchanged.
        dim: the classes' dimension, where `layout.class_dim` would find another.

    Raises:
        UsageError: the target is no integer tensor, or its shape does not fit.

    Source: Liu, Cao, Li, Zhou 2026, arXiv 2605.06152, who subtract the mean instead (which leaves -w/K of -w).

    >>> z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    >>> right = torch.tensor([0])
    >>> torch.autograd.grad(torch.nn.functional.cross_entropy(z, right), z)[0].sum(1)
    tensor([8.4967e-18])
    >>> torch.autograd.grad(torch.nn.functional.cross_entropy(exact_gradient(z, right), right), z)[0].sum(1)
    tensor([0.])
    """
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise UsageError(
            f"target has dtype {target.dtype}: exact_gradient needs the index of the right class; a loss of class "
            "probabilities is exact in foreshock.cross_entropy"
        )
    dim = class_dim(logits, target, dim)
    target = target.reshape(logits.shape[:dim] + logits.shape[dim + 1 :])
    result: Tensor = _Exact.apply(logits, target, ignore_index, dim)  # type: ignore[no-untyped-call]
    return result


class _Exact(torch.autograd.Function):
    """Forward: a view. Backward: `zero_sum`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, target: Tensor, ignore_index: int, dim: int) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, target, ctx.ignore_index, ctx.dim = inputs
        ctx.save_for_backward(target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (target,) = ctx.saved_tensors
        return zero_sum(grad, target, ignore_index=ctx.ignore_index, dim=ctx.dim), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent.view_as(tangent)


def zero_sum(gradient: Tensor, target: Tensor, *, ignore_index: int, dim: int) -> Tensor:
    """Returns a gradient with the right class's entry := -(sum of the others), a linear map of the gradient.

    Sums of float16 and bfloat16 are taken in float32. Shapes as in `exact_gradient`; `dim` counts from 0.
    """
    kept = (target != ignore_index).unsqueeze(dim)
    index = torch.where(kept, target.unsqueeze(dim).long(), 0)
    own = gradient.gather(dim, index)
    others = gradient.scatter(dim, index, 0)
    total = others.sum(dim, keepdim=True, dtype=torch.float32 if gradient.dtype in NARROW else None)
    # adding to the 0 put there: the one way of setting it, in place, that torch.vmap knows
    return others.scatter_add_(dim, index, torch.where(kept, -total.to(gradient.dtype), own))
