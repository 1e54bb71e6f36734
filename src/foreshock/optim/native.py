"""S3's step as one compiled loop: optional, for CPU; one pass over memory instead of some twenty.

`s3.c` is built when foreshock is installed where there is a C compiler (`hatch_build.py`). Where it is not there, does
not load or fails its self-check, the torch operations of `optim.blocks` give the same numbers to rounding.
`FORESHOCK_NATIVE=0` in the environment turns it off.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from foreshock.optim.flat import Columns, constants, in_order
from foreshock.optim.settings import Settings

__all__ = ["library", "update", "usable"]

SHARE = 1 << 15
"""Fewest elements for which another thread is worth its start."""
SHARES = 4
"""Shares for each thread: who is held up takes fewer."""
LINE = 64
"""Shares begin at multiples of this many elements of a tensor: each element has its place in the vectors as ever."""

_VERSION = 3
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_HOW = {1.0: 0, 1.5: 1, 2.0: 2, 3.0: 3, 4.0: 4, 6.0: 5}
_ANY = 6
# getters that `map` calls without a frame of Python: there may be thousands of small tensors
_TYPE, _ON_CPU, _LAYOUT = attrgetter("dtype"), attrgetter("is_cpu"), attrgetter("layout")


@cache
def library() -> Mapping[torch.dtype, Callable[..., None]] | None:
    """Returns the compiled step for each type it works in, or None where there is none that works."""
    if os.environ.get("FORESHOCK_NATIVE", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(Path(__file__).with_name("_s3.so")))
        if loaded.foreshock_s3_version() != _VERSION:
            return None
        steps = {kind: getattr(loaded, f"foreshock_s3_{str(kind).removeprefix('torch.')}") for kind in _TYPES}
    except (OSError, AttributeError):
        return None
    for step in steps.values():
        step.argtypes = [
            ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int32, *[ctypes.c_void_p] * 2, ctypes.c_int32,
            ctypes.c_int32, ctypes.c_void_p,
        ]
        step.restype = None
    return steps if all(_works(step, dtype) for dtype, step in steps.items()) else None


@cache
def team() -> int | None:
    """Returns where the function is that runs another one on torch's own threads (OpenMP's), or None."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError, TypeError):
        return None


def _works(step: Callable[..., None], dtype: torch.dtype) -> bool:
    """Returns whether the loop gives what it should on a small case: p = 3, from rest, over many orders of size."""
    grad = torch.tensor([(-1) ** k * 10.0 ** (k - 20) for k in range(37)], dtype=dtype, device="cpu")
    theta, average, root = torch.ones_like(grad), torch.zeros_like(grad), torch.zeros_like(grad)
    places = array("Q", [tensor.data_ptr() for tensor in (theta, grad, average, root)])
    size, types, edges = array("q", [37]), array("i", [_TYPES[dtype]] * 4), array("q", [0, 16, 37])
    settings = array("d", constants(
        torch.promote_types(dtype, torch.float32), lr=0.5, beta=0.95, beta2=0.95, p=3.0, eps=1e-30, weight_decay=0.2,
        nesterov=True, maximize=False,
    ))  # fmt: skip
    at = [each.buffer_info()[0] for each in (size, places, types)]
    step(1, *at, _HOW[3.0], settings.buffer_info()[0], edges.buffer_info()[0], 2, 1, None)
    u, g = (1 - 0.95**2) ** (2 / 3), grad.double()
    expected = [(theta, 0.9 - 0.5 * u * g.sign()), (average, 0.05 * g), (root, 0.05 ** (1 / 3) * g.abs())]
    close = max(1e-6, torch.finfo(dtype).eps)
    return all(bool(((mine.double() - true).abs() <= close * true.abs()).all()) for mine, true in expected)


def usable(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], roots: Sequence[Tensor], p: float
) -> bool:
    """Returns whether the compiled loop is there and serves these tensors: real, dense, on the CPU, float32 and
    bfloat16 in any mix, or float64 alone."""
    if torch.compiler.is_compiling() or not p < float("inf") or library() is None:
        return False
    columns = (params, grads, exp_avgs, roots)
    if not all(all(map(_ON_CPU, column)) and set(map(_LAYOUT, column)) <= {torch.strided} for column in columns):
        return False
    types = {each for column in columns for each in set(map(_TYPE, column))}
    return types <= {torch.float32, torch.bfloat16} or types <= {torch.float64}


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    roots: Sequence[Tensor],
    **settings: Unpack[Settings],
) -> None:
    """Makes one step of S3 in place, as `optim.update.update` does; call it where `usable`.

    The tensors are laid end to end and cut into shares, which torch's threads take as they get done. What does not lie
    in memory as its parameter does goes through a copy.
    """
    columns, copies = in_order([params, grads, exp_avgs, roots])
    for types, members in _by_type(columns).items():
        work = torch.float64 if torch.float64 in types else torch.float32
        _run(members, types, _HOW.get(float(settings["p"]), _ANY), constants(work, **settings), work)
    for tensor, copy in copies:
        tensor.copy_(copy)
    for column in (params, exp_avgs, roots):
        torch.autograd.graph.increment_version(column)


def _by_type(columns: Columns) -> dict[tuple[torch.dtype, ...], Columns]:
    """Returns the four columns for each combination of types."""
    found = [set(map(_TYPE, column)) for column in columns]
    if all(len(types) == 1 for types in found):
        return {tuple(types.pop() for types in found): columns}
    rows: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*columns, strict=True):
        rows.setdefault(tuple(tensor.dtype for tensor in row), []).append(row)
    return {kind: list(zip(*members, strict=True)) for kind, members in rows.items()}


def _run(
    columns: Columns, types: Sequence[torch.dtype], how: int, settings: Sequence[float], work: torch.dtype
) -> None:
    steps = library()
    assert steps is not None
    count, sizes = len(columns[0]), array("q", map(Tensor.numel, columns[0]))
    threads = max(1, min(torch.get_num_threads(), sum(sizes) // SHARE))
    edges = array("q", _edges(sizes, SHARES * threads if threads > 1 else 1))
    places = array("Q", chain.from_iterable(map(Tensor.data_ptr, column) for column in columns))
    kinds = array("i", [_TYPES[kind] for kind in types])
    at = [each.buffer_info()[0] for each in (sizes, places, kinds)]
    numbers = array("d", settings)
    step = steps[types[0] if len(set(types)) == 1 else work]  # mixtures are converted to it, block by block

    def run(first: int, shares: int) -> None:
        begin = edges.buffer_info()[0] + first * edges.itemsize
        step(count, *at, how, numbers.buffer_info()[0], begin, shares, threads, team())

    if threads == 1 or team() is not None:
        run(0, len(edges) - 1)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(len(edges) - 1), repeat(1)))


def _edges(sizes: Sequence[int], shares: int) -> list[int]:
    """Returns where equal shares of tensors laid end to end begin, and where the last one stops."""
    total = sum(sizes)
    found, before = [0], 0
    for size in sizes:
        while len(found) < shares and before + size > (wanted := total * len(found) // shares):
            found.append(before + (wanted - before) // LINE * LINE)
        before += size
    return [*found, total]
