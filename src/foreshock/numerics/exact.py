"""Exact cross-entropy of rows of logits, differentiable as often as wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function, forward_ad

from foreshock.numerics.layout import working_dtype
from foreshock.numerics.rows import (
    bend,
    fit,
    gradients_by_probabilities_,
    gradients_of_rows,
    losses_by_probabilities,
    losses_of_rows,
    probabilities,
    relative,
    surprises,
)

__all__ = ["losses", "wanted_again"]


def losses(
    logits: Tensor, right: Tensor, *, spread: Tensor | None = None, mass: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Returns the cross-entropy of each row in nats, differentiable as often as wanted.

    With targets y, their sum Y, m = max_k z_k and e_k = exp(z_k - m),

        loss = Y log(sum_k e_k) + sum_k y_k (m - z_k),   dloss/dz_k = Y e_k / sum_j e_j - y_k.

    Every term of the loss is at least 0, the logarithm is log1p(sum_{k != r} e_k + expm1(z_r - m)), exact where the
    right class r is the largest, and the gradient of the right class is minus the sum of the others. Both keep their
    relative accuracy (about 1e-6 in float32) until the wrong classes themselves underflow, beyond a gap of 103 nats in
    float32.

    Args:
        logits: floating, (n, K), or (a, K, b) with dim=1.
        right: int64, (n, 1) or (a, 1, b): the right class, whose target is 1; with `spread`, the largest target.
        spread: targets y, broadcastable to the logits; differentiable.
        mass: shaped like `right`, with `spread` only: added to the target of the right class.
        dim: where the classes are.

    Returns:
        float64 for float64 logits, else float32; shaped like `right`.
    """
    if _plain():
        found: Tensor = _Losses.apply(logits, right, spread, mass, dim)  # type: ignore[no-untyped-call]
        return found
    found, _, _ = _TransformableLosses.apply(logits, right, spread, mass, dim)  # type: ignore[no-untyped-call]
    return found


def gradient(
    logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor, top: Tensor,
    wrong: Tensor, dim: int,
) -> Tensor:  # fmt: skip
    """Returns `rows.gradients_of_rows`, differentiable."""
    arguments = (logits, right, spread, mass, outer, top, wrong, dim)
    found: Tensor
    if not _plain():
        found = _TransformableGradient.apply(*arguments)  # type: ignore[no-untyped-call]
    elif not torch.compiler.is_compiling() and is_legacy_batchedtensor(outer):  # autograd.grad(is_grads_batched=True)
        arguments = (logits, right, spread, mass, torch.ones_like(top), top, wrong, dim)
        found = (outer * _Gradient.apply(*arguments)).to(logits.dtype)  # type: ignore[no-untyped-call]
    elif torch.is_grad_enabled():
        found = _Gradient.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        found = gradients_of_rows(*arguments)
    return found


def wanted_again(outer: Tensor) -> bool:
    """Returns whether the backward pass that runs may want what was saved for it again; in doubt, yes."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask() or is_legacy_batchedtensor(outer)


def _plain() -> bool:
    """Returns whether nothing but autograd, or a compiler, is at work.

    Functions that torch.func can transform cost 0.1 ms more at each call, and torch.compile does not take them.
    """
    if torch.compiler.is_compiling():
        return True
    return forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()


class _Losses(Function):
    """(logits, right, spread, mass, dim) -> losses."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, dim: int
    ) -> Tensor:
        ctx.dim = dim
        ready = losses_by_probabilities(logits, right, dim) if spread is None and ctx.needs_input_grad[0] else None
        if ready is not None:
            found, wrong, shares = ready
            ctx.save_for_backward(logits, right, None, None, None, wrong, shares)
            return found
        found, top, wrong = losses_of_rows(logits, right, spread, mass, dim)
        ctx.save_for_backward(logits, right, spread, mass, top, wrong, None)
        return found

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return _losses_backward(ctx, outer)


