"""Whether rows of logits go through the Triton kernels: where Triton is, and where it computes what it should."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from foreshock.errors import ForeshockWarning
from foreshock.numerics.layout import working_dtype

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Triton runs its kernels in numpy, on tensors of the CPU as well: for tests."""
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
"""Of a kernel's numbers against float64, relative, in the type computed in. Exponentials of -60 by a GPU's instruction
are right to 4e-6 in float32; what is compiled wrongly is wrong by more than this."""

SIZES = (97, 10_000)
"""Classes to try: several rows to a program, and several programs' worth of columns to a row."""

_verdicts: dict[tuple[torch.device, torch.dtype, bool], bool] = {}


def kernels(logits: Tensor, spread: Tensor | None, dim: int) -> ModuleType | None:
    """Returns `numerics.kernel` where it serves these logits, else None.

    It serves (n, K) whose classes are neighbours in memory, on a CUDA or ROCm device, eagerly (compilers fuse what they
    trace themselves), with one right class, alone or beside targets (1, K) that all rows share. On its first use for a
    device, a type and a kind of target it is compared with float64, which waits for the device once.
    """
    if not (logits.is_cuda or (INTERPRETED and logits.is_cpu)) or torch.compiler.is_compiling():
        return None
    if type(logits) not in (Tensor, nn.Parameter) or is_functorch_wrapped_tensor(logits):
        return None
    if logits.dim() != 2 or dim not in (1, -1) or not logits.numel() or logits.stride(1) != 1:
        return None
    kind = working_dtype(logits.dtype)
    if spread is not None and (tuple(spread.shape) != (1, logits.shape[1]) or spread.dtype != kind):
        return None
    case = logits.device, logits.dtype, spread is not None
    if case not in _verdicts:
        if logits.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # a graph must not wait, and the next call may judge
        _verdicts[case] = False
        _verdicts[case] = _judge(*case)
    return _module() if _verdicts[case] else None


def _module() -> ModuleType:
    from foreshock.numerics import kernel

    return kernel


def _judge(device: torch.device, dtype: torch.dtype, soft: bool) -> bool:
    """Returns whether the kernels are there and agree with float64; says why not, if they are there."""
    if find_spec("triton") is None:
        return False
    try:
        apart = [discrepancy(device, dtype, soft, classes=classes) for classes in SIZES]
        wrong = [each for each in apart if not each <= TOLERANCE[working_dtype(dtype)]]  # NaN is wrong
        reason = f"differ from float64 by {wrong[0]:.1g}" if wrong else ""
    except Exception as failure:  # no compiler, no driver, a version that does not know a call: training goes on
        reason = f"do not run ({type(failure).__name__}: {failure})"
    if reason:
        warnings.warn(
            f"foreshock.cross_entropy: its Triton kernels {reason} for {dtype} on {device}; torch's operators are "
            "used instead, which are as exact and slower",
            ForeshockWarning,
            stacklevel=2,
        )
    return not reason


def discrepancy(device: torch.device, dtype: torch.dtype, soft: bool, *, classes: int) -> float:
    """Returns the largest error of the kernels on fixed rows with gaps of -20 to 60 nats, beside rounding to `dtype`.

    Relative for one right class; for soft targets, whose gradients cancel, relative to 1.
    """
    n, kind = 9, working_dtype(dtype)
    with torch.device("cpu"):  # whatever the default device is
        right = (37 * torch.arange(n)).remainder(classes).view(n, 1)
        # any logits will do, but the same everywhere
        z = 3 * torch.arange(n * classes, dtype=torch.float64).square().sin().view(n, classes)
        z = z.scatter(1, right, torch.linspace(-20, 60, n, dtype=torch.float64).view(n, 1)).to(dtype).double()
        outer = torch.linspace(0.5, 1, n, dtype=torch.float64).view(n, 1)
    spread = torch.full((1, classes), 0.1 / classes, dtype=kind, device=device) if soft else None
    mass = torch.full((n, 1), 0.9, dtype=kind, device=device) if soft else None
    rows, at = z.to(device, dtype), right.to(device)
    loss, top, wrong = _module().row_losses(rows, at, spread, mass)
    gradient = _module().row_gradient(rows, at, spread, mass, outer.to(device, kind), top, wrong)
    loss, gradient = loss.double().cpu(), gradient.double().cpu()

    lead = z - z.gather(1, right)
    odds = lead.exp().scatter(1, right, 0.0)  # of each wrong class against the right one
    total = odds.sum(1, keepdim=True)
    if soft:
        y = torch.full_like(z, 0.1 / classes).scatter_add(1, right, torch.full_like(outer, 0.9))
        log_p = lead - total.log1p()
        true_loss, true = -(y * log_p).sum(1, keepdim=True), outer * (log_p.exp() - y)
        off = (gradient - true).abs()
    else:
        true_loss, true = total.log1p(), outer * odds.scatter(1, right, -total) / (1 + total)
        off = (gradient / true - 1).abs()[true.abs() >= torch.finfo(dtype).tiny]
    rounding = torch.finfo(dtype).eps if dtype != kind else 0.0
    return float(torch.stack([(loss / true_loss - 1).abs().max(), off.max() - rounding]).max())
