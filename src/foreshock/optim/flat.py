"""What the compiled ways of S3's step share: the constants of a step, and tensors that lie alike in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from foreshock.optim.settings import Settings

__all__ = ["Columns", "constants", "in_order"]

Columns = Sequence[Sequence[Tensor]]
"""Parameters, gradients, averages and roots."""


def constants(work: torch.dtype, **settings: Unpack[Settings]) -> tuple[float, ...]:
    """Returns lr, decay, eps, sign, rest, now, fresh, below, past, p: what one coordinate's step is made of.

        g = sign grad        m' = m + rest (g - m)        n = m' + now (g - m')
        r'^p = (past r)^p + fresh (|g|^p - (past r)^p)    b^p likewise with `below`
        theta' = decay theta - lr n/(b + eps)
    """
    lr, beta2, nesterov = float(settings["lr"]), settings["beta2"], settings["nesterov"]
    rest, fresh = 1 - settings["beta"], 1 - beta2
    return (
        lr, 1 - lr * settings["weight_decay"], max(settings["eps"], torch.finfo(work).tiny),
        -1.0 if settings["maximize"] else 1.0, rest, rest if nesterov else 0.0, fresh,
        fresh + beta2 * fresh if nesterov else fresh,  # 1 - beta2^2
        1.0 if beta2 else 0.0, settings["p"],
    )  # fmt: skip


def in_order(columns: Columns) -> tuple[Columns, list[tuple[Tensor, Tensor]]]:
    """Returns the tensors, each row of four in one order in memory and without gaps: copies, where they do not lie so.

    Also whom to copy back to, and from what.
    """
    copies: list[tuple[Tensor, Tensor]] = []
    if all(all(map(Tensor.is_contiguous, column)) for column in columns):
        return columns, copies
    rows = []
    for param, *others in zip(*columns, strict=True):
        base = param
        if not param.is_contiguous() and not _dense(param):
            base = param.contiguous()
            copies.append((param, base))
        row = [base]
        for place, tensor in enumerate(others):
            if not (tensor.is_contiguous() and base.is_contiguous()) and tensor.stride() != base.stride():
                copy = torch.empty_strided(base.shape, base.stride(), dtype=tensor.dtype, device=tensor.device)
                copy.copy_(tensor)
                if place:  # not the gradient, which is only read
                    copies.append((tensor, copy))
                tensor = copy
            row.append(tensor)
        rows.append(row)
    return [list(column) for column in zip(*rows, strict=True)], copies


def _dense(tensor: Tensor) -> bool:
    """Returns whether the elements fill their stretch of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
