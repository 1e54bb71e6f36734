"""How the outputs of a model change along a direction in parameters: to first order, and really."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foreshock.curvature.anatomy import anatomy
from foreshock.curvature.eigs import EigResult
from foreshock.curvature.graph import explained, silent
from foreshock.curvature.harmless import harmless
from foreshock.curvature.space import Space
from foreshock.curvature.surroundings import surroundings
from foreshock.errors import UsageError
from foreshock.landscape.called import modules_called
from foreshock.landscape.plane import Direction, direction_of
from foreshock.landscape.standing import standing_at

Outputs = Callable[[], Tensor]


def output_change(outputs: Outputs, params: Sequence[Tensor], direction: Direction) -> Tensor:
    """Returns J u, J = d outputs / d params: how the outputs change along a direction, to first order, exactly.

    Of the outputs' shape. The derivative of J'w by w, so that both passes are in reverse mode: forward mode is silently
    wrong through LayerNorm. It costs one forward and two backward passes and leaves no trace.

    Args:
        outputs: a function that computes them, `lambda: model(x)`.
        params: what they are differentiated by.
        direction: u, as tensors like the parameters, a flat vector, an `Edge` or an `EigResult` (its first).

    Raises:
        UsageError: outputs that are no tensor or have no graph, or a graph that cannot be differentiated twice.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    >>> output_change(lambda: x @ w, [w], torch.tensor([1.0, -1.0]))
    tensor([ 1.,  0., -3.])
    """
    return output_changes(outputs, params, [direction])[0]


def output_changes(
    outputs: Outputs, params: Sequence[Tensor], directions: EigResult | Sequence[Direction]
) -> list[Tensor]:
    """Returns J u for several directions, such as all of an `EigResult`; one backward pass each on a graph in common.

    Args:
        outputs, params: see `output_change`.
        directions: u_1, u_2, ...
    """
    space = Space(list(params))
    wanted = directions.directions if isinstance(directions, EigResult) else directions
    flat = [direction_of(space, direction) for direction in wanted]
    with _passing(_modules(outputs, space), space, gradients=True):
        value = _tensor(outputs())
        if not value.requires_grad:
            raise UsageError("outputs: they have no graph: detached, computed under no_grad, or from frozen parameters")
        with silent(anatomy(value, space.params)), explained():
            weight = torch.zeros_like(value, requires_grad=True)
            pulled = torch.autograd.grad(value, space.params, weight, create_graph=True, allow_unused=True)
            places = [i for i, grad in enumerate(pulled) if grad is not None and grad.requires_grad]
            if not places:
                raise UsageError("the outputs do not depend on any of the parameters")
            ends = [grad for grad in pulled if grad is not None and grad.requires_grad]
            changes = []
            for vector in flat:
                pieces = space.split(vector)
                (change,) = torch.autograd.grad(ends, weight, [pieces[i] for i in places], retain_graph=True)
                changes.append(change.detach())
    return changes


def real_change(
    outputs: Outputs, params: Sequence[Tensor], before: Sequence[Tensor] | Tensor, after: Sequence[Tensor] | Tensor
) -> Tensor:
    """Returns f(after) - f(before): how the outputs really changed over a step or a window, of the outputs' shape.

    Net changes depend on the parity of the number of steps where a mode alternates: look at single steps as well.

    Args:
        outputs, params: see `output_change`; the parameters stand at both points for a moment.
        before, after: tensors shaped like the parameters, or flat vectors.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> real_change(lambda: w ** 2, [w], torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([8.])
    """
    space = Space(list(params))
    found, modules = [], _modules(outputs, space)
    for values in (before, after):
        at = space.split(space.take(values).clone())
        with _passing(modules, space, gradients=False), standing_at(space.params, at):
            found.append(_tensor(outputs()).detach().clone())
    return found[1] - found[0]


def _modules(outputs: Outputs, space: Space) -> list[nn.Module]:
    if not callable(outputs):
        raise UsageError(f"outputs: a function that computes them is needed, got {type(outputs).__name__}")
    return modules_called(outputs, space.params)


@contextmanager
def _passing(roots: Sequence[nn.Module], space: Space, *, gradients: bool) -> Iterator[None]:
    modules = [module for root in roots for module in root.modules()]
    with harmless(space.params, roots), surroundings(modules, space.device), torch.set_grad_enabled(gradients):
        yield


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise UsageError(
            f"outputs: must be one tensor, got {type(value).__name__}; for a model that returns more, give a function "
            "that picks it"
        )
    return value
