"""Slow, obvious versions of the closed forms for head rows: one stacked least-squares problem, and refits."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(h: Tensor, y: Tensor, omega: Tensor, lam: float, bias: bool) -> tuple[Tensor, Tensor]:
    """Returns W (C, d) and b (C,) that minimise 1/2 sum omega_i |W h_i + b - y_i|^2 + lam/2 |W|^2, b not penalised.

    Solved as an ordinary least-squares problem with the ridge as further examples.
    """
    h, y, omega = h.double(), y.double(), omega.double()
    d = h.shape[1]
    left = torch.cat([h, torch.ones(len(h), 1).double()], 1) if bias else h
    ridge_rows = lam**0.5 * torch.eye(d, left.shape[1]).double()
    left = torch.cat([omega.sqrt()[:, None] * left, ridge_rows])
    right = torch.cat([omega.sqrt()[:, None] * y, torch.zeros(d, y.shape[1]).double()])
    solved = torch.linalg.lstsq(left, right, driver="gelsd").solution
    return solved[:d].mT, solved[d] if bias else torch.zeros(y.shape[1]).double()


def held_out(h: Tensor, y: Tensor, omega: Tensor, lam: float, bias: bool) -> Tensor:
    """Returns the scores (n, C) of each example by the rows of all others."""
    rows = []
    for i in range(len(h)):
        rest = torch.arange(len(h)) != i
        W, b = ridge(h[rest], y[rest], omega[rest], lam, bias)
        rows.append(h[i].double() @ W.mT + b)
    return torch.stack(rows)
