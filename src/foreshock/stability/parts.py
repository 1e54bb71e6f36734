"""What a denominator is made of: the root of a second moment, eps, and the corrections that multiply them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

__all__ = ["Fading", "Parts", "corrected", "fading", "uncorrected"]


@dataclass(frozen=True, slots=True)
class Fading:
    """How a denominator front (root + eps) goes on if no gradient comes any more.

    Attributes:
        beta2: coefficient of the second moment, which the root is taken of.
        step: number of the step it is at.
        front: what multiplies root and eps at a step.
        inside: what multiplies the square root of the second moment to give the root, at a step.
    """

    beta2: float
    step: float
    front: Callable[[float], float]
    inside: Callable[[float], float]

    def after(self, steps: int) -> tuple[float, float]:
        """Returns (front, what the root has been multiplied by) so many steps later."""
        then = self.step + steps
        return self.front(then), self.beta2 ** (steps / 2) * self.inside(then) / self.inside(self.step)


@dataclass(frozen=True, slots=True)
class Parts:
    """A denominator P = front (root + eps), for those optimizers whose P has this form.

    Attributes:
        front: what multiplies root and eps, as 1 - beta1^t in Adam.
        eps: as the optimizer is set.
        fading: how it goes on without gradients; None where it does not decay by one factor in every entry.
    """

    front: float
    eps: float
    fading: Fading | None = None


def uncorrected(step: float) -> float:
    """Returns 1: no correction at any step."""
    return 1.0


def corrected(beta: float, step: float, *, power: float = 1.0) -> float:
    """Returns (1 - beta^step)^power.

    >>> corrected(0.9, 1.0), corrected(0.75, 1.0, power=-0.5)
    (0.09999999999999998, 2.0)
    """
    return float((1.0 - beta**step) ** power)


@lru_cache(maxsize=64)  # the same object for all parameters of a group, which may then be taken together
def fading(beta1: float, beta2: float, step: float) -> Fading:
    """Returns how Adam's (1 - beta1^t)(sqrt(v/(1 - beta2^t)) + eps) goes on; beta1 = 0 for an uncorrected momentum.

    >>> front, root = fading(0.9, 0.99, 1000).after(200)
    >>> round(front, 6), round(root, 4)
    (1.0, 0.366)
    """
    return Fading(beta2, step, partial(corrected, beta1), partial(corrected, beta2, power=-0.5))
