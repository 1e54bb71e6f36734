"""TL-GD, live: the network of `tests.reference.tl_gd` as tensors that a closure reads, put at any time of the run."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests.reference import tl_gd

UPDATES = 5400


@cache
def run() -> tuple[np.ndarray, np.ndarray]:
    """Returns parameters and losses of the run; once a process."""
    return tl_gd.run(UPDATES)


def spike() -> tuple[int, int]:
    """Returns the updates done at the loss minimum before the first spike, and at its peak."""
    losses = run()[1]
    peak = 5000 + int(losses[5000:5300].argmax())
    return 4500 + int(losses[4500:peak].argmin()), peak


def at(t: int) -> Tensor:
    """Returns the parameters after t updates, flat."""
    return torch.from_numpy(run()[0][t].copy())


class Net:
    """The network: `params`, `outputs()`, `loss()`."""

    def __init__(self, t: int) -> None:
        sizes = [20, 20, 20, 1]
        self.x, self.y = torch.from_numpy(tl_gd.X), torch.from_numpy(tl_gd.Y)
        self.params = [piece.clone().requires_grad_() for piece in at(t).split(sizes)]

    def put(self, t: int) -> None:
        with torch.no_grad():
            for param, piece in zip(self.params, at(t).split([20, 20, 20, 1]), strict=True):
                param.copy_(piece)

    def outputs(self) -> Tensor:
        w, b, a, c = self.params
        return torch.tanh(self.x[:, None] * w + b) @ a + c

    def loss(self) -> Tensor:
        return (self.outputs() - self.y).square().mean()


def hessian(theta: Tensor) -> Tensor:
    """Returns the dense Hessian, shape (61, 61)."""
    x, y = torch.from_numpy(tl_gd.X), torch.from_numpy(tl_gd.Y)

    def loss(flat: Tensor) -> Tensor:
        w, b, a, c = flat.split([20, 20, 20, 1])
        return (torch.tanh(x[:, None] * w + b) @ a + c - y).square().mean()

    return torch.autograd.functional.hessian(loss, theta, vectorize=True)


def sharpest(t: int, k: int = 1) -> tuple[np.ndarray, Tensor]:
    """Returns the k largest eigenvalues of the dense Hessian after t updates, and their eigenvectors as rows."""
    values, vectors = torch.linalg.eigh(hessian(at(t)))
    return values.flip(0)[:k].numpy(), vectors.T.flip(0)[:k]
