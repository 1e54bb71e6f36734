"""Peak memory of one product above the loaded model, each in a process of its own (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from curvature_nets import NETS, Bench

CONTENDERS = ("gradient", "kept graph", "fresh graph", "differences", "PyHessian", "hessian-eigenthings", "curvlinops")
OURS = CONTENDERS[1:4]
# Allocations above this come from the system and go back to it, so that the peak is that of the work.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def measure(net: str, contender: str) -> tuple[float, str]:
    """Returns the peak in MiB above what the process held before, or NaN and why there is none."""
    code = f"import curvature_memory; curvature_memory.child({net!r}, {contender!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parent, env={**os.environ, **ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )
    if done.returncode:
        return float("nan"), (done.stderr.strip().splitlines() or ["no output"])[-1][:100]
    return float(done.stdout), ""


def child(net: str, contender: str) -> None:
    """Prints the peak of one product in MiB; the net is as it was made, which costs as much as a trained one."""
    torch.set_num_threads(1)
    bench = NETS[net](steps=0)
    vector = torch.randn(sum(param.numel() for param in bench.params), generator=torch.Generator().manual_seed(0))
    work = _work(bench, contender, vector)
    _warm_up()
    before = _reset()
    work()
    print((_status("VmHWM") - before) / 1024)


def _work(bench: Bench, contender: str, vector: Tensor) -> Callable[[], object]:
    if contender == "gradient":
        return lambda: torch.autograd.grad(bench.loss(), bench.params)
    if contender in OURS:
        from foreshock.curvature import Hessian

        if contender == "kept graph":
            return lambda: Hessian(bench.loss(), bench.params) @ vector
        return lambda: Hessian(bench.loss, bench.params, route=contender.partition(" ")[0]) @ vector
    import curvature_peers as peers

    if contender == "hessian-eigenthings":
        operator = peers.eigenthings(bench)
        return lambda: operator.matvec(vector)
    if contender == "curvlinops":
        return lambda: peers.curvlinops(bench, check=False) @ vector
    from pyhessian.hessian import hessian_vector_product

    sizes = [param.numel() for param in bench.params]
    pieces = [piece.view_as(param) for piece, param in zip(vector.split(sizes), bench.params, strict=True)]

    def work() -> object:
        with peers.pyhessian(bench) as (found, _):
            return hessian_vector_product(found.gradsH, found.params, pieces)

    return work


def _warm_up() -> None:
    """Lets the libraries set up what they keep for good."""
    from sklearn.datasets import load_digits as _  # noqa: F401

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    params = list(net.parameters())
    first = torch.autograd.grad(net(torch.ones(2, 1, 4, 4)).square().sum(), params, create_graph=True)
    torch.autograd.grad(first, params, [torch.ones_like(param) for param in params])
    if "foreshock.curvature" in sys.modules:
        from foreshock.curvature import Hessian

        for route in ("kept", "fresh", "differences"):
            hessian = Hessian(lambda: net(torch.ones(2, 1, 4, 4)).square().sum(), params, route=route)
            hessian @ torch.ones(hessian.shape[0])


def _reset() -> int:
    """Forgets the peak so far and returns the resident size, KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)
