"""Forward passes that none of this library's own hooks on the model takes for the training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

__all__ = ["unseen"]

_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unseen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Takes the library's own hooks (histories, probes) away from modules inside; the user's stay, in their order."""
    tables = [table for module in modules for name in _TABLES if (table := module.__dict__.get(name))]
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


def _ours(hook: Callable[..., Any]) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    place = getattr(hook, "__module__", None) or type(hook).__module__
    return str(place).partition(".")[0] == __name__.partition(".")[0]
