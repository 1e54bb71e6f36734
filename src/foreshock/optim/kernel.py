"""S3's step as one Triton kernel over all tensors of a list, for CUDA: one launch, whatever their number.

A table on the device holds where each tensor lies; a program takes one stretch of one tensor. The arithmetic is that of
`optim.compiled`, which compares its results with float64 before it uses them. Tested in Triton's interpreter, and
compiled for CUDA's and AMD's devices but not run on one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foreshock.optim.flat import Columns

__all__ = ["step"]

STRETCH = 1024
"""Elements of a program: eight for each thread of four warps."""
TABLES = 16
"""How many tables are kept: gradients come back to the same few places."""

_TYPES = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}
_tables: OrderedDict[tuple[Any, ...], tuple[Tensor, Tensor]] = OrderedDict()
_captured: list[tuple[Tensor, Tensor]] = []


@triton.jit  # type: ignore[untyped-decorator]
def _over(x, y, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x/y, rounded to nearest: the default division by float32 is off for the largest and smallest numbers."""
    if not WIDE:
        return tl.div_rn(x, y)
    return x / y


@triton.jit  # type: ignore[untyped-decorator]
def _square_root(x, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    if not WIDE:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@triton.jit  # type: ignore[untyped-decorator]
def _raise(q, p, HOW: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """q^p for 0 <= q <= 1; HOW is 2 p where p is 1, 1.5, 2, 3, 4 or 6, else 0."""
    square = q * q
    if HOW == 2:
        return q
    if HOW == 3:
        return q * _square_root(q, WIDE)
    if HOW == 4:
        return square
    if HOW == 6:
        return square * q
    if HOW == 8:
        return square * square
    if HOW == 12:
        return square * square * square
    return tl.where(q > 0, tl.exp2(p * tl.log2(tl.where(q > 0, q, 1.0))), 0.0)


@triton.jit
def _cube_root(s):  # type: ignore[no-untyped-def]
    """s^(1/3) of float32, as `optim.compiled.cube_root`."""
    line = 0x54A1EAAA - (s.to(tl.int32, bitcast=True).to(tl.float32) * (1 / 3)).to(tl.int32)
    y = line.to(tl.float32, bitcast=True)
    c = s * (y * y)
    e = 1 - c * y
    series = 0.666666687 + e * (0.555536211 + e * (0.493800461 + e * (0.458591521 + e * 0.428787231)))
    return c + c * (e * series)


@triton.jit  # type: ignore[untyped-decorator]
def _lower(s, p, HOW: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """s^(1/p)."""
    if HOW == 2:
        return s
    if HOW == 4:
        return _square_root(s, WIDE)
    if HOW == 8:
        return _square_root(_square_root(s, WIDE), WIDE)
    if not WIDE:
        if HOW == 3:
            cube = _cube_root(s)
            return cube * cube
        if HOW == 6:
            return _cube_root(s)
        if HOW == 12:
            return _square_root(_cube_root(s), WIDE)
    return tl.exp2(tl.log2(s) / p)


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    places, shares, numbers, count,
    HOW: tl.constexpr, WORK: tl.constexpr, THETA: tl.constexpr, GRAD: tl.constexpr, AVERAGE: tl.constexpr,
    ROOT: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 == WORK
    share = shares + 3 * tl.program_id(0).to(tl.int64)
    tensor, first, size = tl.load(share), tl.load(share + 1), tl.load(share + 2)
    at = first + tl.arange(0, STRETCH)
    inside = at < size
    theta_at = tl.load(places + tensor).to(tl.pointer_type(THETA)) + at
    grad_at = tl.load(places + count + tensor).to(tl.pointer_type(GRAD)) + at
    average_at = tl.load(places + 2 * count + tensor).to(tl.pointer_type(AVERAGE)) + at
    root_at = tl.load(places + 3 * count + tensor).to(tl.pointer_type(ROOT)) + at
    lr, decay, eps, sign = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2), tl.load(numbers + 3)
    rest, now, fresh, below = tl.load(numbers + 4), tl.load(numbers + 5), tl.load(numbers + 6), tl.load(numbers + 7)
    past, p = tl.load(numbers + 8), tl.load(numbers + 9)

    g = sign * tl.load(grad_at, inside, 0.0).to(WORK)
    m = tl.load(average_at, inside, 0.0).to(WORK)
    r = past * tl.load(root_at, inside, 0.0).to(WORK)
    average = m + rest * (g - m)
    numerator = average + now * (g - average)
    size_g = tl.abs(g)
    grows = size_g > r
    unit = tl.where(grows, size_g, r)
    unit = tl.where(size_g == size_g, unit, size_g)  # a comparison drops NaN
    less = tl.where(grows, r, size_g)
    z = _raise(_over(less, tl.where(unit == 0, 1.0, unit), WIDE), p, HOW, WIDE)
    old = tl.where(grows, z, 1.0)
    new = tl.where(grows, 1.0, z) - old
    denominator = unit * _lower(old + below * new, p, HOW, WIDE) + eps
    theta = decay * tl.load(theta_at, inside, 0.0).to(WORK) - lr * _over(numerator, denominator, WIDE)
    tl.store(theta_at, theta.to(THETA), inside)
    tl.store(average_at, average.to(AVERAGE), inside)
    tl.store(root_at, (unit * _lower(old + fresh * new, p, HOW, WIDE)).to(ROOT), inside)


def step(columns: Columns, types: Sequence[torch.dtype], numbers: Tensor, p: float) -> None:
    """Makes one step of S3 in place.

    Args:
        columns: parameters, gradients, averages and roots on one device, each row in one order in memory and gapless.
        types: what the four are stored as.
        numbers: (10,) what `constants` gives, on the device, in the type worked in.
        p: order of the denominator.
    """
    sizes = tuple(map(Tensor.numel, columns[0]))
    places, shares = _table(columns, sizes, numbers.device)
    if not len(shares):
        return
    how = int(2 * p) if p in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0) else 0
    with torch.cuda.device_of(numbers):  # type: ignore[no-untyped-call]
        _step[(len(shares),)](
            places, shares, numbers, len(sizes), HOW=how, WORK=_TYPES[numbers.dtype], THETA=_TYPES[types[0]],
            GRAD=_TYPES[types[1]], AVERAGE=_TYPES[types[2]], ROOT=_TYPES[types[3]], STRETCH=STRETCH, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip


def _table(columns: Columns, sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns where the tensors lie (4 count), and for each program tensor, first element and size (programs, 3)."""
    pointers = tuple(chain.from_iterable(map(Tensor.data_ptr, column) for column in columns))
    key = device, sizes, pointers
    found = _tables.pop(key, None)
    if found is None:
        found = _moved(torch.tensor(pointers, dtype=torch.int64), device), _shares(sizes, device)
    _tables[key] = found
    if len(_tables) > TABLES:
        _tables.popitem(last=False)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.append(found)  # the graph reads it whenever it is replayed
    return found


@lru_cache(maxsize=TABLES)
def _shares(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    rows = [(i, first, size) for i, size in enumerate(sizes) for first in range(0, size, STRETCH)]
    return _moved(torch.tensor(rows, dtype=torch.int64).reshape(-1, 3), device)


def _moved(table: Tensor, device: torch.device) -> Tensor:
    return table if device.type == "cpu" else table.to(device)
