"""The network of the reference run: a sum of 20 tanh, in closed form: outputs, gradient, Jacobian and exact Hessian.

f(x) = sum_j a_j tanh(w_j x + b_j) + c; the 61 parameters are one vector (w, b, a, c). numpy takes a step with its
Hessian in a tenth of the time of autograd; `tensors` gives the same network to tools that want torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["DENSE", "Curvature", "TanhProblem", "tanh_problem", "two_waves"]

Floats = npt.NDArray[np.float64]
Target = Callable[[Floats], Floats]
NEURONS, POINTS = 20, 20
DENSE = 400  # points of the test grid


class Curvature(NamedTuple):
    """Loss, gradient (p,) and Hessian (p, p)."""

    loss: float
    gradient: Floats
    hessian: Floats


@dataclass(frozen=True, slots=True)
class TanhProblem:
    """A target on a uniform grid, and the parameters that a training begins with.

    Attributes:
        x: (n,) inputs.
        y: (n,) targets.
        theta: (3 m + 1,) initial parameters w, b, a, c.
        target: of any inputs.
    """

    x: Floats
    y: Floats
    theta: Floats
    target: Target

    @property
    def neurons(self) -> int:
        return (len(self.theta) - 1) // 3

    def outputs(self, theta: Floats, x: Floats | None = None) -> Floats:
        """Returns f at the grid, or at other inputs: (n,)."""
        w, b, a, c = self._split(theta)
        return np.asarray(np.tanh(np.outer(self.x if x is None else x, w) + b) @ a + c)

    def loss(self, theta: Floats) -> float:
        """Returns the mean squared error at the grid."""
        return float(np.mean((self.outputs(theta) - self.y) ** 2))

    def test_error(self, theta: Floats) -> float:
        """Returns the mean squared error on a dense grid over the same interval."""
        x = np.linspace(self.x[0], self.x[-1], DENSE)
        return float(np.mean((self.outputs(theta, x) - self.target(x)) ** 2))

    def jacobian(self, theta: Floats) -> Floats:
        """Returns J = d f / d theta at the grid: (n, p)."""
        return self._first(theta)[1]

    def gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Returns the loss and its gradient."""
        f, jacobian, _, _ = self._first(theta)
        error = f - self.y
        return float(error @ error) / len(error), 2.0 / len(error) * (jacobian.T @ error)

    def curvature(self, theta: Floats) -> Curvature:
        """Returns loss, gradient and Hessian (2/n) (J'J + sum_i r_i d2f_i), r = f - y.

        The second derivatives of f are within a neuron: with h = tanh(w x + b), h' = 1 - h^2, h'' = -2 h h':
        d2f/dw2 = a h'' x^2, d2f/dwdb = a h'' x, d2f/db2 = a h'', d2f/dwda = h' x, d2f/dbda = h'.
        """
        f, jacobian, h, slope = self._first(theta)
        error, m = f - self.y, self.neurons
        scale = 2.0 / len(error)
        hessian = scale * (jacobian.T @ jacobian)
        bend = -2.0 * h * slope * theta[2 * m : 3 * m]
        r = scale * error
        w = np.arange(m)
        b, a = w + m, w + 2 * m
        pairs = (
            (w, w, (r * self.x**2) @ bend), (w, b, (r * self.x) @ bend), (b, b, r @ bend),
            (w, a, (r * self.x) @ slope), (b, a, r @ slope),
        )
        for rows, columns, values in pairs:
            hessian[rows, columns] += values
            if rows is not columns:
                hessian[columns, rows] += values
        return Curvature(float(error @ error) / len(error), scale * (jacobian.T @ error), hessian)

    def tensors(self, theta: Floats) -> tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]:
        """Returns the parameters as one float64 leaf (p,), a closure of the loss, and one of the outputs (n,)."""
        flat = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        return flat, lambda: (self.forward(flat, x) - y).square().mean(), lambda: self.forward(flat, x)

    def forward(self, flat: Tensor, x: Tensor) -> Tensor:
        """Returns f at inputs (n,) in torch, of parameters (p,): (n,)."""
        w, b, a = flat[:-1].view(3, self.neurons)
        found: Tensor = torch.tanh(x[:, None] * w + b) @ a + flat[-1]
        return found

    def neurons_of(self, theta: Floats) -> Floats:
        """Returns the full input weights of each neuron, (w_j, b_j): (m, 2)."""
        m = self.neurons
        return np.stack([theta[:m], theta[m : 2 * m]], axis=1)

    def _split(self, theta: Floats) -> tuple[Floats, Floats, Floats, float]:
        m = self.neurons
        return theta[:m], theta[m : 2 * m], theta[2 * m : 3 * m], float(theta[-1])

    def _first(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Returns outputs, Jacobian, h and h', each but the first with the points along its first dimension."""
        w, b, a, c = self._split(theta)
        h = np.tanh(np.outer(self.x, w) + b)
        slope = 1.0 - h * h
        per_bias = a * slope
        jacobian = np.concatenate([per_bias * self.x[:, None], per_bias, h, np.ones((len(self.x), 1))], axis=1)
        return h @ a + c, jacobian, h, slope


def two_waves(x: Floats) -> Floats:
    """Returns sin x + sin 4x."""
    return np.sin(x) + np.sin(4.0 * x)


def tanh_problem(seed: int, *, target: Target = two_waves, neurons: int = NEURONS, points: int = POINTS) -> TanhProblem:
    """Returns the problem of a seed: x = linspace(-pi, pi, points), all parameters N(0, 1), drawn as w, b, a, c.

    Source: Li et al. 2023, arXiv 2305.12133, two-layer tanh network; points and initialisation are this library's.
    """
    x = np.linspace(-np.pi, np.pi, points)
    draw = np.random.default_rng(seed)
    drawn = [draw.normal(size=neurons) for _ in range(3)]
    return TanhProblem(x, target(x), np.concatenate([*drawn, [draw.normal()]]), target)
