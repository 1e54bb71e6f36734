"""Operations on parameters caught in a forward pass, and their outputs tied to the tangents of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foreshock.attribution.arguments import arguments_of, tensors_of
from foreshock.attribution.caught import along, movement, opened, plain, routes
from foreshock.attribution.layouts import dimensions, places
from foreshock.curvature.harmless import random_state, restore_random_state
from foreshock.errors import UsageError

_MADE, _STILL, _OTHER = 1, 2, 0  # of parameters with tangents alone; of none; of other things as well


class CoupledError(UsageError):
    """A loss depends on activations of other examples, so that no slice of an output is an example's."""


class Tag(torch.autograd.Function):
    """Leaves an output as it is, and meets its gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, meet: Callable[[Tensor], None], over: bool) -> Tensor:
        ctx.meet = meet
        if not over:
            return output.clone()
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.meet(grads[0])
        return grads[0], None, None, None


@dataclass(slots=True)
class Met:
    """An output with a tangent, and what each backward pass made of the two, place by place."""

    shape: tuple[int, ...]
    half: bool
    number: int
    parts: list[Tensor] = field(default_factory=list)


class Catch(TorchFunctionMode):
    """Ties the outputs of operations on parameters to the tangents of those.

    Args:
        tangents: U, by the id of each parameter that has one.
        params: all parameters there are.
        deep: operations whose outputs' second dimension may have to do with examples, by their numbers among all
            calls of the forward pass.
        leave: operations to leave alone, likewise.

    Attributes:
        anchor: what every tied output depends on, so that a backward pass to it goes through them.
        met: the outputs.
        count: n, the examples, to be set before a backward pass.
        routed: whether anything went where other things sent it.
    """

    def __init__(
        self, tangents: dict[int, Tensor], params: Sequence[Tensor], deep: AbstractSet[int] = frozenset(),
        leave: AbstractSet[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.anchor = torch.zeros((), requires_grad=True)
        self.met: list[Met] = []
        self._tangents = dict(tangents)
        self._params = {id(param): param for param in params}
        self.count = 0
        self.routed = False
        self._deep, self._leave, self._number = deep, leave, 0
        self._states: dict[Any, int] = {}
        self._inputs: dict[Any, list[Any]] = {}  # what a tied operation was given beside parameters, by its node
        self._alive: list[Tensor] = []  # whose ids must not be used again

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or getattr(function, "__name__", "") == "__get__":
            return function(*args, **kwargs)
        self._number += 1
        inside = opened(function)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        given = list(tensors_of((args, kwargs)))
        states = {id(each): self._state_of(each) for each in given}
        self.routed |= routes(function, args)
        if _MADE not in states.values() or all(state == _MADE for state in states.values()):
            return function(*args, **kwargs)
        if function is F.batch_norm and arguments_of(function, args, kwargs)["training"]:
            raise CoupledError("statistics of the batch couple the examples")
        return self._mixed(function, args, kwargs, [each for each in given if states[id(each)] == _MADE], given)

    def _mixed(self, function: Any, args: Any, kwargs: Any, weights: list[Tensor], given: list[Tensor]) -> Any:
        """Runs an operation on parameters and other tensors, and ties its outputs."""
        number = self._number
        own = {id(each) for each in weights}
        inputs = [each.grad_fn for each in given if id(each) not in own and each.grad_fn is not None]
        before = None if plain(function) else random_state()
        result = function(*args, **kwargs)
        outputs = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, (list, tuple)) else []
        ours = [i for i, each in enumerate(outputs) if isinstance(each, Tensor) and each.grad_fn and each.dim()]
        if number in self._leave or not ours:
            return result
        after = None if before is None else random_state()
        try:
            moves = {id(each): self._tangent_of(each) for each in weights}
            if before is not None:
                restore_random_state(before)
            found = movement(function, args, kwargs, moves, outputs[ours[0]].dtype)
        except (NotImplementedError, RuntimeError):
            self._states.update((outputs[i].grad_fn, _OTHER) for i in ours)
            return result
        finally:
            if after is not None:
                restore_random_state(after)
        over = plain(function)
        for i in ours:
            tied = self._tied(outputs[i], found[i], inputs, number, over)
            outputs[i] = tied
        if isinstance(result, Tensor):
            return outputs[0]
        return type(result)(*outputs) if hasattr(result, "_fields") else type(result)(outputs)

    def _tied(self, output: Tensor, tangent: Tensor | None, inputs: list[Any], number: int, over: bool) -> Tensor:
        self._inputs[output.grad_fn] = inputs
        met = Met(tuple(output.shape[:2]), output.dtype == torch.float16, number)
        self.met.append(met)

        def meet(gradient: Tensor) -> None:
            if tangent is not None and self.count:  # not in a gradient that is part of the losses
                dims = dimensions(met.shape, self.count, second=number in self._deep)
                met.parts.append(places(gradient, tangent, dims))

        tie: Any = Tag.apply
        tied: Tensor = tie(output, self.anchor, meet, over and not output._is_view())
        self._states[tied.grad_fn] = _OTHER
        return tied

    def _state_of(self, tensor: Tensor) -> int:
        """Returns what a tensor is made of: parameters with tangents alone, other things as well, or constants."""
        if id(tensor) in self._tangents:
            return _MADE
        if not tensor.requires_grad:
            return _STILL
        if tensor.grad_fn is None:
            return _STILL if id(tensor) in self._params else _OTHER
        return self._state(tensor.grad_fn)

    def _state(self, node: Any) -> int:
        known = self._states.get(node)
        if known is None:
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                known = self._state_of(leaf)
            else:
                within = {self._state(following) for following, _ in node.next_functions if following is not None}
                known = _OTHER if _OTHER in within else _MADE if _MADE in within else _STILL
            self._states[node] = known
        return known

    def _tangent_of(self, tensor: Tensor) -> Tensor:
        """Returns the tangent of a parameter, or of what was made of parameters alone."""
        known = self._tangents.get(id(tensor))
        if known is None:
            pairs = [(param, self._tangents[key]) for key, param in self._params.items() if key in self._tangents]
            (known,) = along([tensor], [param for param, _ in pairs], [tangent for _, tangent in pairs])
            assert known is not None
        return known

    def uncaught(self, losses: Tensor) -> set[int]:
        """Returns the ids of the parameters with tangents that losses depend on other than through tied outputs."""
        found: set[int] = set()
        seen: set[Any] = set()
        waiting = [losses.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self._tangents:
                found.add(id(leaf))
            inputs = self._inputs.get(node)
            waiting += [following for following, _ in node.next_functions] if inputs is None else inputs
        return found
