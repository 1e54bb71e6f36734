"""Cross-entropy of rows in two Triton kernels: one pass over the logits for the loss, one for the gradient.

The formula is that of `numerics.rows`; nothing between is written to memory but the largest logit and the sum of the
wrong classes' exponentials of each row, and 1 - p_r is never formed. Tested in Triton's interpreter and on an H200, and
compiled for AMD's devices but not run on one: `dispatch` compares the results with float64 before it uses them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = {torch.float32: 8192, torch.float64: 4096}
"""Most logits that one program holds at a time, in registers: 32 for each thread of 8 warps in float32."""
SMALL = 1024
"""Logits below which one program takes several rows: 8 for each thread of 4 warps."""


@triton.jit  # type: ignore[untyped-decorator]
def _log1p(x, KIND: tl.constexpr, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """log(1 + x) for x >= 0. Hardware logarithms are exact in absolute terms only, so small x go by the series

    log(1 + x) = 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...), s = x/(2 + x) <= 1/3.
    """
    s = x / (2 + x)
    q = s * s
    series = tl.zeros_like(x)
    for term in tl.static_range(TERMS):
        series = series * q + tl.full(x.shape, 1.0 / (2 * (TERMS - term) - 1), KIND)
    return tl.where(x <= 1, 2 * s * series, tl.log(1 + x))


@triton.jit  # type: ignore[untyped-decorator]
def _rows(right, n, classes, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of a program, which of them exist, and their right classes. int64: n * classes may exceed 2^31."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < n
    at = tl.load(right + row, live, 0)
    return row, live, at, live & (at >= 0) & (at < classes)


@triton.jit  # type: ignore[untyped-decorator]
def _losses(  # type: ignore[no-untyped-def]
    logits, right, spread, mass, total, found, tops, wrongs, n, classes, stride,
    KIND: tl.constexpr, SOFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    row, live, at, known = _rows(right, n, classes, ROWS)
    start = logits + row * stride
    # a class that there is not reads as NaN, not as somebody's memory
    own = tl.load(start + at, known, float("nan")).to(KIND)
    top = tl.full((ROWS,), float("-inf"), KIND)
    wrong = tl.zeros((ROWS,), KIND)
    below = tl.zeros((ROWS,), KIND)  # sum_k y_k (top - z_k) of the columns seen
    seen = tl.zeros((ROWS,), KIND)  # sum_k y_k of them
    for first in range(0, classes, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < classes
        z = tl.load(start[:, None] + column[None, :], live[:, None] & inside[None, :], float("-inf")).to(KIND)
        higher = tl.maximum(top, tl.max(z, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # all masked so far: exp(-inf - 0) is 0, no NaN
        e = tl.where(column[None, :] == at[:, None], 0.0, tl.exp(z - base[:, None]))
        wrong = wrong * tl.exp(top - base) + tl.sum(e, 1)
        if SOFT:
            y = tl.load(spread + column, inside, 0.0)[None, :]
            below += seen * tl.where(top == float("-inf"), 0.0, base - top)
            below += tl.sum(y * tl.where(inside[None, :], base[:, None] - z, 0.0), 1)
            seen += tl.sum(y, 1)
        top = higher
    log = _log1p(wrong + (tl.exp(own - top) - 1), KIND, TERMS)
    if SOFT:
        m = tl.load(mass + row, live, 0.0)
        loss = below + m * (top - own) + (tl.load(total) + m) * log
    else:
        loss = (top - own) + log
    tl.store(found + row, loss, live)
    tl.store(tops + row, top, live)
    tl.store(wrongs + row, wrong, live)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    logits, right, spread, mass, total, outer, tops, wrongs, gradient, n, classes, stride, stride_out,
    KIND: tl.constexpr, SOFT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, live, at, known = _rows(right, n, classes, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = live[:, None] & (column < classes)[None, :]
    start = logits + row * stride
    own = tl.load(start + at, known, float("nan")).to(KIND)
    z = tl.load(start[:, None] + column[None, :], inside, float("-inf")).to(KIND)
    top = tl.load(tops + row, live, 0.0)
    wrong = tl.load(wrongs + row, live, 0.0)
    scale = tl.load(outer + row, live, 0.0)
    share = scale / (wrong + tl.exp(own - top))
    if SOFT:
        y = tl.load(spread + column, column < classes, 0.0)
        m = tl.load(mass + row, live, 0.0)
        share = share * (tl.load(total) + m)
        others = tl.load(total) - tl.load(spread + at, known, 0.0)
        g = tl.exp(z - top[:, None]) * share[:, None] - scale[:, None] * y[None, :]
        g = tl.where(column[None, :] == at[:, None], (scale * others - share * wrong)[:, None], g)
    else:
        g = tl.exp(z - top[:, None]) * share[:, None]
        g = tl.where(column[None, :] == at[:, None], -(share * wrong)[:, None], g)
    tl.store(gradient + row[:, None] * stride_out + column[None, :], g.to(gradient.dtype.element_ty), inside)


def row_losses(
    logits: Tensor, right: Tensor, spread: Tensor | None = None, mass: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the loss, the largest logit and the sum of the wrong classes' exp(z - largest) of each row, (n, 1).

    Args:
        logits: (n, K), any strides but between classes, where they are neighbours in memory.
        right: (n, 1) int64. A class that there is not gives NaN: a kernel cannot raise.
        spread: (1, K), targets that all rows have, in the working type; `mass` (n, 1) comes to that of the right class.
    """
    n, classes = logits.shape
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    found, top, wrong = (torch.empty((n, 1), dtype=kind, device=logits.device) for _ in range(3))
    rows, block, warps = _tile(classes, kind)
    with _on(logits):
        _losses[(triton.cdiv(n, rows),)](
            logits, right.contiguous(), *_soft(found, spread, mass), found, top, wrong, n, classes, logits.stride(0),
            KIND=_KINDS[kind], SOFT=spread is not None, ROWS=rows, BLOCK=block,
            TERMS=8 if kind == torch.float32 else 16, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return found, top, wrong


def row_gradient(
    logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor, top: Tensor, wrong: Tensor
) -> Tensor:
    """Returns the gradient (n, K) of sum(outer * losses), in the logits' type, from what `row_losses` left.

    The arguments are those of `row_losses`; `outer`: (n, 1).
    """
    n, classes = logits.shape
    gradient = torch.empty((n, classes), dtype=logits.dtype, device=logits.device)
    rows, block, warps = _tile(classes, top.dtype)
    with _on(logits):
        _gradient[(triton.cdiv(n, rows), triton.cdiv(classes, block))](
            logits, right.contiguous(), *_soft(top, spread, mass), outer.to(top.dtype).contiguous(), top.contiguous(),
            wrong.contiguous(), gradient, n, classes, logits.stride(0), gradient.stride(0),
            KIND=_KINDS[top.dtype], SOFT=spread is not None, ROWS=rows, BLOCK=block, num_warps=warps,
            enable_fp_fusion=False,
        )  # fmt: skip
    return gradient


_KINDS = {torch.float32: tl.float32, torch.float64: tl.float64}


def _soft(like: Tensor, spread: Tensor | None, mass: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the targets, the right classes' own and their sum as the kernels read them; unread without `spread`."""
    if spread is None:
        return like, like, like
    mass = torch.zeros_like(like) if mass is None else mass.to(like.dtype)
    return spread.contiguous(), mass.contiguous(), spread.sum()


def _tile(classes: int, kind: torch.dtype) -> tuple[int, int, int]:
    """Returns how many rows and how many columns a program takes at a time, and its warps."""
    block = min(triton.next_power_of_2(classes), TILE[kind])
    rows = max(1, SMALL // block)
    return rows, block, 4 if rows * block <= SMALL else 8


def _on(tensor: Tensor) -> Any:
    """Returns a context in which the tensor's device is the current one, where Triton launches."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
