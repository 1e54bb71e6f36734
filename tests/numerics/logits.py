"""Logits at known gaps, and how far from the 80-bit reference a result is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.reference.cross_entropy import cross_entropy as reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# a result in `dtype` may differ by a few of its roundings, and by those of exp in the type computed in, 100 nats long
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1.5e-5, torch.float64: 1e-13}
# below it gradients and losses are subnormal in `dtype`, or the exponential is in the type computed in
UNDERFLOW = {torch.float16: 6.2e-5, torch.bfloat16: 1.2e-38, torch.float32: 1.2e-38, torch.float64: 2.3e-308}


def confident(
    generator: torch.Generator, rows: int, classes: int, dtype: torch.dtype, *, gap: float | None = None,
    offset: float = 0.0, spread: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Returns logits (rows, classes) and targets: the right class leads by `gap`, or by 0 to 200 nats."""
    draws = {"generator": generator, "dtype": torch.float64}
    z = spread * torch.randn(rows, classes, **draws)
    target = torch.randint(classes, (rows,), generator=generator)
    ahead = 200 * torch.rand(rows, **draws) if gap is None else torch.full((rows,), gap, dtype=torch.float64)
    wrong = z.scatter(1, target[:, None], -torch.inf).amax(1) if classes > 1 else torch.zeros(rows, dtype=torch.float64)
    return (z.scatter(1, target[:, None], (wrong + ahead)[:, None]) + offset).to(dtype), target


def exactly(logits: Tensor, target: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Returns the reference's loss and gradient in float64; the logits are taken as they were rounded."""
    weight = options.pop("weight", None)
    given = None if weight is None else weight.detach().double().numpy()
    y = target.detach().double().numpy() if target.dtype.is_floating_point else target.numpy()
    loss, gradient = reference(logits.detach().double().numpy(), y, weight=given, **options)
    return torch.tensor(np.asarray(loss, np.float64)), torch.tensor(np.asarray(gradient, np.float64))


def value_and_gradient(loss: object, logits: Tensor, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
    """Returns a loss and the gradient of its sum, detached."""
    z = logits.detach().clone().requires_grad_()
    value = loss(z, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def error(found: Tensor, true: Tensor, dtype: torch.dtype) -> float:
    """Returns the largest relative error of entries above what underflow in `dtype` may take from a sum of classes."""
    floor = UNDERFLOW[dtype] * true.shape[-1] if true.ndim else UNDERFLOW[dtype]
    seen = true.abs() >= floor
    assert (found[~seen].abs() <= 2 * floor).all()
    return float(((found - true) / true)[seen].abs().max()) if seen.any() else 0.0
