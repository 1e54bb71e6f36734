"""The loss that a curvature belongs to, evaluated as often as a route needs it and without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.curvature.gathered import Gathered
from foreshock.curvature.harmless import harmless, random_state, restore_random_state
from foreshock.curvature.loader import Batches
from foreshock.curvature.surroundings import modules_of, surroundings
from foreshock.errors import UsageError

RandomState = list[tuple[Callable[[Any], None], Any]]
Visit = Callable[[Tensor, float], None]


class Live:
    """A loss that was computed already: one evaluation, whose graph is used and never freed.

    Args:
        loss: the scalar, with its graph.
        params: what it is differentiated by.
        model: the module that computed it, when known.
    """

    repeatable = False
    passes = 0

    def __init__(self, loss: Tensor, params: Sequence[Tensor], model: nn.Module | None = None) -> None:
        self.loss = loss
        self.params = tuple(params)
        self.roots = () if model is None else (model,)
        self.batch = "the batch of the loss that was given"

    def on(self, params: Sequence[Tensor]) -> Live:
        """Returns the same loss, to be differentiated by other parameters."""
        return Live(self.loss, params, self.roots[0] if self.roots else None)

    def sweep(self, visit: Visit, *, start: RandomState | None = None) -> float:
        """Calls `visit(loss, 1.0)` and returns the weight, 1."""
        with self.passing():
            visit(scalar(self.loss, "the loss"), 1.0)
        return 1.0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Guards a pass over the graph: blocks that are checkpointed run their forward pass again in it."""
        if any(module.training and module._buffers for root in self.roots for module in root.modules()):
            with harmless((), self.roots):
                yield
        else:
            yield


class Repeatable:
    """A loss that a closure computes, over one batch or over data.

    Args:
        closure: `closure()`, or `closure(batch)` with `data`, gives a scalar loss with its graph; with `data` the mean
            over the batch.
        params: what it is differentiated by.
        data: the batches.
        model: the module that it runs; by default those that the closure's code names.

    Attributes:
        watched: whether evaluations remember `after`.
        after: the state in which the last such one left the random streams; the caller's own are put back.
        replayed: the state that every evaluation begins with, None for the caller's own.
        seen: the samples, or the sum of the weights, that the last pass went through.
    """

    repeatable = True

    def __init__(
        self,
        closure: Callable[..., Tensor],
        params: Sequence[Tensor],
        data: Batches | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self._closure = closure
        self.params = tuple(params)
        self.data = data
        self.given = model
        self._roots: Sequence[nn.Module] | None = None if model is None else (model,)
        self.after: RandomState | None = None
        self.watched = True
        self.replayed: RandomState | None = None
        self.passes = 0
        self.seen = 0.0
        self.count = 0
        self.exact = True
        self.gathered: Gathered | None = None

    def on(self, params: Sequence[Tensor]) -> Repeatable:
        """Returns the same loss, to be differentiated by other parameters."""
        other = Repeatable(self._closure, params, self.data, self.given)
        other._roots, other.replayed = self._roots, self.replayed
        return other

    @property
    def roots(self) -> Sequence[nn.Module]:
        """The modules that the closure runs, as far as they are known."""
        if self._roots is None:
            self._roots = modules_of(self._closure)
        return self._roots

    @roots.setter
    def roots(self, modules: Sequence[nn.Module]) -> None:
        self._roots = modules

    @property
    def modules(self) -> list[nn.Module]:
        """All modules that the closure runs, as far as they are known."""
        return [module for root in self.roots for module in root.modules()]

    @property
    def leaves(self) -> Sequence[Tensor]:
        """What the loss is differentiated by: the parameters, or the whole ones in place of sharded ones."""
        return self.params if self.gathered is None else self.gathered.leaves

    @property
    def batch(self) -> str:
        """What the numbers belong to, in words."""
        if self.data is None:
            return "the batch of the closure"
        return f"{self.count} batches of {self.seen:g} {'samples' if self.data.weight is None else 'units of weight'}"

    def sweep(self, visit: Visit, *, start: RandomState | None = None) -> float:
        """Calls `visit(loss, weight)` for each batch and returns the sum of the weights.

        Args:
            visit: gets each batch's loss while its graph lives.
            start: the state of the random streams to begin with.
        """
        total, count = 0.0, 0
        versions = [param._version for param in self.params]
        with ExitStack() as stack:
            stack.enter_context(harmless(self.params, self.roots))
            if self.data is not None:
                stack.enter_context(self.data.unmoved())
            if start is None:
                start = self.replayed
            if start is not None:
                restore_random_state(start)
            stack.enter_context(self._within())
            for batch, weight in ((None, 1.0),) if self.data is None else self.data:
                loss = self._closure() if self.data is None else self._closure(batch)
                self._unchanged(versions)
                loss = scalar(loss, "the closure")
                if self.gathered is not None:
                    self.gathered.check_loss(loss)
                visit(loss, weight)
                del loss
                total += weight
                count += 1
            if self.watched:
                self.after = random_state()
        if not total > 0:
            raise UsageError(f"weight: the batches' weights add up to {total}")
        self.passes += 1
        self.seen, self.count = total, count
        return total

    @contextmanager
    def _within(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(surroundings(self.modules, self.params[0].device, exact=self.exact))
            if self.gathered is not None:
                stack.enter_context(self.gathered.in_place())
            yield

    def _unchanged(self, versions: Sequence[int]) -> None:
        for i, (param, version) in enumerate(zip(self.params, versions, strict=True)):
            if param._version != version:
                raise UsageError(
                    f"the closure changes params[{i}], of shape {tuple(param.shape)}, in place; it may only compute "
                    "the loss"
                )

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Guards a pass over a graph that an evaluation left: checkpointed blocks run forward again in it."""
        with ExitStack() as stack:
            if any(module.training and module._buffers for root in self.roots for module in root.modules()):
                stack.enter_context(harmless((), self.roots))
            stack.enter_context(self._within())
            yield


def scalar(loss: object, whose: str) -> Tensor:
    """Returns `loss` as a scalar with a graph.

    Args:
        loss: what was given or returned.
        whose: "the loss" or "the closure", for the message.

    Raises:
        UsageError: it is none.
    """
    verb = "must be" if whose == "the loss" else "must return"
    if not isinstance(loss, Tensor):
        raise UsageError(f"{whose} {verb} a scalar tensor with its graph, got {type(loss).__name__}")
    if loss.is_complex():
        raise UsageError(f"{whose} {verb} a real number, got {loss.dtype}; take its real part or its square")
    if loss.numel() != 1:
        raise UsageError(
            f"{whose} {verb} a scalar, got a tensor of shape {tuple(loss.shape)}; take its mean, or its sum"
        )
    if not loss.requires_grad:
        raise UsageError(
            f"{whose} {verb} a loss with a graph, but this tensor has none: it was detached, computed under no_grad, "
            "or from parameters that do not require gradients"
        )
    return loss.reshape(()) if loss.dim() else loss


def differentiable(params: Sequence[Tensor]) -> None:
    """Raises when a gradient with respect to some parameter cannot be had.

    Raises:
        UsageError: a parameter does not require gradients, or is of a type that cannot carry them here.
    """
    for i, param in enumerate(params):
        if not param.requires_grad:
            raise UsageError(
                f"params[{i}], of shape {tuple(param.shape)}, does not require gradients; leave it out: "
                "[p for p in model.parameters() if p.requires_grad]"
            )
        if param.dtype == torch.float16 and param.device.type == "cpu":
            raise UsageError(
                f"params[{i}] is float16 on the CPU, where second derivatives overflow; convert the model: "
                "model.float()"
            )
