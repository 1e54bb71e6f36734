"""The exact cross-entropy against torch's: time of forward and backward, and memory beyond the logits.

python benchmarks/cross_entropy.py [--only WORD] [--ways WORD] [--dtype float32 bfloat16] [--threads 1 2] [--rounds N]
                                   [--profile] [--no-resident] [--json PATH]

All ways of computing it take turns, in an order that changes from round to round; what is shown is the median over
rounds of the ratio to `F.cross_entropy` of the same round. "processor" is the same ratio in processor time, which a
busy machine disturbs less; with several threads it counts those that wait as well.

Memory is the most that is allocated at once between the logits and their gradient (which everybody returns), counted
from torch's own allocations, in units of the logits; the largest shape is also measured from outside, as the peak of a
process of its own (Linux). Wrong answers are not timed: each way is first held against float64.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.margin import margin_cross_entropy
from foreshock.numerics.repair import exact_gradient

SHAPES = ((4096, 32000), (4096, 97), (200, 10), (1024, 1000), (256, 32000))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STOCK, OURS = "F.cross_entropy", "exact"
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    STOCK: F.cross_entropy,
    OURS: cross_entropy,
    "identity node + F": lambda logits, target: F.cross_entropy(exact_gradient(logits, target), target),
    "margin form": margin_cross_entropy,
    "float64 logits + F": lambda logits, target: F.cross_entropy(logits.double(), target),
}
LEAST = 1e-2  # seconds that a timed turn takes at least, by repeating
BUDGET = 20.0  # seconds a shape, dtype and number of threads, unless the rounds are given
FEWEST, MOST = 5, 100  # rounds


def problem(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns logits (rows, classes) of spread 3, which want a gradient, and their targets (rows,)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(rows, classes).normal_(std=3.0, generator=generator).to(dtype)
    return logits.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def step(way: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """Returns the loss after forward and backward."""
    logits.grad = None
    loss = way(logits, target)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def check(logits: Tensor, target: Tensor, names: Sequence[str]) -> None:
    """Holds every way against float64, on logits as far apart as ordinary ones are."""
    few, some = logits.detach()[:64].clone().requires_grad_(), target[:64]
    exact = few.detach().double().requires_grad_()
    step(F.cross_entropy, exact, some)
    assert exact.grad is not None
    eps = torch.finfo(logits.dtype).eps
    for name in names:
        loss = step(WAYS[name], few, some)
        assert few.grad is not None
        error = float((few.grad.double() - exact.grad).norm() / exact.grad.norm())
        assert error < 100 * eps, f"{name}: its gradient is {error:.1e} off"
        off = abs(float(loss.detach()) / float(F.cross_entropy(exact, some).detach()) - 1)
        assert off < 100 * eps, f"{name}: its loss is {off:.1e} off"


def timed(
    logits: Tensor, target: Tensor, names: Sequence[str], rounds: int | None
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Returns for each way the median ratios to torch's, in wall and processor time, and its least wall time in ms."""
    repeats = {}
    for name in names:
        step(WAYS[name], logits, target)
        begun = time.perf_counter()
        step(WAYS[name], logits, target)
        repeats[name] = max(1, min(100, round(LEAST / (time.perf_counter() - begun))))
    walls: dict[str, list[float]] = {name: [] for name in names}
    processors: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(rounds or MOST):
        if rounds is None and turn >= FEWEST and time.perf_counter() - begun > BUDGET:
            break
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                step(WAYS[name], logits, target)
            walls[name].append((time.perf_counter() - wall) / repeats[name])
            processors[name].append((time.process_time() - processor) / repeats[name])
    return {
        name: {
            "wall": _ratio(walls[name], walls[STOCK]), "processor": _ratio(processors[name], processors[STOCK]),
            "least": min(walls[name]) / min(walls[STOCK]), "ms": 1e3 * min(walls[name]), "rounds": len(walls[name]),
        }
        for name in names
    }  # fmt: skip


def _ratio(own: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


def counted(way: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> float:
    """Returns the most bytes allocated at once by forward and backward, in units of the logits."""
    step(way, logits, target)
    logits.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(way, logits, target)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / (logits.numel() * logits.element_size())


def resident(name: str, rows: int, classes: int, dtype: str) -> float:
    """Returns the same measured from outside: the peak resident size of a process of its own above that before."""
    code = f"import cross_entropy as b; b.child({name!r}, {rows}, {classes}, {dtype!r})"
    # Allocations above this come from the system and go back to it, so that the peak is that of the work.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env={**os.environ, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return float(done.stdout) if done.returncode == 0 else float("nan")


def child(name: str, rows: int, classes: int, dtype: str) -> None:
    """Prints the peak of one way, in units of the logits."""
    torch.set_num_threads(1)
    step(WAYS[name], *problem(64, classes, DTYPES[dtype]))
    logits, target = problem(rows, classes, DTYPES[dtype])
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(WAYS[name], logits, target)
    print((_status("VmHWM") - before) * 1024 / (logits.numel() * logits.element_size()))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


def operations(logits: Tensor, target: Tensor) -> str:
    """Returns where the time of the exact loss goes, operation by operation."""
    step(cross_entropy, logits, target)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step(cross_entropy, logits, target)
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=44))


def main(arguments: Sequence[str]) -> int:
    """Prints a table for each dtype and number of threads; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="shapes whose name holds this, as in 4096x97")
    parser.add_argument("--ways", default="", help="those whose name holds this, beside torch's")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help=f"by default as many as {BUDGET:.0f} s hold")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--no-resident", action="store_true", help="leave out the processes of their own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    console = Console(width=max(130, Console().width))
    names = [name for name in WAYS if name == STOCK or options.ways in name]
    result: list[dict[str, Any]] = []
    for dtype in options.dtype:
        for threads in options.threads:
            torch.set_num_threads(threads)
            table = Table(title=f"{dtype}, {threads} thread{'s' * (threads > 1)}", title_justify="left")
            for column in ("logits", "", "ms, least", "wall", "processor", "of the least", "memory", "rounds"):
                table.add_column(column, justify="left" if column in ("logits", "") else "right", no_wrap=True)
            for rows, classes in SHAPES:
                if options.only not in f"{rows}x{classes}":
                    continue
                logits, target = problem(rows, classes, DTYPES[dtype])
                check(logits, target, names)
                if options.profile:
                    console.print(f"{rows}x{classes}, {dtype}, {threads} threads\n{operations(logits, target)}")
                found = timed(logits, target, names, options.rounds)
                for name, row in found.items():
                    row["memory"] = counted(WAYS[name], logits, target)
                    table.add_row(
                        f"{rows}x{classes}" if name == STOCK else "", name, f"{row['ms']:.3f}",
                        *(f"{row[each]:.2f}" for each in ("wall", "processor", "least", "memory")),
                        f"{row['rounds']:.0f}", end_section=name == names[-1],
                    )  # fmt: skip
                result.append({"dtype": dtype, "threads": threads, "rows": rows, "classes": classes, "ways": found})
                del logits
            console.print(table)
    if not options.no_resident and sys.platform == "linux":
        rows, classes = SHAPES[0]
        for dtype in options.dtype:
            peaks = {name: resident(name, rows // 2, classes, dtype) for name in names}
            words = ", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items())
            console.print(f"peak from outside, {rows // 2}x{classes}, {dtype}, in units of the logits: {words}")
            result.append({"dtype": dtype, "resident": peaks})
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
