"""S3's step as one compiled loop: optional, for CPU; one pass over memory instead of some twenty.

`s3.c` is built when foreshock is installed where there is a C compiler (`hatch_build.py`). Where it is not there, does
not load or fails its self-check, the torch operations of `optim.blocks` give the same numbers to rounding.
`FORESHOCK_NATIVE=0` in the environment turns it off.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["library", "update", "usable"]

SHARE = 1 << 16
"""Fewest elements for which another thread is worth its start."""
LINE = 64
"""Threads begin at multiples of this many elements of a tensor."""

_VERSION = 1
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_HOW = {1.0: 0, 1.5: 1, 2.0: 2, 3.0: 3, 4.0: 4, 6.0: 5}
_ANY = 6
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
            ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ]
        step.restype = None
    return steps if all(_works(step, dtype) for dtype, step in steps.items()) else None


def _works(step: Callable[..., None], dtype: torch.dtype) -> bool:
    """Returns whether the loop gives what it should on a small case: p = 3, from rest, over many orders of size."""
    grad = np.array([(-1) ** k * 10.0 ** (k - 20) for k in range(37)], np.dtype(str(dtype).removeprefix("torch.")))
    theta, average, root = np.ones_like(grad), np.zeros_like(grad), np.zeros_like(grad)
    places = np.array([array.ctypes.data for array in (theta, grad, average, root)], np.uint64)
    size, types = np.array([37], np.int64), np.array([_TYPES[dtype]] * 4, np.int32)
    settings = _settings(0.5, 0.95, 0.95, 3.0, 1e-30, 0.2, True, False, dtype)
    step(1, size.ctypes.data, places.ctypes.data, types.ctypes.data, _HOW[3.0], ctypes.addressof(settings), 0, 37)
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
    types = set()
    for tensors in (params, grads, exp_avgs, roots):
        for tensor in tensors:
            if not tensor.is_cpu or tensor.layout is not torch.strided:
                return False
            types.add(tensor.dtype)
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

    The tensors are laid end to end and cut into as many shares as torch has threads. What does not lie in memory as its
    parameter does goes through a copy.
    """
    columns = [params, grads, exp_avgs, roots]
    copies: list[tuple[Tensor, Tensor]] = []
    if not all(tensor.is_contiguous() for column in columns for tensor in column):
        columns = _alike(columns, copies)
    for types, members in _by_type(columns).items():
        work = torch.float64 if torch.float64 in types else torch.float32
        settings = _settings(float(lr), beta, beta2, p, eps, weight_decay, nesterov, maximize, work)
        _run(members, types, _HOW.get(float(p), _ANY), settings, work)
    for tensor, copy in copies:
        tensor.copy_(copy)


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


def _by_type(columns: Sequence[Sequence[Tensor]]) -> dict[tuple[torch.dtype, ...], list[list[Tensor]]]:
    """Returns the four columns for each combination of types."""
    kinds = [tuple(tensor.dtype for tensor in row) for row in zip(*columns, strict=True)]
    if len(set(kinds)) == 1:
        return {kinds[0]: [list(column) for column in columns]}
    found: dict[tuple[torch.dtype, ...], list[list[Tensor]]] = {}
    for kind, *row in zip(kinds, *columns, strict=True):
        for column, tensor in zip(found.setdefault(kind, [[], [], [], []]), row, strict=True):
            column.append(tensor)
    return found


def _run(
    columns: Sequence[Sequence[Tensor]], types: Sequence[torch.dtype], how: int,
    settings: ctypes.Array[ctypes.c_double], work: torch.dtype,
) -> None:  # fmt: skip
    steps = library()
    assert steps is not None
    count = len(columns[0])
    sizes = [tensor.numel() for tensor in columns[0]]
    # kept in names: the loop reads them while it runs
    numbers = (ctypes.c_int64 * count)(*sizes)
    places = (ctypes.c_uint64 * (4 * count))(*[tensor.data_ptr() for column in columns for tensor in column])
    kinds = (ctypes.c_int32 * 4)(*[_TYPES[kind] for kind in types])
    at = [ctypes.addressof(array) for array in (numbers, places, kinds, settings)]

    def share(first: int, stop: int) -> None:
        steps[work](count, *at[:3], how, at[3], first, stop)

    total = sum(sizes)
    threads = min(torch.get_num_threads(), max(1, total // SHARE))
    if threads == 1:
        share(0, total)
        return
    edges = [0, *_edges(sizes, total, threads), total]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, edges[:-1], edges[1:]))


def _edges(sizes: Sequence[int], total: int, threads: int) -> list[int]:
    """Returns where all threads but the first begin: so that an element is in the same place of the vectors as ever."""
    found, before, wanted = [], 0, 1
    for size in sizes:
        while wanted < threads and before + size > total * wanted // threads:
            found.append(before + (total * wanted // threads - before) // LINE * LINE)
            wanted += 1
        before += size
    return found


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
