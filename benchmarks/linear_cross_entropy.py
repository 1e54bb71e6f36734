"""The loss of a linear layer's outputs by chunks of rows, against all logits at once: time and memory.

python benchmarks/linear_cross_entropy.py [--rounds N] [--threads N]

All ways take turns, in an order that changes from round to round; shown are medians over rounds of the ratio to
`F.cross_entropy(F.linear(...))` of the same round, of forward and backward in processor time, which a busy machine
disturbs least. Memory is the most that is allocated at once beyond the inputs, counted from torch's own allocations,
the gradients of features and head included. Wrong answers are not timed: each way is first held against float64.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.linear import linear_cross_entropy

Way = Callable[..., Tensor]
SHAPES = ((1024, 256, 32000, torch.float32), (4096, 128, 97, torch.float32), (256, 64, 4000, torch.bfloat16))
STOCK = "F.linear, F.cross_entropy"


def dense(loss: Callable[..., Tensor], features: Tensor, head: Tensor, target: Tensor, **settings: str) -> Tensor:
    return loss(F.linear(features, head), target, **settings)


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {
        STOCK: partial(dense, F.cross_entropy),
        "F.linear, exact": partial(dense, cross_entropy),
        "exact, by chunks": linear_cross_entropy,
    }
    options: Any = getattr(torch.nn, "LinearCrossEntropyOptions", None)  # torch 2.13
    if options is not None:
        found["torch, by chunks"] = partial(F.linear_cross_entropy, options=options())
        found["torch, by 256 rows"] = partial(F.linear_cross_entropy, options=options(batch_chunk_size=256))
    return found


def problem(rows: int, width: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns features (rows, width), a head (classes, width) that gives logits of spread 1, and targets (rows,)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    head = (torch.randn(classes, width, generator=generator) / width**0.5).to(dtype).requires_grad_()
    return features, head, torch.randint(classes, (rows,), generator=generator)


def step(way: Way, features: Tensor, head: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, ...]:
    loss = way(features, head, target, reduction=reduction)
    return torch.autograd.grad(loss, (features, head), torch.ones_like(loss))


def product(way: Way, features: Tensor, head: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Returns the product of the Hessian and the gradient."""
    first = torch.autograd.grad(way(features, head, target), (features, head), create_graph=True)
    return torch.autograd.grad(first, (features, head), [each.detach() for each in first])


def error(found: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True))


def counted(work: Callable[[], object]) -> float:
    """Returns the most MiB that are allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def main(arguments: Sequence[str]) -> int:
    """Prints a table for each shape; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=max(110, Console().width))
    for rows, width, classes, dtype in SHAPES:
        features, head, target = problem(rows, width, classes, dtype)
        table = Table(title=f"{rows} x {width} x {classes}, {str(dtype).removeprefix('torch.')}", title_justify="left")
        for column in ("", "way", "ms, least", "ratio", "MiB", "ratio"):
            table.add_column(column, justify="left" if column in ("", "way") else "right", no_wrap=True)
        for kind in ("mean", "none", "Hessian product"):
            works: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
            for name, way in ways().items():
                if kind == "Hessian product" and name.startswith("torch"):
                    continue  # has no second derivative
                inputs = (way, features, head, target)
                works[name] = partial(product, *inputs) if kind == "Hessian product" else partial(step, *inputs, kind)
            few = (features[:64].detach().requires_grad_(), head, target[:64])
            wide = (few[0].detach().double().requires_grad_(), head.detach().double().requires_grad_(), target[:64])
            for name, work in works.items():
                again = (kind,) if kind != "Hessian product" else ()
                off = error(work.func(ways()[name], *few, *again), work.func(ways()[STOCK], *wide, *again))
                assert off < 100 * torch.finfo(dtype).eps, f"{name}, {kind}: {off:.1e} off"
            spent: dict[str, list[float]] = {name: [] for name in works}
            for turn in range(options.rounds):
                order = list(works)
                for name in [*order[turn % len(order) :], *order[: turn % len(order)]]:
                    begun = time.process_time()
                    works[name]()
                    spent[name].append(time.process_time() - begun)
            most = {name: counted(work) for name, work in works.items()}
            for name, each in spent.items():
                ratio = statistics.median(a / b for a, b in zip(each, spent[STOCK], strict=True))
                table.add_row(
                    kind if name == STOCK else "", name, f"{1e3 * min(each):.1f}", f"{ratio:.2f}", f"{most[name]:.0f}",
                    f"{most[name] / most[STOCK]:.2f}", end_section=name == list(works)[-1],
                )  # fmt: skip
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
