"""Running somebody's closure without a trace: what it touched is put back, also when it raises."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hooks = dict[Any, Any]

_under_way: list[None] = []  # one for each `harmless` block that is open

_HOOK_TABLES = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def random_state() -> list[tuple[Callable[[Any], None], Any]]:
    """Returns the states of the global random streams, each with the function that puts it back.

    Those of torch (CPU, and the accelerators that were used), of `random`, and of numpy where it is loaded. Loaders and
    samplers with generators of their own are the business of `loader.Batches`.
    """
    state: list[tuple[Callable[[Any], None], Any]] = [(torch.set_rng_state, torch.get_rng_state())]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    if torch.backends.mps.is_available():
        state.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    state.append((random.setstate, random.getstate()))
    if "numpy" in sys.modules:
        import numpy as np

        state.append((np.random.set_state, np.random.get_state()))
    return state


def restore_random_state(state: Iterable[tuple[Callable[[Any], None], Any]]) -> None:
    """Puts the random streams back."""
    for restore, value in state:
        restore(value)


def same_random_state(a: Sequence[tuple[Any, Any]], b: Sequence[tuple[Any, Any]]) -> bool:
    """Returns whether no random number was drawn between two states."""
    return len(a) == len(b) and all(_same(x[1], y[1]) for x, y in zip(a, b, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)


def under_way() -> bool:
    """Returns whether what runs now is inside `harmless`: no step of a training, whatever its weights are."""
    return bool(_under_way)


@contextmanager
def harmless(
    params: Sequence[Tensor], model: nn.Module | Sequence[nn.Module] | None = None, *, values: bool = False
) -> Iterator[None]:
    """Puts back, whatever is raised in the block, everything that a forward and a backward pass touch.

    Random streams (torch, accelerators, `random`, numpy), `.grad` (the same tensor with the same numbers; inside the
    block it is None, so a `backward()` or `zero_grad()` in a closure cannot reach it), `requires_grad`, version
    counters, hooks of the parameters; of the modules their buffers (the same tensors with the same numbers), train and
    eval flags, one by one, and hooks.

    Args:
        params: parameters.
        model: the module, or modules, that are run; their parameters are meant as well.
        values: puts the parameters' numbers back as well, at the price of a copy of them meanwhile.
    """
    modules = list(dict.fromkeys(inner for root in _listed(model) for inner in root.modules()))
    owned = [param for module in modules for param in module._parameters.values() if param is not None]
    params = list({id(param): param for param in (*params, *owned)}.values())
    streams = random_state()
    grads = [param.grad if param.is_leaf else None for param in params]
    wants = [param.requires_grad for param in params]
    flags = [module.training for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]
    held = {id(b): (b, b.detach().clone(), b._version) for _, table in buffers for b in table.values() if b is not None}
    versions = [(param, param._version) for param in params]
    tables = [getattr(module, name) for module in modules for name in _HOOK_TABLES if hasattr(module, name)]
    tables += [param._backward_hooks for param in params if param._backward_hooks]
    hooks = [(table, dict(table)) for table in tables]
    copies = [param.detach().clone() for param in params] if values else []
    for param, grad in zip(params, grads, strict=True):
        if grad is not None:
            param.grad = None
    _under_way.append(None)
    try:
        yield
    finally:
        _under_way.pop()
        for param, copy in zip(params, copies, strict=False):
            param.data.copy_(copy)
        for param, grad, wanted in zip(params, grads, wants, strict=True):
            if param.is_leaf:
                if param.requires_grad != wanted:
                    param.requires_grad_(wanted)
                if param.grad is not grad:
                    param.grad = grad
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, table in buffers:
            if any(module._buffers.get(name) is not buffer for name, buffer in table.items()):
                module._buffers.update(table)
        for buffer, copy, _ in held.values():
            buffer.data.copy_(copy)  # .data: a version bumped here would make graphs that saved the buffer unusable
        _rewind_versions([*versions, *((buffer, version) for buffer, _, version in held.values())])
        for table, before in hooks:
            if len(table) != len(before) or any(table.get(key) is not hook for key, hook in before.items()):
                table.clear()
                table.update(before)
        restore_random_state(streams)


def _listed(model: nn.Module | Sequence[nn.Module] | None) -> Sequence[nn.Module]:
    if model is None:
        return ()
    return (model,) if isinstance(model, nn.Module) else model


def _rewind_versions(pairs: Iterable[tuple[Tensor, int]]) -> None:
    moved = [(tensor, version) for tensor, version in pairs if tensor._version != version]
    rewind = getattr(torch._C._autograd, "_unsafe_set_version_counter", None)
    if moved and rewind is not None:
        rewind(tuple(tensor for tensor, _ in moved), tuple(version for _, version in moved))


@contextmanager
def muted(tables: Sequence[Hooks]) -> Iterator[None]:
    """Empties dictionaries of hooks for the length of the block."""
    before = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            added = dict(table)
            table.clear()
            table.update(entries)
            table.update(added)
