"""Hooks lifted for a while: this library's own, while the user's stay, and those that torch calls around all steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.optim import optimizer as torch_optimizer

MODULE_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
"""Where a module keeps its hooks."""


@contextmanager
def lifted(tables: Iterable[dict[int, Any]]) -> Iterator[None]:
    """Takes this library's own hooks out of some tables, and puts them back in their places.

    Args:
        tables: key -> hook, as modules and optimizers keep them.
    """
    kept = [(table, dict(table)) for table in tables if any(_ours(hook) for hook in table.values())]
    for table, before in kept:
        for key in [key for key, hook in before.items() if _ours(hook)]:
            del table[key]
    try:
        yield
    finally:
        for table, before in kept:
            fresh = {key: hook for key, hook in table.items() if key not in before}
            table.clear()
            table.update(before | fresh)


@contextmanager
def global_hooks_muted() -> Iterator[None]:
    """Hides the hooks that torch calls around every optimizer's step; they belong to the run, not to a copy."""
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    kept = {name: getattr(torch_optimizer, name) for name in names}
    if not any(kept.values()):
        yield
        return
    try:
        for name in names:
            setattr(torch_optimizer, name, OrderedDict())
        yield
    finally:
        for name, hooks in kept.items():
            setattr(torch_optimizer, name, hooks)


def _ours(hook: Callable[..., Any]) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    place = getattr(hook, "__module__", None) or type(hook).__module__
    return str(place).partition(".")[0] == __name__.partition(".")[0]
