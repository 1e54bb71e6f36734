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

import numpy as np
import torch
from torch import Tensor

__all__ = ["library", "update", "usable"]

SHARE = 1 << 15
"""Fewest elements for which another thread is worth its start."""
SHARES = 4
"""Shares for each thread: who is held up takes fewer."""
LINE = 64
"""Shares begin at multiples of this many elements of a tensor: each element has its place in the vectors as ever."""

_VERSION = 2
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_HOW = {1.0: 0, 1.5: 1, 2.0: 2, 3.0: 3, 4.0: 4, 6.0: 5}
_ANY = 6
# getters that `map` calls without a frame of Python: there may be thousands of small tensors
_TYPE, _ON_CPU, _LAYOUT = attrgetter("dtype"), attrgetter("is_cpu"), attrgetter("layout")
_SETTINGS = ctypes.c_double * 10


@cache
def library() -> Mapping[torch.dtype, Callable[..., None]] | None:
    """Returns the compiled step for each type it works in, or None where there is none that works."""
    if os.environ.get("FORESHOCK_NATIVE", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(Path(__file__).with_name("_s3.so")))
        if loaded.foreshock_s3_version() != _VERSION:
            return None
        steps = {torch.float32: loaded.foreshock_s3_float32, torch.float64: loaded.foreshock_s3_float64}
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
    grad = np.array([(-1) ** k * 10.0 ** (k - 20) for k in range(37)], np.dtype(str(dtype).removeprefix("torch.")))
    theta, average, root = np.ones_like(grad), np.zeros_like(grad), np.zeros_like(grad)
    places = np.array([array.ctypes.data for array in (theta, grad, average, root)], np.uint64)
    size, types = np.array([37], np.int64), np.array([_TYPES[dtype]] * 4, np.int32)
    settings = _settings(0.5, 0.95, 0.95, 3.0, 1e-30, 0.2, True, False, dtype)
    edges = np.array([0, 16, 37], np.int64)
    at = [array.ctypes.data for array in (size, places, types)]
    step(1, *at, _HOW[3.0], ctypes.addressof(settings), edges.ctypes.data, 2, 1, None)
    u = (1 - 0.95**2) ** (2 / 3)
    return bool(
        np.allclose(theta, 0.9 - 0.5 * u * np.sign(grad), rtol=1e-6)
        and np.allclose(average, 0.05 * grad, rtol=1e-6, atol=0)
        and np.allclose(root, 0.05 ** (1 / 3) * np.abs(grad), rtol=1e-6, atol=0)
    )


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
    *,
    lr: float | Tensor,
    beta: float,
    beta2: float,
    p: float,
    eps: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Makes one step of S3 in place, as `optim.update.update` does; call it where `usable`.

    The tensors are laid end to end and cut into shares, which torch's threads take as they get done. What does not lie
    in memory as its parameter does goes through a copy.
    """
    columns = [params, grads, exp_avgs, roots]
    copies: list[tuple[Tensor, Tensor]] = []
    if not all(all(map(Tensor.is_contiguous, column)) for column in columns):
        columns = _alike(columns, copies)
    for types, members in _by_type(columns).items():
        work = torch.float64 if torch.float64 in types else torch.float32
        settings = _settings(float(lr), beta, beta2, p, eps, weight_decay, nesterov, maximize, work)
        _run(members, types, _HOW.get(float(p), _ANY), settings, work)
    for tensor, copy in copies:
        tensor.copy_(copy)
    for column in (params, exp_avgs, roots):
        torch.autograd.graph.increment_version(column)


def _settings(
    lr: float, beta: float, beta2: float, p: float, eps: float, weight_decay: float, nesterov: bool, maximize: bool,
    work: torch.dtype,
) -> ctypes.Array[ctypes.c_double]:  # fmt: skip
    """Returns the constants in the order of `Settings` in s3.c."""
    rest, fresh = 1 - beta, 1 - beta2
    below = fresh + beta2 * fresh if nesterov else fresh  # 1 - beta2^2
    return _SETTINGS(
        lr, 1 - lr * weight_decay, max(eps, torch.finfo(work).tiny), -1.0 if maximize else 1.0,
        rest, rest if nesterov else 0.0, fresh, below, 1.0 if beta2 else 0.0, p,
    )  # fmt: skip


def _by_type(columns: Sequence[Sequence[Tensor]]) -> dict[tuple[torch.dtype, ...], Sequence[Sequence[Tensor]]]:
    """Returns the four columns for each combination of types."""
    found = [set(map(_TYPE, column)) for column in columns]
    if all(len(types) == 1 for types in found):
        return {tuple(types.pop() for types in found): columns}
    rows: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*columns, strict=True):
        rows.setdefault(tuple(tensor.dtype for tensor in row), []).append(row)
    return {kind: list(zip(*members, strict=True)) for kind, members in rows.items()}


def _run(
    columns: Sequence[Sequence[Tensor]], types: Sequence[torch.dtype], how: int,
    settings: ctypes.Array[ctypes.c_double], work: torch.dtype,
) -> None:  # fmt: skip
    steps = library()
    assert steps is not None
    count, sizes = len(columns[0]), array("q", map(Tensor.numel, columns[0]))
    threads = max(1, min(torch.get_num_threads(), sum(sizes) // SHARE))
    edges = array("q", _edges(sizes, SHARES * threads if threads > 1 else 1))
    places = array("Q", chain.from_iterable(map(Tensor.data_ptr, column) for column in columns))
    kinds = array("i", [_TYPES[kind] for kind in types])
    at = [each.buffer_info()[0] for each in (sizes, places, kinds)]

    def run(first: int, shares: int) -> None:
        begin = edges.buffer_info()[0] + first * edges.itemsize
        steps[work](count, *at, how, ctypes.addressof(settings), begin, shares, threads, team())

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


def _alike(columns: Sequence[Sequence[Tensor]], copies: list[tuple[Tensor, Tensor]]) -> list[Sequence[Tensor]]:
    """Returns the tensors, each row in the same order in memory, and notes whom to copy back to."""
    rows = []
    for param, *others in zip(*columns, strict=True):
        base = param
        if not param.is_contiguous() and not _dense(param):
            base = param.contiguous()
            copies.append((param, base))
        row = [base]
        for place, tensor in enumerate(others):
            if not (tensor.is_contiguous() and base.is_contiguous()) and tensor.stride() != base.stride():
                copy = torch.empty_strided(base.shape, base.stride(), dtype=tensor.dtype).copy_(tensor)
                if place:  # not the gradient, which is only read
                    copies.append((tensor, copy))
                tensor = copy
            row.append(tensor)
        rows.append(row)
    return [list(column) for column in zip(*rows, strict=True)]


def _dense(tensor: Tensor) -> bool:
    """Returns whether the elements fill their stretch of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