class _Gradient(Function):
    """(logits, right, spread, mass, outer, top, wrong, dim) -> gradient of sum(outer * losses) by the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor,
        top: Tensor, wrong: Tensor, dim: int,
    ) -> Tensor:  # fmt: skip
        ctx.dim = dim
        ctx.save_for_backward(logits, right, spread, mass, outer)
        return gradients_of_rows(logits, right, spread, mass, outer, top, wrong, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gradient_backward(ctx, ctx.saved_tensors, grad)


class _TransformableLosses(Function):
    """As `_Losses`, for torch.func and forward-mode derivatives as well; -> what `losses_of_rows` returns."""

    @staticmethod
    def forward(logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, dim: int) -> Any:
        return losses_of_rows(logits, right, spread, mass, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dim = inputs[4]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:4], *output[1:], None)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Any) -> Any:
        return _losses_backward(ctx, outer)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, _: None, spread_tangent: Tensor | None, *__: None) -> Any:
        logits, right, spread, mass, *_ = ctx.saved_tensors
        found = torch.zeros(right.shape, dtype=working_dtype(logits.dtype), device=logits.device)
        if tangent is not None:
            found = found + bend(logits, right, spread, mass, tangent, ctx.dim)[2]
        if spread_tangent is not None:
            found = found + (spread_tangent * surprises(logits, ctx.dim)).sum(ctx.dim, keepdim=True)
        return found, None, None

    @staticmethod
    def vmap(info: Any, places: Any, *inputs: Any) -> Any:
        found = _TransformableLosses.apply(*_flat(info.batch_size, places, inputs))  # type: ignore[no-untyped-call]
        return tuple(each.unflatten(0, (info.batch_size, -1)) for each in found), (0, 0, 0)


class _TransformableGradient(Function):
    """As `_Gradient`, for torch.func and forward-mode derivatives as well."""

    @staticmethod
    def forward(
        logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor, top: Tensor,
        wrong: Tensor, dim: int,
    ) -> Tensor:  # fmt: skip
        return gradients_of_rows(logits, right, spread, mass, outer, top, wrong, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dim = inputs[7]
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gradient_backward(ctx, ctx.saved_tensors[:5], grad)

    @staticmethod
    def jvp(
        ctx: Any, tangent: Tensor | None, _: None, spread_tangent: Tensor | None, __: None,
        outer_tangent: Tensor | None, *___: None,
    ) -> Tensor:  # fmt: skip
        logits, right, spread, mass, outer, top, wrong = ctx.saved_tensors
        found = torch.zeros_like(logits, dtype=working_dtype(logits.dtype))
        if tangent is not None:
            found = found + outer * bend(logits, right, spread, mass, tangent, ctx.dim)[0]
        if spread_tangent is not None:
            total = spread_tangent.sum(ctx.dim, keepdim=True)
            found = found + outer * (total * probabilities(logits, ctx.dim) - spread_tangent)
        if outer_tangent is not None:
            rest = (right, spread, mass, outer_tangent, top, wrong, ctx.dim)
            found = found + _TransformableGradient.apply(logits, *rest)  # type: ignore[no-untyped-call]
        return found.to(logits.dtype)

    @staticmethod
    def vmap(info: Any, places: Any, *inputs: Any) -> Any:
        found = _TransformableGradient.apply(*_flat(info.batch_size, places, inputs))  # type: ignore[no-untyped-call]
        return found.unflatten(0, (info.batch_size, -1)), 0


def _losses_backward(ctx: Any, outer: Tensor) -> Any:
    logits, right, spread, mass, top, wrong, shares = ctx.saved_tensors
    to_logits = to_spread = None
    if shares is not None:
        if not torch.is_grad_enabled() and not is_legacy_batchedtensor(outer):
            # .data: what is saved beside it stays readable for hooks that run after this
            shares = shares.clone() if wanted_again(outer) else shares.data
            return gradients_by_probabilities_(shares, right, wrong, outer, ctx.dim), None, None, None, None
        _, top, wrong = losses_of_rows(logits.detach(), right, None, None, ctx.dim)
    if ctx.needs_input_grad[0]:
        to_logits = gradient(logits, right, spread, mass, outer, top, wrong, ctx.dim)
    if ctx.needs_input_grad[2]:
        to_spread = fit(outer * surprises(logits, ctx.dim), spread)
    return to_logits, None, to_spread, None, None


def _gradient_backward(ctx: Any, saved: Any, grad: Tensor) -> Any:
    logits, right, spread, mass, outer = saved
    moved, mean, along = bend(logits, right, spread, mass, grad, ctx.dim)
    to_logits = (outer * moved).to(logits.dtype) if ctx.needs_input_grad[0] else None
    to_spread = fit(outer * (mean - relative(grad, right, ctx.dim)), spread) if ctx.needs_input_grad[2] else None
    return to_logits, None, to_spread, None, along, None, None, None


def _flat(size: int, places: Any, inputs: Any) -> list[Any]:
    """Returns the arguments of a function of rows with the mapped dimension made part of the rows."""
    found: list[Any] = []
    for place, value in zip(places, inputs, strict=True):
        if not isinstance(value, Tensor):
            found.append(value)
            continue
        whole = value.expand(size, *value.shape) if place is None else value.movedim(place, 0)
        found.append(whole)
    lengths = {value.shape[1] for value in found if isinstance(value, Tensor)}
    rows = max(lengths)
    for at, value in enumerate(found):
        if isinstance(value, Tensor):
            found[at] = value.expand(size, rows, *value.shape[2:]).reshape(-1, *value.shape[2:])
    return found
