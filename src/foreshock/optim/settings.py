"""What the ways to make S3's update are told: one group's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor

__all__ = ["Settings", "settings_of"]


class Settings(TypedDict):
    """One group's settings as the update needs them.

    Attributes:
        lr: a number, or a tensor of one element.
        beta: coefficient of the average of g.
        beta2: coefficient of the average of |g|^p, always a number here.
        p: order of the denominator.
        eps: added to the denominator.
        weight_decay: decoupled.
        nesterov: whether numerator and denominator mix in the last gradient once more.
        maximize: goes up instead of down.
    """

    lr: float | Tensor
    beta: float
    beta2: float
    p: float
    eps: float
    weight_decay: float
    nesterov: bool
    maximize: bool


def settings_of(group: Mapping[str, Any]) -> Settings:
    """Returns a parameter group's settings."""
    return {
        "lr": group["lr"],
        "beta": group["beta"],
        "beta2": group["beta"] if group["beta2"] is None else group["beta2"],
        "p": group["p"],
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
    }
