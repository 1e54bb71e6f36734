"""Adam in numpy on problems small enough for their whole Hessian: what it did, and how near its edge each step was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "Hyper", "Problem", "Trail", "descend", "resume"]

Floats = npt.NDArray[np.float64]


class Problem(Protocol):
    """A loss with its derivatives, of parameters as one vector of n numbers."""

    @property
    def tensors(self) -> Mapping[str, slice]:
        """Returns the place of each named tensor in the vector."""
        ...

    def gradient(self, theta: Floats, rows: npt.NDArray[np.int64] | None = None) -> tuple[float, Floats]:
        """Returns the loss and its gradient (n,) at theta (n,), of the samples in `rows`, by default all."""
        ...

    def hessians(self, thetas: Floats) -> Floats:
        """Returns the Hessians (b, n, n) of the loss over all samples at b points (b, n)."""
        ...


@dataclass(frozen=True, slots=True)
class Hyper:
    """Adam's settings (Kingma and Ba 2015, arXiv 1412.6980); `corrected`: with bias corrections."""

    lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    corrected: bool = True


@dataclass(frozen=True, slots=True)
class Trail:
    """What a training did at each of its T steps: arrays of T rows; row t is of step t, before it is taken.

    Attributes:
        hyper: the settings.
        begun: steps taken before row 0.
        losses: over all samples, (T,).
        thetas: parameters, (T, n).
        grads: as the optimizer consumed them, (T, n).
        m, v: the moments with that gradient in them, (T, n).
    """

    hyper: Hyper
    begun: int
    losses: Floats
    thetas: Floats
    grads: Floats
    m: Floats
    v: Floats

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def denominators(self) -> Floats:
        """Returns sqrt(vhat_t) + eps, (T, n)."""
        counts = np.arange(self.begun + 1, self.begun + len(self) + 1)[:, None]
        corrections = 1 - self.hyper.beta2**counts if self.hyper.corrected else np.ones_like(counts, np.float64)
        roots: Floats = np.sqrt(self.v / corrections) + self.hyper.eps
        return roots

    @property
    def corrections(self) -> Floats:
        """Returns 1 - beta1^t, by which the momentum is divided, (T,)."""
        counts = np.arange(self.begun + 1, self.begun + len(self) + 1)
        return 1.0 - self.hyper.beta1 ** counts.astype(np.float64) if self.hyper.corrected else np.ones(len(self))

    @property
    def weights(self) -> Floats:
        """Returns W = (lr/2) (1-beta1)/((1+beta1)(1-beta1^t)) / (sqrt(vhat_t) + eps), (T, n)."""
        gain = (1 - self.hyper.beta1) / (1 + self.hyper.beta1) / self.corrections[:, None]
        return self.hyper.lr / 2 * gain / self.denominators

    @property
    def moves(self) -> Floats:
        """Returns the steps taken, (T, n)."""
        return -self.hyper.lr * self.m / self.corrections[:, None] / self.denominators


def descend(
    problem: Problem, start: Floats, hyper: Hyper, steps: int, *,
    batches: Callable[[], npt.NDArray[np.int64]] | None = None, state: tuple[int, Floats, Floats] | None = None,
) -> Trail:
    """Returns `steps` steps of Adam from a start, in float64.

    Args:
        problem: what is minimised.
        start: parameters, (n,).
        hyper: the settings.
        steps: how many.
        batches: gives the rows of each step's batch; None for all.
        state: steps taken before, and the moments m and v that they left; None for a fresh optimizer.
    """
    theta = np.array(start, dtype=np.float64)
    begun, m, v = (0, np.zeros_like(theta), np.zeros_like(theta)) if state is None else state
    losses, room = np.empty(steps), np.empty((4, steps, len(theta)))
    beta1, beta2 = hyper.beta1, hyper.beta2
    for step in range(steps):
        losses[step], grad = problem.gradient(theta)
        if batches is not None:
            grad = problem.gradient(theta, batches())[1]
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad * grad
        room[:, step] = theta, grad, m, v
        first, second = (1.0, 1.0)
        if hyper.corrected:
            first, second = 1 - beta1 ** (begun + step + 1), 1 - beta2 ** (begun + step + 1)
        theta = theta - hyper.lr * (m / first) / (np.sqrt(v / second) + hyper.eps)
    return Trail(hyper, begun, losses, *room)


def resume(problem: Problem, trail: Trail, at: int, steps: int, **changed: Any) -> Trail:
    """Returns `steps` steps of a training taken up at one of its rows, with some settings changed from that step on.

    The gradient of row `at` enters the moments anew, with the betas as they are now.
    """
    before = np.zeros_like(trail.m[0])
    state = (trail.begun + at, *((trail.m[at - 1], trail.v[at - 1]) if at else (before, before)))
    return descend(problem, trail.thetas[at], replace(trail.hyper, **changed), steps, state=state)
