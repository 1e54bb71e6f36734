"""The Gauss-Newton matrix of a loss as an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from foreshock.curvature.anatomy import Anatomy
from foreshock.curvature.graph import NotTwiceError, explained, moved, not_twice, silent
from foreshock.curvature.loss_curvature import LossCurvature, listed, repeatable
from foreshock.curvature.objective import Live
from foreshock.curvature.surroundings import modules_of
from foreshock.errors import UsageError


class GaussNewton(LossCurvature):
    """G = J' H_L J, J the derivative of the outputs by the parameters, H_L the Hessian of the loss by the outputs.

    The part of the Hessian that is left where the model is linear; positive semidefinite where the loss is convex in
    the outputs (cross-entropy on logits, squares). J v is the derivative of J'u by u, so that all passes are in reverse
    mode: forward mode is silently wrong through LayerNorm. Source: Schraudolph 2002, Fast curvature matrix-vector
    products for second-order gradient descent.

    Args:
        outputs: a tensor with its graph, or a closure that computes it, `closure()`, or with `data` `closure(batch)`.
        loss_fn: `loss_fn(outputs)`, with `data` `loss_fn(outputs, batch)`, is the scalar loss, the mean over the batch.
        params: what the outputs are differentiated by.
        data, model, deterministic: as for `Hessian`.

    Raises:
        UsageError: as for `Hessian`.

    >>> import torch
    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> GaussNewton(lambda: x @ w, lambda z: z.square().sum() / 2, [w]).dense()  # x'x
    tensor([[2., 1.],
            [1., 1.]])
    """

    def __init__(
        self,
        outputs: Tensor | Callable[..., Tensor],
        loss_fn: Callable[..., Tensor],
        params: Sequence[Tensor],
        *,
        data: Iterable[Any] | None = None,
        model: nn.Module | None = None,
        deterministic: str = "check",
    ) -> None:
        if not callable(loss_fn):
            raise UsageError(f"loss_fn: must be a function of the outputs, got {type(loss_fn).__name__}")
        params = listed(params)
        composite = _Composite(outputs, loss_fn)
        live = closure = None
        if isinstance(outputs, Tensor):
            if data is not None:
                raise UsageError("data: batches need a function of a batch, closure(batch), for the outputs")
            live = Live(composite(), params, model)
        elif callable(outputs):
            closure = repeatable(composite, params, data, model)
            if model is None:
                closure.roots = [*modules_of(outputs), *modules_of(loss_fn)]
        else:
            raise UsageError(f"outputs: a tensor with its graph or a function, got {type(outputs).__name__}")
        super().__init__(params, (live, closure), composite.graph, mode=deterministic)
        self._composite = composite

    def block(self, params: Sequence[Tensor]) -> Self:
        block = super().block(params)
        block._composite = self._composite
        return block

    def refresh(self, outputs: Tensor | None = None) -> None:
        """Moves the operator to the parameters as they are now.

        Args:
            outputs: the outputs at the new parameters, where the operator was made of a tensor.
        """
        if outputs is None or self._live is None:
            super().refresh(outputs)
            return
        self._composite.source = outputs
        super().refresh(self._composite())


class _Composite:
    """The loss of the outputs, which remembers the outputs of the loss that was computed last."""

    def __init__(self, source: Tensor | Callable[..., Tensor], loss_fn: Callable[..., Tensor]) -> None:
        self.source, self._loss_fn = source, loss_fn
        self._last: tuple[Tensor, tuple[Any, ...]] | None = None

    def __call__(self, *batch: Any) -> Tensor:
        outputs = self.source if isinstance(self.source, Tensor) else self.source(*batch)
        if not isinstance(outputs, Tensor):
            raise UsageError(
                f"outputs: must be one tensor, got {type(outputs).__name__}; for a model that returns more, give a "
                "closure that picks it"
            )
        if not outputs.requires_grad:
            raise UsageError("outputs: they have no graph: detached, computed under no_grad, or from frozen parameters")
        self._last = (outputs, batch)
        return self._loss_fn(outputs, *batch)

    def graph(self, loss: Tensor, params: Sequence[Tensor], facts: Anatomy) -> _Graph:
        """Returns the products that belong to the loss that was computed last."""
        assert self._last is not None
        outputs, batch = self._last
        return _Graph(outputs, lambda z: self._loss_fn(z, *batch), params, facts)


class _Graph:
    """J' H_L J of one batch, on graphs that are kept: of J'u by u, of the outputs, and of the loss's gradient.

    Args:
        outputs: with their graph.
        loss_fn: the loss of the outputs.
        params: what the outputs are differentiated by.
        facts: what the graph of the loss is made of.
    """

    def __init__(
        self, outputs: Tensor, loss_fn: Callable[[Tensor], Tensor], params: Sequence[Tensor], facts: Anatomy
    ) -> None:
        if facts.once:
            raise NotTwiceError(not_twice(", ".join(facts.once)))
        self._outputs, self._params, self.facts = outputs, list(params), facts
        self._versions = [param._version for param in params]
        with silent(facts), explained(), torch.enable_grad():
            self._leaf = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss_fn(self._leaf), self._leaf, create_graph=True)
            self._slope = slope
            # u has the value of the loss's gradient, so J'u is the gradient by the parameters
            self._u = slope.detach().clone().requires_grad_()
            found = torch.autograd.grad(outputs, self._params, self._u, create_graph=True, allow_unused=True)
        if all(grad is None for grad in found):
            raise UsageError("the outputs do not depend on any of the parameters")
        self._pulled = list(found)
        self.gradient: list[Tensor | None] = [None if grad is None else grad.detach() for grad in found]

    def multiply(self, vector: Sequence[Tensor], *, last: bool = False) -> list[Tensor | None]:
        if any(param._version != seen for param, seen in zip(self._params, self._versions, strict=True)):
            raise UsageError(moved("the outputs were computed, so their graph no longer belongs to them"))
        places = [i for i, grad in enumerate(self._pulled) if grad is not None and grad.requires_grad]
        if not self._slope.requires_grad or not places:
            return [None] * len(self._params)
        pulled = [grad for grad in self._pulled if grad is not None and grad.requires_grad]
        with silent(self.facts), explained():
            (pushed,) = torch.autograd.grad(pulled, self._u, [vector[i] for i in places], retain_graph=True)
            (curved,) = torch.autograd.grad(self._slope, self._leaf, pushed, retain_graph=not last)
            return list(
                torch.autograd.grad(self._outputs, self._params, curved, retain_graph=not last, allow_unused=True)
            )

    def restricted(self, places: Sequence[int]) -> _Graph:
        block = object.__new__(_Graph)
        block._outputs, block.facts, block._leaf, block._slope, block._u = (
            self._outputs, self.facts, self._leaf, self._slope, self._u,
        )  # fmt: skip
        block._params = [self._params[place] for place in places]
        block._versions = [self._versions[place] for place in places]
        block._pulled = [self._pulled[place] for place in places]
        block.gradient = [self.gradient[place] for place in places]
        return block
