"""Losses of a linear layer's outputs, with first and second derivatives, for some rows of logits at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function
from torch.nn import functional as F

from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.exact import wanted_again
from foreshock.numerics.layout import autocasts, working_dtype

__all__ = ["Losses", "Plan"]

Given = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]  # features (n, d), head, bias, target, weight
Made = tuple[Tensor | None, ...]


class Plan(NamedTuple):
    """What is the same for all chunks; `kind` is the type that matrices are multiplied in."""

    kind: torch.dtype
    rows: int
    ignore_index: int
    label_smoothing: float
    total: bool

    def chunks(self, count: int) -> Iterator[slice]:
        return (slice(start, min(start + self.rows, count)) for start in range(0, count, self.rows))

    def losses(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return cross_entropy(
            logits, target, weight, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing,
            reduction="none", dim=-1,
        )  # fmt: skip


class Losses(Function):
    """(features, head, bias, target, weight, plan, wanted) -> losses or their sum, and its gradients where wanted.

    Those wait here to be multiplied by what comes back; where there are none they are computed then, from the inputs.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        *given, plan, wanted = inputs
        losses, made = _sweep(tuple(given), plan, wanted, None)
        return (losses.sum() if plan.total else losses, *made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *given, ctx.plan, wanted = inputs
        ctx.save_for_backward(*given)
        ctx.made = output[1:] if any(wanted) else None
        ctx.mark_non_differentiable(*(each for each in output[1:] if each is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, outer: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        none = (None,) * 4
        if outer is None:
            return None, None, None, *none
        given, wanted = ctx.saved_tensors, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            inputs = (*given, outer.expand(len(given[0])), ctx.plan, wanted)
            return *_Gradient.apply(*inputs), *none  # type: ignore[no-untyped-call]
        if ctx.made is None and is_legacy_batchedtensor(outer):  # autograd.grad(is_grads_batched=True)
            detached = [each if each is None else each.detach() for each in given]
            return *_whole(detached, outer, ctx.plan, wanted, create_graph=False), *none
        if ctx.made is None:
            return *_like(_sweep(given, ctx.plan, wanted, outer.expand(len(given[0])))[1], given), *none
        if wanted_again(outer):
            made = [None if each is None else each * outer for each in ctx.made]
        else:  # no copy of something as large as the head
            made = [None if each is None else each.mul_(outer) for each in ctx.made]
            ctx.made = None
        return *_like(made, given), *none


class _Gradient(Function):
    """(features, head, bias, target, weight, outer, plan, wanted) -> gradients of sum(outer * losses)."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        *given, outer, plan, wanted = inputs
        return _like(_sweep(tuple(given), plan, wanted, outer)[1], given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.plan, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        *given, outer = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[5])
        if torch.is_grad_enabled():
            *found, to_outer = _whole_product(given, outer, along, ctx.plan, wanted)
        else:
            *found, to_outer = _product(tuple(given), outer, along, ctx.plan, wanted)
        return *found, None, None, to_outer, None, None


def _sweep(given: Given, plan: Plan, wanted: Sequence[bool], outer: Tensor | None) -> tuple[Tensor, Made]:
    """Returns the losses, and the gradients of sum(outer * losses) by features, head and bias where wanted.

    With G (n, K) the gradient by the logits, they are G W, G' X and G' 1.
    """
    features, head, bias, target, weight = given
    wide = working_dtype(plan.kind)
    losses = features.new_empty(len(features), dtype=wide)
    to_features = features.new_empty(features.shape, dtype=plan.kind) if wanted[0] else None
    to_head = head.new_zeros(head.shape, dtype=wide) if wanted[1] else None
    to_bias = head.new_zeros(len(head), dtype=wide) if wanted[2] else None
    with _no_autocast(features.device):
        w, b = head.to(plan.kind), None if bias is None else bias.to(plan.kind)
        for part in plan.chunks(len(features)):
            x = features[part].to(plan.kind)
            logits = F.linear(x, w, b).to(wide)
            with torch.set_grad_enabled(any(wanted)):
                each = plan.losses(logits.requires_grad_(any(wanted)), target[part], weight)
            losses[part] = each.detach()
            if not any(wanted):
                continue
            (g,) = torch.autograd.grad(each, logits, torch.ones_like(each) if outer is None else outer[part])
            if to_bias is not None:
                to_bias += g.sum(0)
            g = g.to(plan.kind)
            if to_features is not None:
                torch.mm(g, w, out=to_features[part])
            if to_head is not None:
                _add_product(to_head, g, x)
            del logits, each, g  # before the next ones are made
    return losses, (to_features, to_head, to_bias)


def _product(given: Given, outer: Tensor, along: Made, plan: Plan, wanted: Sequence[bool]) -> Made:
    """Returns the derivatives of <gradients, along> by features, head, bias and outer where wanted.

    With (A, B, c) the three in `along`, V = A W' + X B' + c is how they move the logits, and <gradients, along> is
    <G, V>. With Q the product of each row's Hessian and V, the derivatives are Q W + G B, Q' X + G' A, Q' 1, and the
    sum over classes of V times the gradient that `outer` multiplies.
    """
    features, head, bias, target, weight = given
    found = tuple(
        x.new_zeros(x.shape, dtype=working_dtype(plan.kind)) if want and x is not None else None
        for x, want in zip((features, head, bias, outer), wanted, strict=True)
    )
    to_features, to_head, to_bias, to_outer = found
    with _no_autocast(features.device):
        w = head.to(plan.kind)
        shift, a, b, c = (each if each is None else each.to(plan.kind) for each in (bias, *along))
        for part in plan.chunks(len(features)):
            x = features[part].to(plan.kind)
            logits = F.linear(x, w, shift).to(working_dtype(plan.kind)).requires_grad_()
            moved = torch.zeros_like(logits) if c is None else c.to(logits.dtype).expand_as(logits)
            moved = moved if a is None else moved + a[part] @ w.T
            moved = moved if b is None else moved + x @ b.T
            with torch.enable_grad():
                factor = outer[part].detach().requires_grad_()
                each = plan.losses(logits, target[part], weight)
                (g,) = torch.autograd.grad(each, logits, factor, create_graph=True)
            bent, to_factor = torch.autograd.grad(g, (logits, factor), moved)
            if to_outer is not None:
                to_outer[part] = to_factor
            if to_bias is not None:
                to_bias += bent.sum(0)
            g, bent = g.detach().to(plan.kind), bent.to(plan.kind)
            if to_features is not None:
                to_features[part] = bent @ w if b is None else (bent @ w).add_(g @ b)
            if to_head is not None:
                _add_product(to_head, bent, x)
                if a is not None:
                    _add_product(to_head, g, a[part])
            del logits, each, g, bent, moved  # before the next ones are made
    return _like(found, (features, head, bias, outer))


def _whole(
    given: Sequence[Any], outer: Tensor, plan: Plan, wanted: Sequence[bool], *, create_graph: bool
) -> Made:  # fmt: skip
    """Returns the gradients from all logits at once, by autograd alone, as the functions above return them."""
    *inputs, target, weight = given
    with torch.enable_grad(), _no_autocast(outer.device):
        if not create_graph:
            inputs = [each if each is None else each.requires_grad_() for each in inputs]
        x, w, b = (each if each is None else each.to(plan.kind) for each in inputs)
        assert x is not None
        assert w is not None
        losses = plan.losses(F.linear(x, w, b).to(working_dtype(plan.kind)), target, weight)
        asked = [each for each, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(losses, asked, outer, create_graph=create_graph))
    return tuple(next(found) if want else None for want in wanted)


def _whole_product(given: Sequence[Any], outer: Tensor, along: Made, plan: Plan, wanted: Sequence[bool]) -> Made:
    """Returns what `_product` returns, with a graph, for derivatives beyond the second; from all logits at once."""
    first = _whole(given, outer, plan, [each is not None for each in along], create_graph=True)
    asked = [each for each, want in zip((*given[:3], outer), wanted, strict=True) if want]
    pairs = [(each, to) for each, to in zip(first, along, strict=True) if each is not None and to is not None]
    made = torch.autograd.grad(
        [each for each, _ in pairs], asked, [to for _, to in pairs], create_graph=True, allow_unused=True
    )
    found = iter(made)
    return tuple(next(found) if want else None for want in wanted)


def _add_product(total: Tensor, g: Tensor, x: Tensor) -> None:
    """Adds g' x to a sum that may be of a wider type."""
    if total.dtype == g.dtype:
        total.addmm_(g.T, x)
    else:
        total += g.T @ x


def _like(found: Iterable[Tensor | None], given: Iterable[Tensor | None]) -> Made:
    """Returns gradients in the types of what they are gradients of."""
    return tuple(
        None if each is None or like is None else each.to(like.dtype) for each, like in zip(found, given, strict=False)
    )


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which products are computed in the type of what is multiplied."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()
