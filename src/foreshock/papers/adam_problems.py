"""The two problems small enough for their whole Hessian: a parabola, and a sum of twenty tanh units on two sines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foreshock.papers.adam_exact import Floats

__all__ = ["Parabola", "Sines", "sines"]

UNITS = 20


@dataclass(frozen=True, slots=True)
class Parabola:
    """L = k theta^2 / 2, of one number."""

    k: float = 1.0

    @property
    def tensors(self) -> Mapping[str, slice]:
        """Returns the one parameter."""
        return {"theta": slice(0, 1)}

    def gradient(self, theta: Floats, rows: npt.NDArray[np.int64] | None = None) -> tuple[float, Floats]:
        """Returns loss and gradient (1,)."""
        return float(self.k * theta[0] ** 2 / 2), self.k * theta

    def hessians(self, thetas: Floats) -> Floats:
        """Returns k for each of b points, (b, 1, 1)."""
        return np.full((len(thetas), 1, 1), self.k)


@dataclass(frozen=True, slots=True)
class Sines:
    """Mean squared error of f(x) = sum_j a_j tanh(w_j x + b_j) + c; theta is w, b, a (m each) and c.

    Attributes:
        inputs, targets: (samples,).
    """

    inputs: Floats
    targets: Floats

    @property
    def tensors(self) -> Mapping[str, slice]:
        """Returns the places of w, b, a and c."""
        m = UNITS
        return {"w": slice(0, m), "b": slice(m, 2 * m), "a": slice(2 * m, 3 * m), "c": slice(3 * m, 3 * m + 1)}

    def gradient(self, theta: Floats, rows: npt.NDArray[np.int64] | None = None) -> tuple[float, Floats]:
        """Returns the loss and its gradient (61,), of the samples in `rows`, by default all."""
        x, y = (self.inputs, self.targets) if rows is None else (self.inputs[rows], self.targets[rows])
        w, b, a = theta[: 3 * UNITS].reshape(3, UNITS)
        s = np.tanh(np.outer(x, w) + b)
        error = s @ a + theta[-1] - y
        inner = a * (1 - s * s)
        parts = ((error * x) @ inner, error @ inner, error @ s, [error.sum()])
        return float(error @ error) / len(x), np.concatenate(parts) * (2 / len(x))

    def hessians(self, thetas: Floats) -> Floats:
        """Returns the Hessians (b, 61, 61) at b points (b, 61).

        With J the derivative of the outputs f by theta and r = f - y, H = (2/n) (J'J + sum_i r_i d2f_i), where d2f has
        entries only between the w, b and a of one unit: with t' = 1 - tanh^2 and t'' = -2 tanh t',
        ww: a t'' x^2, wb: a t'' x, bb: a t'', wa: t' x, ba: t', aa: 0.
        """
        m, x = UNITS, self.inputs[:, None]
        w, b, a = (thetas[:, None, i * m : (i + 1) * m] for i in range(3))
        s = np.tanh(x * w + b)  # (b, samples, m)
        slope = 1 - s * s
        bent = -2 * s * slope * a
        by = np.concatenate([a * slope * x, a * slope, s, np.ones((*s.shape[:2], 1))], axis=2)
        error = (s @ thetas[:, 2 * m : 3 * m, None])[..., 0] + thetas[:, -1:] - self.targets
        result: Floats = by.transpose(0, 2, 1) @ by
        at = np.arange(m)
        blocks = {(0, 0): bent * x * x, (0, 1): bent * x, (1, 1): bent, (0, 2): slope * x, (1, 2): slope}
        for (row, column), second in blocks.items():
            weighted = np.einsum("bi,bij->bj", error, second)
            result[:, row * m + at, column * m + at] += weighted
            if row != column:
                result[:, column * m + at, row * m + at] += weighted
        return result * (2 / len(self.inputs))


def sines(seed: int, samples: int = 20) -> tuple[Sines, Floats]:
    """Returns the problem y = sin x + sin 4x on a grid over [-pi, pi], and a start: N(0, 1), drawn w, b, a, c."""
    x = np.linspace(-np.pi, np.pi, samples)
    start = np.random.default_rng(seed).standard_normal(3 * UNITS + 1)
    return Sines(x, np.sin(x) + np.sin(4 * x)), start
