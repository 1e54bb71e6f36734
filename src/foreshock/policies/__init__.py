"""Policies: what a guard should do about an event. Functions of events and past actions; nothing here imports torch.

>>> from foreshock import policies
>>> policies.Proceed().takes_step, policies.Skip().takes_step
(True, False)
"""

from __future__ import annotations

from foreshock.policies.clip import clip_update
from foreshock.policies.compose import capped, cooldown, first_of, only
from foreshock.policies.curvature import floor
from foreshock.policies.default import default
from foreshock.policies.ling import ling
from foreshock.policies.nonfinite import refuse_nonfinite
from foreshock.policies.palm import palm
from foreshock.policies.sight import Policy, Sight, seen
from foreshock.run.action import (
    KINDS,
    Action,
    ClipUpdate,
    CutLr,
    ExactSoftmax,
    Floor,
    Proceed,
    Refill,
    RepairMoments,
    Rollback,
    Scale,
    Skip,
    Stop,
)

__all__ = [
    "KINDS",
    "Action",
    "ClipUpdate",
    "CutLr",
    "ExactSoftmax",
    "Floor",
    "Policy",
    "Proceed",
    "Refill",
    "RepairMoments",
    "Rollback",
    "Scale",
    "Sight",
    "Skip",
    "Stop",
    "capped",
    "clip_update",
    "cooldown",
    "default",
    "first_of",
    "floor",
    "ling",
    "only",
    "palm",
    "refuse_nonfinite",
    "seen",
]
