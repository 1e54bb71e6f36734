"""Forward passes that none of this library's own hooks on the model takes for the training's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from foreshock.hooks import MODULE_TABLES, lifted

__all__ = ["unseen"]


def unseen(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Takes the library's own hooks (histories, probes) away from modules inside; the user's stay, in their order."""
    return lifted([table for module in modules for name in MODULE_TABLES if (table := module.__dict__.get(name))])
