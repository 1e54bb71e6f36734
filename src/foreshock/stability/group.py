"""What a live optimizer is set to, and how many steps it has taken: read at call time, with one wait for the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError

__all__ = ["Group", "groups", "host", "lifted"]


@dataclass(frozen=True, slots=True)
class Group:
    """The parameters of one param group that a step moves, with all that decides how.

    Attributes:
        optimizer: whose group it is.
        settings: the group's settings, tensors (lr of a capturable optimizer) turned into numbers.
        params: those the step moves, in the group's order.
        states: the optimizer's state of each.
        grads: gradient of each as the optimizer is given it, None to read the state as it is stored.
        steps: number of each one's step that is read: the next with gradients, the last without.
        places: position of each among all of the optimizer's parameters.
    """

    optimizer: Optimizer
    settings: Mapping[str, Any]
    params: list[Tensor]
    states: list[Mapping[str, Any]]
    grads: list[Tensor] | None
    steps: list[float]
    places: list[int]

    @property
    def planned(self) -> bool:
        """Returns whether the reading is of the step about to be taken."""
        return self.grads is not None

    def refuse_shards(self) -> None:
        """Raises UsageError where a parameter is a shard, for methods whose step depends on whole tensors."""
        if any(hasattr(param, "to_local") for param in self.params):
            raise UsageError(
                f"the step of {type(self.optimizer).__name__} depends on whole tensors, which a shard does not know; "
                "read its weights on unsharded parameters"
            )

    def stored(self, key: str) -> list[Tensor]:
        """Returns a moment of each parameter in working precision, zeros where it does not exist yet."""
        return [
            lifted(state[key], param) if isinstance(state.get(key), Tensor) else torch.zeros_like(lifted(param, param))
            for state, param in zip(self.states, self.params, strict=True)
        ]

    def numbers(self, key: str, default: float) -> list[float]:
        """Returns a number kept in the state of each parameter, `default` where there is none yet."""
        return host(state.get(key, default) for state in self.states)

    def gradients(self, l2: float = 0.0) -> list[Tensor]:
        """Returns what enters the moments: g, or -g where the optimizer climbs, plus l2 theta. Never written to."""
        if self.grads is None:
            return []
        grads = [lifted(_dense(grad), param) for grad, param in zip(self.grads, self.params, strict=True)]
        if self.settings.get("maximize"):
            grads = list(torch._foreach_neg(grads))
        if l2 and grads:
            grads = list(torch._foreach_add(grads, [lifted(param, param) for param in self.params], alpha=l2))
        return grads


def groups(optimizer: Optimizer, grads: Sequence[Tensor | None] | None, *, stateless: bool = False) -> list[Group]:
    """Returns the param groups of an optimizer, without the parameters that a step leaves alone.

    With gradients these are the ones without a gradient; without, those that have no state while others have.

    Args:
        optimizer: a bare torch optimizer.
        grads: one for each parameter in the order of the groups, or None.
        stateless: whether the optimizer can be read before it has taken a step.

    Errors: UsageError for complex parameters, and without gradients before the first step.
    """
    result, at = [], 0
    numbers = iter(host(value for group in optimizer.param_groups for value in _scalars(optimizer, group)))
    for group in optimizer.param_groups:
        settings = {key: _number(value, numbers) for key, value in group.items() if key != "params"}
        states = [_state(optimizer, param) for param in group["params"]]
        steps = [next(numbers) for _ in states]
        params = list(group["params"])
        if any(param.is_complex() for param in params):
            raise UsageError("complex parameters have no curvature in this sense; hold real and imaginary parts apart")
        if grads is not None:
            moved = [grads[at + place] is not None for place in range(len(params))]
        else:
            begun = [bool(state) and step != 0 for state, step in zip(states, steps, strict=True)]
            fresh = stateless and not any(bool(state) for state in states)
            moved = [param.requires_grad if fresh else each for param, each in zip(params, begun, strict=True)]
        kept = [place for place, each in enumerate(moved) if each]
        result.append(
            Group(
                optimizer,
                settings,
                [params[place] for place in kept],
                [states[place] for place in kept],
                None if grads is None else [each for each in grads[at : at + len(params)] if each is not None],
                [steps[place] + (grads is not None) for place in kept],
                [at + place for place in kept],
            )
        )
        at += len(params)
    if grads is None and not stateless and not any(group.params for group in result):
        raise UsageError(
            f"{type(optimizer).__name__} has taken no step yet, so its denominators do not exist; "
            "pass grads, the gradients of the step about to be taken"
        )
    return result


def host(values: Iterable[object]) -> list[float]:
    """Returns numbers and one-element tensors as floats; the tensors of one device come over in one transfer."""
    listed = list(values)
    result = [float("nan") if isinstance(value, Tensor) else float(value) for value in listed]  # type: ignore[arg-type]
    waiting: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(listed):
        if isinstance(value, Tensor):
            waiting.setdefault((value.device, value.dtype), []).append(place)
    for places in waiting.values():
        stacked = torch.stack([_plain(listed[place]).detach().reshape(()) for place in places])
        for place, number in zip(places, stacked.tolist(), strict=True):
            result[place] = float(number)
    return result


def lifted(tensor: Tensor, param: Tensor) -> Tensor:
    """Returns a tensor off its graph in a parameter's working precision: its own, and float32 at the least."""
    return tensor.detach().to(torch.promote_types(param.dtype, torch.float32))


def _state(optimizer: Optimizer, param: Tensor) -> Mapping[str, Any]:
    # .get: the state is a defaultdict, and looking into it must not add to it
    found = optimizer.state.get(param)
    return found if isinstance(found, Mapping) else {}


def _scalars(optimizer: Optimizer, group: Mapping[str, Any]) -> Iterable[object]:
    """Yields everything of a group that may sit on a device: settings first, then the step of each parameter."""
    for key, value in group.items():
        if key != "params":
            yield from (each for each in _items(value) if _is_number(each))
    for param in group["params"]:
        state = _state(optimizer, param)  # SGD counts nothing: a state says that it has begun
        yield state.get("step", group.get("step", group.get("k", 1 if state else 0)))


def _items(value: object) -> Iterable[object]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _number(value: object, numbers: Iterable[float]) -> object:
    if _is_number(value):
        return next(iter(numbers))
    if isinstance(value, (tuple, list)):
        return tuple(_number(each, numbers) for each in value)
    return value


def _plain(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _dense(grad: Tensor) -> Tensor:
    return grad.coalesce().to_dense() if grad.is_sparse else grad
