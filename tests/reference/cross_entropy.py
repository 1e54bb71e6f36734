"""Cross-entropy in np.longdouble, one row at a time: slow and obvious.

That type has 64 bits of significand on x86 and at least 53 elsewhere. What would cancel is never subtracted, so more
bits than float64 has are a luxury here, not the point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONG = np.longdouble
ONE, ZERO = LONG(1), LONG(0)


def rows(logits: np.ndarray, dim: int) -> np.ndarray:
    """Returns (N, K) of logits whose classes are dimension `dim`, row by row in the order of the target's elements."""
    moved = np.moveaxis(np.asarray(logits), dim, -1)
    return moved.reshape(-1, moved.shape[-1])


def log_probabilities(z: np.ndarray) -> np.ndarray:
    """Returns log softmax (K,), every entry to full relative accuracy.

    log p_k = -log1p(sum_{j != k} exp(z_j - z_k)) where that sum is at most 1; else z_k - m - log sum_j exp(z_j - m).
    """
    z = np.asarray(z, LONG)
    top = z.max()
    total = np.exp(z - top).sum()
    result = z - top - np.log(total)
    for k in np.flatnonzero(z == top):
        others = np.exp(np.delete(z, k) - z[k]).sum()
        if others <= 1:
            result[k] = -np.log1p(others)
    return result


def weights_of(target: int | Sequence[float], classes: int, weight: np.ndarray, smoothing: float) -> np.ndarray:
    """Returns what each class's -log p_k is multiplied by, as torch defines smoothing and class weights."""
    y = np.zeros(classes, LONG)
    if np.ndim(target) == 0:
        y[int(target)] = ONE
    else:
        y = np.asarray(target, LONG)
    return (y * (ONE - LONG(smoothing)) + LONG(smoothing) / classes) * weight


def one_row(z: np.ndarray, y: np.ndarray) -> tuple[np.longdouble, np.ndarray]:
    """Returns -sum_k y_k log p_k and its gradient, Y p_k - y_k with Y = sum_k y_k.

    The entry of the largest target is minus the sum of all the others, and each other entry is a plain difference: with
    one right class that is Y sum_{j != r} p_j, from which nothing cancels.
    """
    log_p = log_probabilities(z)
    loss = -(y[y != 0] * log_p[y != 0]).sum()
    gradient = y.sum() * np.exp(log_p) - y
    right = int(np.argmax(y))
    gradient[right] = ZERO
    gradient[right] = -gradient.sum()
    return LONG(loss), gradient


def cross_entropy(
    logits: np.ndarray, target: np.ndarray, *, weight: np.ndarray | None = None, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, dim: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss and the gradient of its sum, both longdouble: the loss in the reduction's shape, the other in
    that of the logits. `target`: integers in the shape of the logits without `dim`, or probabilities in their shape.
    """
    z = np.asarray(logits, LONG)
    hard = not np.issubdtype(target.dtype, np.floating)
    flat = rows(z, dim)
    targets = np.asarray(target).reshape(-1) if hard else rows(np.asarray(target, LONG), dim)
    classes = z.shape[dim]
    factor = np.ones(classes, LONG) if weight is None else np.asarray(weight, LONG)
    losses, gradients, masses = np.zeros(len(flat), LONG), np.zeros_like(flat), np.zeros(len(flat), LONG)
    with np.errstate(all="ignore"):  # masked classes, empty batches
        for i, row in enumerate(flat):
            if hard and targets[i] == ignore_index:
                continue
            losses[i], gradients[i] = one_row(row, weights_of(targets[i], classes, factor, label_smoothing))
            masses[i] = factor[int(targets[i])] if hard else ONE
        mass = masses.sum()
        mean, per_mean = losses.sum() / mass, gradients / mass
    if reduction == "mean":
        losses, gradients = mean, per_mean
    elif reduction == "sum":
        losses = losses.sum()
    else:
        losses = losses.reshape([size for axis, size in enumerate(z.shape) if axis != dim])
    moved = np.moveaxis(z, dim, -1).shape
    return losses, np.moveaxis(gradients.reshape(moved), -1, dim)
