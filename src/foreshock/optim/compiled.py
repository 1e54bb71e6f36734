"""S3's step compiled when it is first made: a Triton kernel on CUDA, torch's compiler elsewhere.

The kernel (`optim.kernel`) takes all tensors in one launch. For torch's compiler a tensor is its elements in the order
of memory, of a number that is left open, and lr and all other constants are a tensor: one compilation serves every
shape, schedule and group of one p and one combination of types.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Unpack

import torch
from torch import Tensor

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.optim import update as plain
from foreshock.optim.flat import constants, in_order
from foreshock.optim.settings import Settings

__all__ = ["coordinates", "update", "usable"]

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Triton runs its kernels in numpy, on tensors of the CPU as well: for tests."""
TOLERANCE = 1e-4
"""Of the kernel's numbers of about 1 against float64; what is compiled wrongly is wrong by more than this."""

_verdicts: dict[tuple[torch.device, tuple[torch.dtype, ...]], bool] = {}


def usable(device: str) -> bool:
    """Returns whether there should be a compiler for this type of device: C++ on CPU, Triton on CUDA (and ROCm)."""
    if torch.compiler.is_compiling():
        return False
    if device == "cpu":
        return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    return device == "cuda" and find_spec("triton") is not None


@torch.no_grad()
def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    roots: Sequence[Tensor],
    **settings: Unpack[Settings],
) -> None:
    """Makes one step of S3 in place, as `optim.update.update` does. The first of its kind compiles: seconds.

    Args:
        params, grads, exp_avgs, roots: real tensors of one device, of any layout (others than dense go through copies).
        settings: of their group; an lr that is a tensor is not read on the host.

    Raises:
        UsageError: there is no compiler, or it fails.
    """
    if not params:
        return
    columns, copies = in_order([params, grads, exp_avgs, roots])
    rows: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    for row in zip(*columns, strict=True):
        rows.setdefault(tuple(tensor.dtype for tensor in row), []).append(row)
    for types, members in rows.items():
        work = torch.promote_types(types[0], torch.float32)
        numbers = _numbers(work, params[0].device, settings)
        if _kernel_serves(params[0].device, types):
            _kernel().step(list(zip(*members, strict=True)), types, numbers, float(settings["p"]))
            for column in (params, exp_avgs, roots):
                torch.autograd.graph.increment_version(column)
        else:
            _one_by_one(members, types, numbers, settings)
    for tensor, copy in copies:
        tensor.copy_(copy)


def _one_by_one(
    rows: Sequence[tuple[Tensor, ...]], types: tuple[torch.dtype, ...], numbers: Tensor, settings: Settings
) -> None:
    """Makes the step by torch's compiler, a call for each tensor."""
    step = _compiled(float(settings["p"]), types)
    for row in rows:
        if row[0].numel() < 2:  # the compiler would take 0 and 1 for numbers that never change
            plain.update(*([tensor] for tensor in row), **settings)
            continue
        theta, grad, exp_avg, root = (tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in row)
        try:
            step(theta, grad, exp_avg, root, numbers)
        except Exception as failure:
            raise UsageError(
                f"torch.compile cannot build S3's step for {types[0]} on {theta.device.type} "
                f"({type(failure).__name__}: {str(failure).partition(chr(10))[0]}); it needs a C++ compiler on CPU "
                "and Triton elsewhere. fused=False takes torch's operations instead"
            ) from failure


def _kernel() -> ModuleType:
    from foreshock.optim import kernel

    return kernel


def _kernel_serves(device: torch.device, types: tuple[torch.dtype, ...]) -> bool:
    """Returns whether the Triton kernel runs on this device and agrees with float64; looked into once."""
    if not (device.type == "cuda" or (INTERPRETED and device.type == "cpu")):
        return False
    case = device, types
    if case not in _verdicts:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # a graph must not wait, and the next call may judge
        try:
            wrong = max(discrepancy(device, types, p) for p in (3.0, 2.5))
            reason = "" if wrong <= TOLERANCE else f"differs from float64 by {wrong:.1g}"  # NaN is wrong
        except Exception as failure:  # no compiler, no driver, a version that does not know a call: training goes on
            reason = f"does not run ({type(failure).__name__}: {failure})"
        if reason:
            warnings.warn(
                f"foreshock.optim.S3: its Triton kernel {reason} for {types[0]} on {device}; torch's compiler is used "
                "instead, which is as exact and takes a launch for each tensor", ForeshockWarning, stacklevel=2,
            )  # fmt: skip
        _verdicts[case] = not reason
    return _verdicts[case]


