"""What a GradScaler has to say about the gradients of an attempt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from foreshock import attach


class Scaling:
    """The loss scale that is still in the gradients, and whether the scaler has found an overflow in them.

    Args:
        optimizer: of the gradients; a scaler leaves its scale and its verdict with it where it is a fused one.
        found: device -> verdict, of a scaler that has taken its scale out of the gradients.
    """

    def __init__(self, optimizer: Optimizer, found: Mapping[Any, Tensor] | None = None) -> None:
        self._found = found
        self._scale = attach.scale_of(optimizer) if found is None else None
        self._veto = attach.veto_of(optimizer) if found is None else None

    def unscale(self, values: dict[str, float]) -> None:
        """Takes the scale out of the norm of the gradients, where it is known; waits for the device.

        Where the scale has made the norm overflow and no gradient, the norm is not known.
        """
        if self._scale is None or "grad_norm" not in values:
            return
        values["grad_norm"] /= float(self._scale)
        if not (math.isfinite(values["grad_norm"]) or self.overflow()):
            values.pop("grad_norm")

    def overflow(self) -> bool:
        """Returns whether the scaler refuses the step; waits for the device."""
        verdicts = [] if self._found is None else [*self._found.values()]
        verdicts += [] if self._veto is None else [self._veto]
        return any(float(each) > 0.0 for each in verdicts)
