"""Sees the first forward pass of a step begin, whichever part of the model a loop calls first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class Entrance:
    """Hooks on a model that tell when it, or where it is never called itself one of its parts, is about to be used.

    Told are only calls in training mode with gradients enabled, and none of a compiled module's inner calls: the
    hooks vanish as such a module is traced.

    Args:
        model: whose forward passes begin.
        told: called before each of them.
    """

    def __init__(self, model: nn.Module, told: Callable[[], object]) -> None:
        self._model, self._told = model, told
        self._handles: list[Any] = []
        self._parts: list[Any] = []  # handles of the parts, until the model itself is seen to be called

    def open(self) -> None:
        """Attaches the hooks; a scripted module has none."""
        if isinstance(self._model, torch.jit.ScriptModule):
            return
        whole, part = _Hook(self._whole), _Hook(self._part)
        self._handles = [self._model.register_forward_pre_hook(whole, prepend=True)]  # before FSDP gathers
        if not hasattr(self._model, "_orig_mod"):  # what a compiled module calls is traced
            self._parts = [each.register_forward_pre_hook(part, prepend=True) for each in _parts(self._model)]

    def close(self) -> None:
        """Takes them away."""
        for handle in [*self._handles, *self._parts]:
            handle.remove()
        self._handles, self._parts = [], []

    def _whole(self, module: nn.Module) -> None:
        for handle in self._parts:
            handle.remove()
        self._parts = []
        self._part(module)

    def _part(self, module: nn.Module) -> None:
        if module.training and torch.is_grad_enabled():
            self._told()


class _Hook:
    """A hook that copies of the model, by `copy.deepcopy` as averages of weights make them or by pickle, do not have.

    They get `{}.get` in its place, which returns the arguments that it is given and needs nothing of this library.
    """

    def __init__(self, told: Callable[[nn.Module], object]) -> None:
        self._told = told

    def __call__(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling():
            self._told(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the parts that a model's methods call, those in lists and dicts of modules one by one."""
    for part in model.children():
        if isinstance(part, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(part)
        elif not isinstance(part, torch.jit.ScriptModule):
            yield part
