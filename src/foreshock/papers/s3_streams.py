"""The bound of S3, and that Adam has none: one coordinate, and streams of gradients made to find the largest update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.optim import S3
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["ORDERS", "STREAMS", "bounds", "largest"]

LENGTH = 3000  # steps, by the end of which Adam's correction of its first moments is over
GROWTH = 200  # of them, over which what grows does: it spans 1e-9 to 1
ORDERS = (1.0, 1.5, 2.0, 3.0, 6.0)
BETA = 0.95
TINY = 1e-30  # eps, so that gradients of 1e-15 count

Floats = npt.NDArray[np.float64]
Make = Callable[[Iterable[Tensor]], Optimizer]


def _growing(ratio: float) -> Floats:
    """Returns what grows by a ratio at the end; by beta2 / beta1, with one sign, it is Adam's worst case."""
    result: Floats = ratio ** np.maximum(np.arange(LENGTH) - LENGTH + 1.0, -GROWTH)
    return result


STREAMS = {
    "noise": np.random.default_rng(0).standard_normal(LENGTH),
    "heavy tails": np.random.default_rng(1).standard_cauchy(LENGTH),
    "constant": np.ones(LENGTH),
    "tiny": np.full(LENGTH, 1e-15),
    "quiet, then a burst": np.r_[np.full(LENGTH - 10, 1e-6), np.ones(10)],
    "growing by .999/.9": _growing(0.999 / 0.9),
    "growing by .95/.9": _growing(0.95 / 0.9),
}
"""Name -> gradients (LENGTH,) of one coordinate."""


def largest(make: Make, gradients: Floats) -> Floats:
    """Returns the largest update of each coordinate, in learning rates, on the way through gradients (steps, n)."""
    theta = nn.Parameter(torch.zeros(gradients.shape[1]))
    optimizer = make([theta])
    (group,) = optimizer.param_groups
    most = torch.zeros_like(theta)
    with torch.no_grad():
        for row in torch.from_numpy(gradients).float():
            theta.grad = row.clone()
            optimizer.step()
            torch.maximum(most, theta.abs() / group["lr"], out=most)
            theta.zero_()
    return most.numpy().astype(np.float64)


def bounds(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the largest update of S3 of each order, with different betas, and of Adam over all streams."""
    kinds: dict[str, Make] = {
        **{f"S3 p {p:g}": _s3(p) for p in ORDERS},
        "S3 .9/.999": lambda params: S3(params, 1.0, beta=0.9, beta2=0.999),
        "Adam .9/.999": _adam(0.9, 0.999), "Adam .9/.95": _adam(0.9, 0.95), "Adam .95/.95": _adam(0.95, 0.95),
    }
    gradients = np.stack(list(STREAMS.values()), axis=1)
    found: dict[str, float] = {}
    for place, (kind, make) in enumerate(kinds.items()):
        live(place / len(kinds), f"streams of gradients: {kind}")
        found[kind] = float(largest(make, gradients).max())
    constant, first = (float(largest(_s3(3.0), np.ones((length, 1)))[0]) for length in (LENGTH // 10, 1))
    return Found(
        {
            **{f"streams: {kind}": value for kind, value in found.items()},
            "streams: S3 reaches 1": constant,
            "streams: first step": first / (1 - BETA**2) ** (2 / 3),
        },
        drawn={"streams": found},
    )


def _s3(p: float) -> Make:
    return lambda params: S3(params, 1.0, beta=BETA, p=p, eps=TINY)


def _adam(beta1: float, beta2: float) -> Make:
    return lambda params: torch.optim.Adam(params, 1.0, betas=(beta1, beta2), eps=math.ulp(0.0))
