"""S3 as its paper writes it, one coordinate after the other in float64, with powers of gradients kept as powers."""

from __future__ import annotations

import numpy as np


def s3(
    start, grads, *, lr=1.0, beta=0.95, p=3.0, eps=1e-12, weight_decay=0.0, beta2=None, nesterov=True, maximize=False
):
    """Returns parameters (steps, n), and the last averages of g and of |g|^p, the latter's p-th root.

    Powers of what is left of |g| stay within float64 for p <= 10 and sizes from 1e-20 to 1e15.
    """
    theta = np.array(start, dtype=np.float64)
    below = beta if beta2 is None else beta2
    m, s, course = np.zeros_like(theta), np.zeros_like(theta), []
    for grad in grads:
        g = np.array(grad, dtype=np.float64) * (-1 if maximize else 1)
        m = beta * m + (1 - beta) * g
        s = below * s + (1 - below) * np.abs(g) ** p
        n = beta * m + (1 - beta) * g if nesterov else m
        b = (below * s + (1 - below) * np.abs(g) ** p if nesterov else s) ** (1 / p)
        u = np.divide(n, b + eps, out=np.zeros_like(n), where=b + eps > 0)
        theta = (1 - lr * weight_decay) * theta - lr * u
        course.append(theta)
    return np.stack(course), m, s ** (1 / p)
