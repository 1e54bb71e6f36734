"""Products on the graph of one gradient, kept: the cheapest exact route, 1.8-2.8 gradients each instead of 2.9-4.

Source: Pearlmutter 1994, Fast exact multiplication by the Hessian. Both derivatives are taken in reverse mode: the
routes through forward mode or `torch.func.jacrev` are silently wrong through LayerNorm (pytorch#198017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from foreshock.curvature.anatomy import Anatomy, anatomy
from foreshock.curvature.harmless import muted
from foreshock.errors import UsageError

# What torch's messages say of a backward pass that has no derivative.
_ONCE_ONLY = (
    "is not implemented", "once_differentiable", "double backward", "not differentiable", "differentiate twice",
    "not supported for", "incompatible with .grad()",
)  # fmt: skip


class NotTwiceError(UsageError):
    """The graph of a loss can be differentiated once, but not twice."""


class KeptGraph:
    """The gradient of one loss with the graph it was computed by; every product goes through that graph again.

    Python hooks of the parameters, of the loss and of modules (their full backward hooks) are silent meanwhile. What
    cannot be reached are hooks on other tensors and nodes of the graph: `register_hook` there is called by each pass
    and what it returns is used, and `retain_grad()` adds to that tensor's `.grad`. On a closure's graph, which nobody
    else sees, that harms nobody but its counts.

    Args:
        loss: a scalar with its graph.
        params: what it is differentiated by.
        facts: what the graph is made of, when known.

    Raises:
        NotTwiceError: the graph cannot be differentiated twice.
        UsageError: the loss does not depend on the parameters, or its graph was freed.
    """

    def __init__(self, loss: Tensor, params: Sequence[Tensor], facts: Anatomy | None = None) -> None:
        self._params = list(params)
        self.facts = anatomy(loss, params) if facts is None else facts
        if self.facts.once:
            raise NotTwiceError(not_twice(", ".join(self.facts.once)))
        with silent(self.facts), explained():
            found = torch.autograd.grad(loss, self._params, create_graph=True, allow_unused=True)
        if all(grad is None for grad in found):
            raise UsageError("the loss does not depend on any of the parameters")
        for i, grad in enumerate(found):
            if grad is not None and grad.layout != torch.strided:
                raise NotTwiceError(not_twice(f"the sparse gradient of params[{i}] (an embedding with sparse=True)"))
        self._versions = [param._version for param in self._params]
        # parameters that the loss does not use, or uses linearly, have rows of zeros
        self._curved = [i for i, grad in enumerate(found) if grad is not None and grad.requires_grad]
        if not self._curved and self.facts.custom:
            raise NotTwiceError(not_twice(", ".join(self.facts.custom)))
        self._found = list(found)
        self._grads = [grad for grad in found if grad is not None and grad.requires_grad]
        self.gradient: list[Tensor | None] = [None if grad is None else grad.detach() for grad in found]

    def multiply(self, vector: Sequence[Tensor], *, last: bool = False) -> list[Tensor | None]:
        """Returns H v as tensors shaped like the parameters, None for zeros.

        Args:
            vector: v, likewise.
            last: no product follows, so the graph is freed on the way, for a quarter less memory at the peak.
        """
        if not self._grads:
            return [None] * len(self._params)
        if any(param._version != seen for param, seen in zip(self._params, self._versions, strict=True)):
            raise UsageError(moved("the loss was computed, so its graph no longer belongs to them"))
        with silent(self.facts), explained():
            return list(
                torch.autograd.grad(
                    self._grads, self._params, [vector[i] for i in self._curved], retain_graph=not last,
                    allow_unused=True,
                )
            )

    def restricted(self, places: Sequence[int]) -> KeptGraph:
        """Returns the block of some parameters, on the same graph; its products differentiate by these alone."""
        block = object.__new__(KeptGraph)
        block.facts = self.facts
        block._params = [self._params[place] for place in places]
        block._versions = [self._versions[place] for place in places]
        block._found = [self._found[place] for place in places]
        block._curved = [i for i, grad in enumerate(block._found) if grad is not None and grad.requires_grad]
        block._grads = [grad for grad in block._found if grad is not None and grad.requires_grad]
        block.gradient = [self.gradient[place] for place in places]
        return block


def moved(since: str) -> str:
    """Returns the message for parameters that are no longer those that something was computed at."""
    return (
        f"the parameters were changed in place (by an optimizer step?) after {since}: "
        "take products before the step, or call refresh() on what was made of a closure"
    )


def not_twice(what: str) -> str:
    """Returns the message for a graph with a node that has no second derivative."""
    return (
        f"the graph of the loss cannot be differentiated twice because of {what}; compute it eagerly and with "
        "attention under sdpa_kernel(SDPBackend.MATH), or give a closure, so that this is done for you, or "
        "route='differences'"
    )


def silent(facts: Anatomy) -> AbstractContextManager[None]:
    """Silences the hooks on a graph for the length of a block."""
    return muted(facts.hooks) if facts.hooks else nullcontext()


@contextmanager
def explained() -> Iterator[None]:
    """Turns what autograd raises into what the caller can do about it."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if "backward through the graph a second time" in text or "after they have already been freed" in text:
            raise UsageError(
                "the graph of the loss was freed, by backward() on it: take products before backward(), or call "
                "backward(retain_graph=True)"
            ) from error
        if "modified by an inplace operation" in text:
            raise UsageError(moved("the loss was computed (or something else that its graph needs was)")) from error
        if any(sign in text for sign in _ONCE_ONLY):
            raise NotTwiceError(not_twice(f"this: {text.splitlines()[0]}")) from error
        raise
