"""How an optimizer keeps its second moment: v_t = keep * v_{t-1} + admit * g_t^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """Where the second moment is and how it moves.

    Attributes:
        key: its name in the optimizer's state.
        keep: factor of the old value; beta2 for Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), alpha for
            RMSprop, rho for Adadelta, 1 for Adagrad.
        admit: factor of the new squared gradient; 1 - beta2 for Adam, 1 for Adagrad.
        eps: what is added to the root of v in the denominator.
        corrected: whether v is divided by 1 - keep^t before use.
        divides: whether the step is lr * (something) / (sqrt(v) + eps), so that `effective_step` makes sense.
        decay: coupled L2 coefficient: v sees g + decay * theta (minus g where the optimizer maximizes).
        maximizes: whether the optimizer climbs.
    """

    key: str
    keep: float
    admit: float
    eps: float
    corrected: bool
    divides: bool = True
    decay: float = 0.0
    maximizes: bool = False

    def admit_less(self, stored: torch.dtype) -> float:
        """Returns `admit`, less a few roundings of the type that v is stored in: v_t - admit_less * g^2 is then never
        negative, and g^2/v_{t-1} saturates where v_{t-1} is lost to rounding."""
        return self.admit * (1.0 - _ROUNDINGS * torch.finfo(stored).eps)

    def least(self, working: torch.dtype) -> float:
        """Returns the floor of keep * v_{t-1}: that of eps^2, below which eps rules the denominator."""
        return max(self.keep * self.eps**2, torch.finfo(working).tiny)


_ROUNDINGS = 4.0

# optimizers whose decay enters the moments; AdamW and the decoupled variants shrink the parameter instead
_COUPLED = frozenset({"Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"})


def second_moment(optimizer: Optimizer, group: Mapping[str, Any]) -> SecondMoment | None:
    """Returns how this group's second moment is kept, or None where there is none (SGD), or a factored or a maximum
    one (Adafactor, Adamax).

    Third-party optimizers are recognised by torch's conventions: `betas` in the group and `exp_avg_sq` in the state.
    """
    kind = type(optimizer).__name__
    eps = _number(group.get("eps"))
    decay = _number(group.get("weight_decay")) if kind in _COUPLED and not group.get("decoupled_weight_decay") else 0.0
    rest = {"decay": decay, "maximizes": bool(group.get("maximize", False))}
    if kind == "Adagrad":
        return SecondMoment("sum", 1.0, 1.0, eps, corrected=False, **rest)  # type: ignore[arg-type]
    if kind in ("RMSprop", "Adadelta"):
        keep = float(group["alpha" if kind == "RMSprop" else "rho"])
        divides = kind == "RMSprop" and not group.get("centered", False)
        return SecondMoment("square_avg", keep, 1.0 - keep, eps, False, divides, **rest)  # type: ignore[arg-type]
    betas = group.get("betas")
    if kind == "Adamax" or not isinstance(betas, (tuple, list)) or len(betas) < 2 or not 0.0 < float(betas[1]) < 1.0:
        return None
    keep = float(betas[1])
    divides = not group.get("amsgrad", False)  # AMSGrad divides by the running maximum instead
    return SecondMoment("exp_avg_sq", keep, 1.0 - keep, eps, True, divides, **rest)  # type: ignore[arg-type]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
