"""How one tensor's step was made of its gradient, of momentum, and of weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Factor = Tensor | float


class Pieces(NamedTuple):
    """What a step consists of, each shaped like the tensor; they add up to what the optimizer writes.

    Attributes:
        batch: what the gradient of this step does.
        history: what momentum brings along from steps before.
        l2: what decay does that is added to the gradient.
        decay: what decay does by itself.
    """

    batch: Tensor
    history: Tensor
    l2: Tensor
    decay: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One tensor's step, linear in its gradient with the denominator frozen at what the step divided by::

        g' = sign g + l2 theta
        m  = keep m_before + admit g'
        theta <- theta - decay theta - (through m + direct g')

    `Attribution` splits steps along these lines; a window of steps follows m from one to the next.

    Attributes:
        momentum: m_before, None where there is none.
        keep: how much of it stays.
        admit: how the gradient enters it: a number, or entry by entry.
        through: what multiplies m in the step.
        direct: what multiplies the gradient that passes momentum by.
        l2: coupled weight decay.
        decay: what the tensor loses by itself, such as lr weight_decay for AdamW.
        sign: -1 where the optimizer maximizes.

    >>> terms = Terms(momentum=torch.tensor([2.0]), keep=0.5, admit=1.0, through=0.1)
    >>> [round(float(piece), 6) for piece in terms.pieces(torch.tensor([1.0]), torch.tensor([4.0]))]
    [-0.4, -0.1, 0.0, 0.0]
    """

    momentum: Tensor | None = None
    keep: float = 0.0
    admit: Factor = 0.0
    through: Factor = 0.0
    direct: Factor = 0.0
    l2: float = 0.0
    decay: float = 0.0
    sign: float = 1.0

    @property
    def gain(self) -> Factor:
        """What multiplies g' in this step, momentum and direct way together."""
        return self.through * self.admit + self.direct

    def pieces(self, theta: Tensor, grad: Tensor) -> Pieces:
        """Returns the parts of the step from `theta` with a gradient, all of the shape of `theta`."""
        gain, zero = self.gain, torch.zeros_like(theta)
        return Pieces(
            batch=grad * gain * -self.sign,
            history=zero if self.momentum is None else self.momentum.to(theta) * self.through * -self.keep,
            l2=theta * gain * -self.l2 if self.l2 else zero,
            decay=theta * -self.decay if self.decay else zero,
        )
