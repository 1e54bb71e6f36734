"""The run TL-GD in numpy: a tanh network of 20 neurons on sin x + sin 4x, full-batch gradient descent, by hand.

Setting of Li et al. 2023, arXiv 2305.12133; 20 points, all 61 parameters standard normal from seed 0, float64. It has a
loss spike near update 5183. A run of 5,300 updates takes a third of a second.
"""

from __future__ import annotations

import numpy as np

LR = 0.05
NEURONS = 20
X = np.linspace(-np.pi, np.pi, 20)
Y = np.sin(X) + np.sin(4 * X)


def start(seed: int = 0) -> np.ndarray:
    """Returns w, b, a, c in one vector, shape (61,)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.standard_normal(NEURONS) for _ in range(3)] + [rng.standard_normal(1)])


def outputs(theta: np.ndarray) -> np.ndarray:
    """Returns f(x), shape (20,)."""
    w, b, a, c = theta[:20], theta[20:40], theta[40:60], theta[60]
    return np.tanh(X[:, None] * w + b) @ a + c


def run(updates: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns parameters (updates + 1, 61) and losses (updates + 1,); row t is after t updates."""
    theta = start(seed)
    path, losses = np.empty((updates + 1, theta.size)), np.empty(updates + 1)
    for t in range(updates + 1):
        w, b, a, c = theta[:20], theta[20:40], theta[40:60], theta[60]
        hidden = np.tanh(X[:, None] * w + b)
        error = hidden @ a + c - Y
        path[t], losses[t] = theta, (error**2).mean()
        back = (2 / len(X)) * error
        inside = back[:, None] * (1 - hidden**2) * a
        theta = theta - LR * np.concatenate([X @ inside, inside.sum(0), back @ hidden, [back.sum()]])
    return path, losses
