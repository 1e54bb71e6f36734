"""A copy of an optimizer that can be stepped without anybody noticing."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.hooks import global_hooks_muted

__all__ = ["advance", "members", "parameters", "planned_step", "split", "twin"]

# they evaluate the loss inside step(), so that a gradient alone does not say what they will do
_NEEDS_CLOSURE = frozenset({"LBFGS", "SAM", "GSAM", "ASAM", "SophiaH", "AdaHessian"})
# classes of training frameworks that pass everything on to the optimizer they hold -> the attribute that holds it
_WRAPPERS = {"AcceleratedOptimizer": "optimizer", "LightningOptimizer": "_optimizer"}
# where a GradScaler leaves its factor for fused optimizers: gradients given to a twin are the true ones
_SCALER = frozenset({"grad_scale", "found_inf"})


def members(optimizer: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """Returns the optimizers of a sequence, wrappers of training frameworks taken off.

    Errors: UsageError for anything but optimizers, and where two of them share a parameter.
    """
    given = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    found = tuple(_bare(each) for each in given)
    seen: set[int] = set()
    for each in found:
        ids = [id(param) for group in each.param_groups for param in group["params"]]
        if not seen.isdisjoint(ids):
            raise UsageError(f"{type(each).__name__} steps a parameter that another of the optimizers steps too")
        seen.update(ids)
    if not found:
        raise UsageError("optimizer is an empty sequence; give at least one torch optimizer")
    return found


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Returns the parameters of an optimizer, group after group."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def split(
    optimizers: Sequence[Optimizer], grads: Sequence[Tensor | None] | None
) -> list[tuple[Optimizer, list[Tensor | None] | None]]:
    """Returns each optimizer with its share of `grads`, a list like all their parameters one after the other.

    Errors: UsageError where a length or a shape does not fit.
    """
    if grads is None:
        return [(each, None) for each in optimizers]
    params = [param for each in optimizers for param in parameters(each)]
    if len(grads) != len(params):
        raise UsageError(
            f"grads has {len(grads)} entries for {len(params)} parameters; give one for each, None where there is none"
        )
    for place, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None and grad.shape != param.shape:
            raise UsageError(
                f"grads[{place}] has shape {tuple(grad.shape)}, its parameter {tuple(param.shape)}; "
                "give grads in the order of the optimizer's groups"
            )
    shares: list[tuple[Optimizer, list[Tensor | None] | None]] = []
    at = 0
    for each in optimizers:
        size = len(parameters(each))
        shares.append((each, list(grads[at : at + size])))
        at += size
    return shares


def twin(optimizer: Optimizer, dtype: torch.dtype | None = None) -> tuple[Optimizer, list[Tensor]]:
    """Returns (copy, parameters): an optimizer of the same class and state on cloned parameters, without hooks.

    Nothing of the copy is shared with the original, so that stepping it changes nothing else. Methods replaced on the
    instance (a scheduler's counter around `step`, a compiled `step`) are left out.

    Args:
        optimizer: any torch optimizer.
        dtype: cast parameters and floating-point state to it; their own by default.

    Errors: UsageError where the optimizer holds something that cannot be copied.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> other, [clone] = twin(torch.optim.SGD([weight], lr=0.5))
    >>> clone.grad = torch.ones(2)
    >>> _ = other.step()
    >>> clone.tolist(), weight.tolist()
    ([0.5, 0.5], [1.0, 1.0])
    """
    made = _copy_optimizer(_bare(optimizer), {}, dtype)
    if dtype is not None:
        for group in made.param_groups:
            group.update({name: False for name in ("fused", "foreach") if group.get(name) is not None})
    return made, parameters(made)


def advance(optimizer: Optimizer, grads: Sequence[Tensor | None]) -> None:
    """Takes one step of a twin with these gradients: no hook fires and no random stream moves.

    Errors: UsageError where the optimizer's own step fails.
    """
    params = parameters(optimizer)
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.detach().to(param.dtype, copy=True)
    devices = sorted({param.get_device() for param in params if param.is_cuda})
    try:
        with global_hooks_muted(), torch.random.fork_rng(devices), torch.no_grad():
            optimizer.step()
    except Exception as error:
        raise UsageError(f"a copy of {type(optimizer).__name__} could not take a step: {error}") from error
    for param in params:
        param.grad = None


def planned_step(optimizer: Optimizer | Sequence[Optimizer], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Returns theta_{t+1} - theta_t, the move that the optimizer would make with these gradients.

    The step is taken by a copy: it is the very step of the optimizer's own code, bit for bit, and the optimizer, its
    state, the parameters and the random streams stay as they are. Costs a copy of parameters and state for the moment.

    Args:
        optimizer: one optimizer, or several over disjoint parameters.
        grads: gradients in the order of the optimizer's groups, None where a parameter has none.

    Errors: UsageError for optimizers that evaluate the loss inside their step (LBFGS, SAM).

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> planned_step(torch.optim.SGD([weight], lr=0.5), [torch.ones(2)])[0].tolist()
    [-0.5, -0.5]
    """
    moves: list[Tensor] = []
    for each, share in split(members(optimizer), grads):
        if type(each).__name__ in _NEEDS_CLOSURE:
            raise UsageError(
                f"{type(each).__name__} evaluates the loss inside step(), so its move does not follow from a gradient; "
                "take the step yourself and subtract the parameters"
            )
        made, clones = twin(each)
        assert share is not None
        advance(made, share)
        originals = [param.detach() for param in parameters(each)]
        moves += [clone.detach().sub_(before) for clone, before in zip(clones, originals, strict=True)]
    return moves


def _bare(optimizer: object) -> Optimizer:
    """Takes the wrappers of training frameworks off."""
    inner: object = optimizer
    while type(inner).__name__ in _WRAPPERS:
        inner = getattr(inner, _WRAPPERS[type(inner).__name__])
    if not isinstance(inner, Optimizer):
        raise UsageError(
            f"optimizer must be a torch.optim.Optimizer or a sequence of them, not {type(optimizer).__name__}"
        )
    return inner


def _copy_optimizer(optimizer: Optimizer, memo: dict[int, Any], dtype: torch.dtype | None) -> Optimizer:
    made: Optimizer = object.__new__(type(optimizer))
    memo[id(optimizer)] = made
    tracked = not any(group.get("differentiable") for group in optimizer.param_groups)
    for param in parameters(optimizer):
        if id(param) not in memo:
            clone = torch.nn.Parameter(_cast(param.detach().clone(), dtype), param.requires_grad and tracked)
            clone.__dict__.update(param.__dict__)
            memo[id(param)] = clone
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            made.__dict__[name] = OrderedDict()
        elif name not in _SCALER and not (callable(value) and hasattr(type(optimizer), name)):
            try:
                made.__dict__[name] = _copied(value, memo, dtype)
            except Exception as error:
                raise UsageError(
                    f"{type(optimizer).__name__}.{name} cannot be copied ({error}), so no copy of the optimizer can be "
                    "stepped; register a rule for its class with foreshock.stability.register"
                ) from error
    return made


def _copied(value: Any, memo: dict[int, Any], dtype: torch.dtype | None) -> Any:
    """Copies deeply, each object once; tensors are cloned off their graph, nested optimizers become twins."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        memo[id(value)] = made = _cast(value.detach().clone(), dtype)
        return made
    if isinstance(value, Optimizer):
        return _copy_optimizer(value, memo, dtype)
    if type(value) in (dict, OrderedDict, defaultdict):
        result: Any = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        memo[id(value)] = result
        result.update({_key(key, memo): _copied(item, memo, dtype) for key, item in value.items()})
        return result
    if type(value) is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(_copied(item, memo, dtype) for item in value)
        return items
    if type(value) is tuple:
        return tuple(_copied(item, memo, dtype) for item in value)
    return copy.deepcopy(value, memo)


def _key(key: object, memo: Mapping[int, Any]) -> Any:
    if type(key) is int and isinstance(memo.get(key), torch.nn.Parameter):  # kept by the id of a parameter
        return id(memo[key])
    return memo.get(id(key), key)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
