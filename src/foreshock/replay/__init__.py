"""Experiments on a training around one of its events: the same steps again, with one thing changed at a time.

`foreshock.replay(...)` is `foreshock.replay.replay.replay`; `foreshock.what_if` holds the changes.
"""

from __future__ import annotations

import sys
from types import ModuleType

from foreshock.replay import what_if
from foreshock.replay.arm import Arm
from foreshock.replay.aside import aside
from foreshock.replay.replay import replay
from foreshock.replay.result import ArmResult, Replay
from foreshock.replay.scene import NotApplicable, Scene

__all__ = ["Arm", "ArmResult", "NotApplicable", "Replay", "Scene", "aside", "replay", "what_if"]


class _CallableModule(ModuleType):
    """A module that can be called: `foreshock.replay(...)` is `foreshock.replay.replay(...)`."""

    __call__ = staticmethod(replay)


sys.modules[__name__].__class__ = _CallableModule