def discrepancy(device: torch.device, types: tuple[torch.dtype, ...], p: float) -> float:
    """Returns the largest error of the kernel's update and root, beside rounding to the types, on two fixed tensors."""
    settings: Settings = {
        "lr": 1.0, "beta": 0.9, "beta2": 0.8, "p": p, "eps": 1e-6, "weight_decay": 0.1, "nesterov": True,
        "maximize": True,
    }  # fmt: skip
    with torch.device("cpu"):  # whatever the default device is
        waves = [[(torch.arange(n, dtype=torch.float64) * k).sin() for n in (7, 1500)] for k in (1, 2, 3, 4)]
    waves[3] = [wave.abs() for wave in waves[3]]
    columns = [[wave.to(device, kind) for wave in column] for column, kind in zip(waves, types, strict=True)]
    exact = [[tensor.to("cpu", torch.float64, copy=True) for tensor in column] for column in columns]
    work = torch.promote_types(types[0], torch.float32)
    _kernel().step(columns, types, torch.tensor(constants(work, **settings), dtype=work, device=device), p)
    plain.update(*exact, **settings)
    worst = 0.0
    for place in (0, 2, 3):
        for mine, true in zip(columns[place], exact[place], strict=True):
            off = (mine.double().cpu() - true).abs() - torch.finfo(types[place]).eps * true.abs()
            worst = max(worst, float(off.max())) if bool(off.isfinite().all()) else float("nan")
    return worst


def _numbers(work: torch.dtype, device: torch.device, settings: Settings) -> Tensor:
    """Returns the constants on the device, (10,); what an lr on it takes part in is computed there."""
    lr = settings["lr"]
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        still = settings.copy()
        still["lr"] = 0.0
        found = _constant(work, device, constants(work, **still))
        found[0] = lr
        found[1] = 1 - lr * settings["weight_decay"]
        return found
    return _constant(work, device, constants(work, **settings))


def _constant(work: torch.dtype, device: torch.device, values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=work).to(device, non_blocking=True)


@cache
def _compiled(p: float, types: tuple[torch.dtype, ...]) -> Step:
    """Returns the compiled step. Each has a code of its own: torch counts how often one is compiled, and gives up."""
    eager = coordinates(p)
    assert isinstance(eager, FunctionType)
    code = eager.__code__.replace(co_name=f"s3_p{p:g}_" + "_".join(str(kind).removeprefix("torch.") for kind in types))
    own = FunctionType(code, eager.__globals__, code.co_name, None, eager.__closure__)
    fast = torch.compile(own, dynamic=True, fullgraph=True)

    def step(theta: Tensor, grad: Tensor, exp_avg: Tensor, root: Tensor, numbers: Tensor) -> None:
        torch._dynamo.mark_static(numbers)  # otherwise tensors of just as many elements would be of another kind
        fast(theta, grad, exp_avg, root, numbers)

    return step


@cache
def coordinates(p: float) -> Step:
    """Returns the step of flat tensors (n,), in elementwise operations that a compiler makes one loop of.

    The larger of r and |g| is the unit, so that no power leaves the range of the numbers; see `update`.
    """

    def step(theta: Tensor, grad: Tensor, exp_avg: Tensor, root: Tensor, c: Tensor) -> None:
        lr, decay, eps, sign, rest, now, fresh, below, past, _ = (c[i] for i in range(10))
        work = c.dtype
        g, m, r = sign * grad.to(work), exp_avg.to(work), past * root.to(work)
        average = m + rest * (g - m)
        numerator = average + now * (g - average)
        size = g.abs()
        unit = torch.maximum(size, r)
        q = torch.minimum(size, r) / torch.where(unit > 0, unit, 1.0)
        z = power(q, p)
        grows = size > r
        old = torch.where(grows, z, 1.0)
        new = torch.where(grows, 1.0, z) - old
        denominator = unit * inverse_power(old + below * new, p) + eps
        theta.copy_(decay * theta.to(work) - lr * (numerator / denominator))
        exp_avg.copy_(average)
        root.copy_(unit * inverse_power(old + fresh * new, p))

    return step


def power(q: Tensor, p: float) -> Tensor:
    """Returns q^p for 0 <= q <= 1."""
    if p == 1.5:
        return q * q.sqrt()
    if p in (1.0, 2.0, 3.0, 4.0, 6.0):
        square = q * q
        return {1.0: q, 2.0: square, 3.0: square * q, 4.0: square * square, 6.0: square * square * square}[p]
    return torch.exp2(p * torch.log2(q))


def inverse_power(s: Tensor, p: float) -> Tensor:
    """Returns s^(1/p) for s > 0."""
    if p == 1:
        return s
    if p == 2:
        return s.sqrt()
    if p == 4:
        return s.sqrt().sqrt()
    if s.dtype is torch.float64 or p not in (1.5, 3.0, 6.0):
        return torch.exp2(torch.log2(s) / p)
    cube = cube_root(s)
    return cube if p == 3 else cube.sqrt() if p == 6 else cube * cube


def cube_root(s: Tensor) -> Tensor:
    """Returns s^(1/3) of float32 numbers to one unit in the last place, in thirteen operations (s3.c has the same).

    >>> float(cube_root(torch.tensor([0.064], dtype=torch.float32)))
    0.4000000059604645
    """
    bits = s.view(torch.int32)
    y = (0x54A1EAAA - (bits.to(torch.float32) * (1 / 3)).to(torch.int32)).view(torch.float32)
    c = s * (y * y)
    e = 1 - c * y
    series = 0.666666687 + e * (0.555536211 + e * (0.493800461 + e * (0.458591521 + e * 0.428787231)))
    return c + c * (e * series)
