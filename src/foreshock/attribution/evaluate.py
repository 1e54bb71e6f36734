"""Losses and gradients of a batch at weights of one's choice, without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from foreshock.attribution.unseen import unseen
from foreshock.attribution.wide import widened
from foreshock.curvature.harmless import harmless, random_state, restore_random_state
from foreshock.curvature.surroundings import surroundings
from foreshock.distributed import sharded
from foreshock.errors import UsageError

Losses = Callable[[], Tensor]


class Evaluation:
    """Evaluates per-example losses at weights that it writes into the parameters; open it with `with`.

    Every evaluation begins with the random streams as they were when this was made, so dropout drops the same, and with
    the buffers as they were. Everything is put back at the end: values, storage, `.grad`, streams, modes, hooks.

    Args:
        params: the parameters.
        modules: the modules that are run.
        dtype: the type that is computed in, at least; None for float32 or the parameters' own where it is wider.
    """

    def __init__(
        self, params: Sequence[Tensor], modules: Sequence[nn.Module], dtype: torch.dtype | None = None
    ) -> None:
        self.params = tuple(params)
        self.modules = tuple(dict.fromkeys(inner for root in modules for inner in root.modules()))
        self.dtype = dtype
        self.gradients = 0
        self._start = random_state()

    @property
    def eps(self) -> float:
        """The machine epsilon of what is computed."""
        least = self.dtype or torch.float32
        return max(torch.finfo(torch.promote_types(param.dtype, least)).eps for param in self.params)

    @contextmanager
    def opened(self) -> Iterator[Evaluation]:
        """Lets values be written and losses be computed inside; puts everything back."""
        copies = [param.detach().clone() for param in self.params]
        with harmless(self.params, self.modules), unseen(self.modules):
            try:
                with widened(self.params, self.dtype or torch.float32, self.modules):
                    yield self
            finally:
                for param, copy in zip(self.params, copies, strict=True):
                    param.data.copy_(copy)

    def put(self, before: Sequence[Tensor], after: Sequence[Tensor], s: float) -> None:
        """Writes before + s (after - before) into the parameters."""
        with torch.no_grad():
            for param, start, end in zip(self.params, before, after, strict=True):
                target = param.data
                if s in (0.0, 1.0):
                    target.copy_(end if s else start)
                else:
                    target.copy_(torch.lerp(start.detach().to(target), end.detach().to(target), s))

    def losses(self, losses: Losses) -> Tensor:
        """Returns the losses at the parameters as they are, shape (n,), float64."""
        with self._once(), torch.no_grad():
            return per_example(losses()).detach().double()

    def gradient(self, losses: Losses, weights: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Returns the gradients of sum_i w_i l_i by the wanted parameters, None for the others."""
        self.gradients += 1
        with self._once():
            leaves = [param for param, want in zip(self.params, wanted, strict=True) if want]
            for leaf in leaves:
                leaf.requires_grad_()
            found = per_example(losses())
            if not found.requires_grad:
                raise UsageError(
                    "per_example_loss: the losses have no graph: they were detached, computed under no_grad, or do not "
                    "depend on params"
                )
            total = (found * weights.to(found)).sum()
            parts = iter(torch.autograd.grad(total, leaves, allow_unused=True))
            return [next(parts) if want else None for want in wanted]

    @contextmanager
    def _once(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(harmless(self.params, self.modules))
            stack.enter_context(unseen(self.modules))
            restore_random_state(self._start)
            stack.enter_context(surroundings(self.modules, self.params[0].device, exact=False))
            yield


def per_example(losses: object) -> Tensor:
    """Returns what a closure gave, if it is one loss for each example.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(losses, Tensor):
        raise UsageError(f"per_example_loss: must return a tensor of shape (n,), got {type(losses).__name__}")
    if losses.dim() != 1 or not losses.numel() or not losses.is_floating_point():
        raise UsageError(
            f"per_example_loss: must return one loss for each example, shape (n,), got {tuple(losses.shape)} of "
            f"{losses.dtype}; pass reduction='none', and take the mean over all but the first dimension"
        )
    return losses


def listed(params: object, before: object, after: object) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns parameters and values as lists, the values copied where they share memory with the parameters.

    Raises:
        UsageError: they do not belong together.
    """
    leaves = list(params)  # type: ignore[call-overload]
    if not leaves or not all(isinstance(param, Tensor) for param in leaves):
        raise UsageError("attribute(params): a list of tensors, as list(model.parameters()) gives")
    if any(sharded(param) for param in leaves):
        raise UsageError(
            "attribute(params): sharded parameters (FSDP2, tensor parallelism) cannot be moved along a step here; "
            "attribute on one process, with the whole model"
        )
    memory = {param.untyped_storage().data_ptr() for param in leaves}
    values = []
    for name, given in (("before", before), ("after", after)):
        found = list(given)  # type: ignore[call-overload]
        if [tuple(value.shape) for value in found] != [tuple(param.shape) for param in leaves]:
            raise UsageError(
                f"attribute({name}): tensors shaped like params, in their order; got {len(found)} for {len(leaves)}"
            )
        values.append(
            [v.detach().clone() if v.untyped_storage().data_ptr() in memory else v.detach() for v in found]
        )
    return leaves, values[0], values[1]
