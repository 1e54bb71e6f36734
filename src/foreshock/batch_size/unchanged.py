"""A training put back bit for bit after steps that were only taken to be timed."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.hooks import MODULE_TABLES, lifted

__all__ = ["unchanged"]

TENSOR_TABLES = ("_backward_hooks", "_post_accumulate_grad_hooks")
STEP_TABLES = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@contextmanager
def unchanged(
    models: Iterable[nn.Module], optimizers: Iterable[Optimizer], others: Iterable[Any] = ()
) -> Iterator[None]:
    """Gives a while in which a training may be run, and undoes it: nothing of it stays, and nobody watches.

    Put back are parameters, buffers and gradients (their tensors stay the same objects), training modes, the
    optimizers' memory and groups, the `state_dict` of others (schedulers, scalers, data), and the random streams of
    torch, its devices, numpy and Python. This library's own hooks are lifted meanwhile.

    Args:
        models: modules that are trained.
        optimizers: that train them, and tensors beside them.
        others: with `state_dict` and `load_state_dict`.
    """
    models, optimizers, others = list(models), list(optimizers), list(others)
    tensors = _tensors(models, optimizers)
    values = [(each, each.detach().clone(), each.grad, None if each.grad is None else each.grad.detach().clone())
              for each in tensors]  # fmt: skip
    modes = [(module, module.training) for model in models for module in model.modules()]
    memories = [_memory(optimizer) for optimizer in optimizers]
    states = [copy.deepcopy(each.state_dict()) for each in others]
    streams = _streams()
    tables = [table for each in tensors for name in TENSOR_TABLES if (table := getattr(each, name, None))]
    tables += [getattr(module, name) for module, _ in modes for name in MODULE_TABLES]
    tables += [getattr(each, name) for each in optimizers for name in STEP_TABLES]
    try:
        with lifted(tables):
            yield
    finally:
        with torch.no_grad():
            for tensor, value, grad, grad_value in values:
                tensor.copy_(value)
                tensor.grad = grad
                if grad is not None and grad_value is not None:
                    grad.copy_(grad_value)
            for memory in memories:
                _put_back(*memory)
        for module, mode in modes:
            module.training = mode
        for each, state in zip(others, states, strict=True):
            each.load_state_dict(state)
        _set_streams(streams)


def _tensors(models: list[nn.Module], optimizers: list[Optimizer]) -> list[Tensor]:
    """Returns all parameters and buffers, each once."""
    found = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    found += [param for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]]
    return list({id(tensor): tensor for tensor in found}.values())


def _memory(optimizer: Optimizer) -> tuple[Optimizer, list[dict[str, Any]], dict[Any, Any]]:
    groups = [{name: _kept(value) for name, value in group.items()} for group in optimizer.param_groups]
    state = {
        param: {name: _kept(value) for name, value in held.items()} if isinstance(held, dict) else _kept(held)
        for param, held in optimizer.state.items()
    }
    return optimizer, groups, state


def _kept(value: Any) -> Any:
    """Returns a tensor with what was in it, so that the same tensor can be filled again; else a copy."""
    if isinstance(value, Tensor):
        return value, value.detach().clone()
    return list(value) if isinstance(value, list) else value


def _again(kept: Any) -> Any:
    if isinstance(kept, tuple) and len(kept) == 2 and isinstance(kept[0], Tensor):
        tensor, value = kept
        tensor.detach().copy_(value)
        return tensor
    return kept


def _put_back(optimizer: Optimizer, groups: list[dict[str, Any]], state: dict[Any, Any]) -> None:
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        group.clear()
        group.update({name: _again(value) for name, value in kept.items()})
    for param in [param for param in optimizer.state if param not in state]:
        del optimizer.state[param]
    for param, kept in state.items():
        if not isinstance(kept, dict):
            optimizer.state[param] = _again(kept)
            continue
        held = optimizer.state[param]
        held.clear()
        held.update({name: _again(value) for name, value in kept.items()})


def _streams() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices, np.random.get_state(), random.getstate()


def _set_streams(streams: tuple[Any, ...]) -> None:
    cpu, devices, numpys, pythons = streams
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)
    np.random.set_state(numpys)
    random.setstate(pythons)
