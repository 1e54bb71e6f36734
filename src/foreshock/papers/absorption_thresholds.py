"""From which gap on a softmax loses its right class, by type of float, by number of classes, by way of writing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.thresholds import absorption_bounds, measured_threshold
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["CLASSES", "FORMATS", "OFFSETS", "Format", "by_hand", "exactness", "partial", "threshold_name", "thresholds"]

CLASSES = (2, 3, 10, 97, 1000)
OFFSETS = (0.0, 16.0, 100.0, 1000.0, -1000.0)
FAR = 60.0  # nats that all rivals but one are farther away, where one is near
DEEP = 85.0  # nats: gaps up to which the exact loss is held against float64; wrong classes underflow at 103

Floats = npt.NDArray[np.float64]


class Format(NamedTuple):
    """A type of float, and how near to the bounds a threshold can be told, in nats: by its spacing of logits."""

    dtype: torch.dtype
    margin: float


FORMATS = {
    "float16": Format(torch.float16, 0.02), "bfloat16": Format(torch.bfloat16, 0.0625),
    "float32": Format(torch.float32, 0.02), "float64": Format(torch.float64, 0.02),
}  # fmt: skip


def threshold_name(name: str, classes: int) -> str:
    """Returns what a threshold is called among the numbers."""
    return f"{name}, {classes} classes: threshold"


def by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns mean(logsumexp(z) - z_r), as it is often written, and as sharded and fused losses compute it."""
    return (logits.logsumexp(dim=1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)).mean()


def thresholds(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns where losses lose the right class's gradient on this machine; nothing in it is random (X1, X2)."""
    table = {
        (name, classes): measured_threshold(functional.cross_entropy, each.dtype, classes)
        for name, each in FORMATS.items() for classes in CLASSES
    }  # fmt: skip
    live(0.5, "thresholds by type and classes")
    float32 = torch.float32
    low, _ = absorption_bounds(float32, 2)
    near = [measured_threshold(_one_near, float32, classes) for classes in CLASSES]
    hand = {offset: measured_threshold(by_hand, float32, 2, offset=offset) for offset in OFFSETS}
    moved = [measured_threshold(functional.cross_entropy, float32, 2, offset=offset) for offset in OFFSETS]
    error, total = exactness(cross_entropy)
    numbers = {threshold_name(*key): value for key, value in table.items()} | {
        "loss reads 0 there as well": float(np.mean([_reads_zero(*key, value) for key, value in table.items()])),
        "one rival near": max(abs(value - low) for value in near),
        "offset: stock": max(abs(value - moved[0]) for value in moved),
        "offset: by hand": hand[1000.0],
        "exact loss: thresholds": float(sum(
            np.isfinite(measured_threshold(cross_entropy, each.dtype, classes))
            for each in FORMATS.values() for classes in CLASSES
        )),
        "exact loss: error": error, "exact loss: class sum": total,
        "stock loss: error": exactness(functional.cross_entropy)[0],
    }  # fmt: skip
    gaps = np.arange(8.0, 24.0, 0.02)
    drawn = {"table": table, "by hand": hand, "gaps": gaps, "partial": partial(gaps)}
    return Found(numbers, drawn=drawn)


def exactness(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Returns how wrong a loss's float32 gradients are at gaps from 0 to 85 nats, for 2 to 1,000 classes.

    Two numbers, the largest over all rows: the relative error of the right class's gradient, and the class sum in units
    of the wrong mass. The reference is the closed form in float64, w = (K-1) e^-gap / (1 + (K-1) e^-gap).
    """
    errors, sums = [], []
    for classes in CLASSES:
        gaps = torch.arange(0, DEEP, 0.25)
        gradients = _gradients(loss, gaps, classes)
        odds = (classes - 1) * torch.exp(-gaps.double())
        wrong = odds / (1 + odds)
        errors.append((gradients[:, 0] / -wrong - 1).abs().max())
        sums.append((gradients.sum(dim=1) / wrong).abs().max())
    return float(torch.stack(errors).max()), float(torch.stack(sums).max())


def partial(gaps: Floats, classes: int = 10) -> Floats:
    """Returns sum_k g_k / w of float32 rows at gaps below, at and above the threshold, under torch's loss.

    Below it 1 - p_r comes in steps of 2^-24, so that the sum can have either sign; above, g_r = 0 and it is 1.
    """
    gradients = _gradients(functional.cross_entropy, torch.tensor(gaps, dtype=torch.float32), classes)
    result: Floats = (gradients.sum(dim=1) / gradients[:, 1:].sum(dim=1)).numpy()
    return result


def _gradients(loss: Callable[[Tensor, Tensor], Tensor], gaps: Tensor, classes: int) -> Tensor:
    """Returns each row's gradient (rows, K) as float64; the right class leads K - 1 equal ones by the row's gap."""
    logits = torch.zeros(len(gaps), classes)
    logits[:, 0] = gaps
    labels = torch.zeros(len(gaps), dtype=torch.long)
    (gradient,) = torch.autograd.grad(loss(logits.requires_grad_(), labels), logits)
    return gradient.double() * len(gaps)


def _one_near(logits: Tensor, labels: Tensor) -> Tensor:
    far = torch.full_like(logits, FAR)
    far[:, :2] = 0.0
    return functional.cross_entropy(logits - far, labels)


def _reads_zero(name: str, classes: int, gap: float) -> bool:
    """Returns whether the loss is 0 at a gap, and is not at the next smaller one."""
    dtype = FORMATS[name].dtype
    labels = torch.zeros(1, dtype=torch.long)
    at = torch.tensor(gap, dtype=dtype)
    values = []
    for top in (at, torch.nextafter(at, torch.zeros_like(at))):
        logits = torch.zeros(1, classes, dtype=dtype)
        logits[0, 0] = top
        values.append(functional.cross_entropy(logits, labels).item())
    return values[0] == 0 and values[1] != 0
