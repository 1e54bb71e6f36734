"""The step of S3 against that of torch's AdamW of the same kind, over sets of tensors like those of real models.

python benchmarks/s3_step.py [--sets WORD ...] [--p 3 2 1 4 2.5] [--dtype float32 bfloat16] [--threads 1 2]
                             [--rounds N] [--compiled] [--json PATH]

All optimizers of a set take turns, in an order that changes from round to round, each on parameters and moments of its
own; gradients are shared. What is shown is the median over rounds of the ratio to AdamW's step of the same kind in the
same round, with its quartiles, in wall time and in processor time, which a busy machine disturbs less.

foreach       S3(foreach=True), which takes the compiled loop where it was built, against AdamW(foreach=True)
torch only    S3(foreach=True, fused=False), torch operations alone, against AdamW(foreach=True)
fused         S3(fused=True) against AdamW(fused=True)
compiled      optim.compiled, torch's compiler, against AdamW(fused=True) (with --compiled: compiling takes a minute)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import AdamW, Optimizer

from foreshock.optim import S3

Shapes = list[tuple[int, ...]]
BUDGET = 12.0  # seconds a table's block, unless the rounds are given
FEWEST, MOST = 7, 60  # rounds
LEAST = 4e-3  # seconds that a timed turn takes at least, by repeating
TARGET = 1.1


def gpt(layers: int, width: int, vocabulary: int, context: int) -> Shapes:
    """Returns the shapes of a GPT-2 with tied embeddings."""
    block: Shapes = [
        (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,),
        (width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,),
    ]
    return [(vocabulary, width), (context, width), *block * layers, (width,), (width,)]


def conv() -> Shapes:
    """Returns the shapes of a ResNet-18."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for wide in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(wide, width, 3, 3), (wide,), (wide,), (wide, wide, 3, 3), (wide,), (wide,)]
            if not block and wide != width:
                shapes += [(wide, width, 1, 1), (wide,), (wide,)]
            width = wide
    return [*shapes, (1000, 512), (1000,)]


SETS: dict[str, Callable[[], Shapes]] = {
    "GPT 10 M": lambda: gpt(6, 336, 5000, 256),
    "GPT 100 M": lambda: gpt(12, 768, 20000, 1024),
    "ResNet-18": conv,
    "1000 small": lambda: [(64,)] * 500 + [(32, 32)] * 500,
    "embedding": lambda: [(50_000, 512)],
}


def ways(p: float) -> dict[str, tuple[Callable[[list[nn.Parameter]], Optimizer], str | None]]:
    """Returns for each name what makes the optimizer, and whom it is compared with."""
    shared: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.1}
    return {
        "AdamW foreach": (lambda params: AdamW(params, foreach=True, **shared), None),
        "foreach": (lambda params: S3(params, p=p, foreach=True, **shared), "AdamW foreach"),
        "torch only": (lambda params: S3(params, p=p, foreach=True, fused=False, **shared), "AdamW foreach"),
        "AdamW fused": (lambda params: AdamW(params, fused=True, **shared), None),
        "fused": (lambda params: S3(params, p=p, fused=True, **shared), "AdamW fused"),
    }


class Compiled(S3):
    """S3 whose step is torch's compiler's."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        from foreshock.optim import compiled
        from foreshock.optim.settings import settings_of

        for group in self.param_groups:
            lists: tuple[list[Any], ...] = ([], [], [], [])
            self._init_group(group, *lists)
            compiled.update(*lists, **settings_of(group))


def timed(
    shapes: Shapes, dtype: torch.dtype, p: float, rounds: int | None, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Returns for each way its ratios to AdamW's step, its least wall time in ms, and the bytes of its moments."""
    generator = torch.Generator().manual_seed(0)
    grads = [(torch.randn(shape, generator=generator) * 0.1).to(dtype) for shape in shapes]
    makers = ways(p)
    if compiled:
        makers["compiled"] = (lambda params: Compiled(params, lr=1e-4, p=p, weight_decay=0.1), "AdamW fused")
    steps: dict[str, Callable[[], Any]] = {}
    state: dict[str, int] = {}
    for name, (make, _) in makers.items():
        params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer = make(params)
        optimizer.step()
        steps[name] = optimizer.step
        state[name] = sum(
            value.nbytes for each in optimizer.state.values() for key, value in each.items() if key != "step"
        )
    begun = time.perf_counter()
    steps["AdamW fused"]()
    repeats = max(1, min(50, round(LEAST / (time.perf_counter() - begun))))
    walls: dict[str, list[float]] = {name: [] for name in steps}
    processors: dict[str, list[float]] = {name: [] for name in steps}
    names, begun = list(steps), time.perf_counter()
    for turn in range(rounds or MOST):
        if rounds is None and turn >= FEWEST and time.perf_counter() - begun > BUDGET:
            break
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                steps[name]()
            walls[name].append((time.perf_counter() - wall) / repeats)
            processors[name].append((time.process_time() - processor) / repeats)
    found: dict[str, dict[str, Any]] = {}
    for name, (_, against) in makers.items():
        base = against or name
        found[name] = {
            "wall": _quartiles(walls[name], walls[base]), "processor": _quartiles(processors[name], processors[base]),
            "ms": 1e3 * min(walls[name]), "state": state[name] / state[base], "against": base,
            "rounds": len(walls[name]),
        }  # fmt: skip
    return found


def _quartiles(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Returns lower quartile, median and upper quartile of the ratios of the same round."""
    return statistics.quantiles([a / b for a, b in zip(own, other, strict=True)], n=4)


def _shown(quartiles: Sequence[float]) -> str:
    low, middle, high = quartiles
    colour = "green" if middle <= TARGET else "red"
    return f"[{colour}]{middle:.2f}[/] ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[], help="words of the sets' names; all by default")
    parser.add_argument("--p", type=float, nargs="+", default=[3.0, 2.0, 1.0, 4.0, 2.5])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    console = Console(width=150)
    console.print(f"torch {torch.__version__}, {os.cpu_count()} processors")
    rows: list[dict[str, Any]] = []
    for name, make in SETS.items():
        if given.sets and not any(word.lower() in name.lower() for word in given.sets):
            continue
        millions = sum(torch.Size(shape).numel() for shape in make()) / 1e6
        table = Table(title=f"{name}: {millions:.1f} M in {len(make())} tensors")
        for column in ("type", "threads", "p", "way", "ms", "wall / AdamW's", "processor / AdamW's", "moments", "load"):
            table.add_column(column)
        for dtype in given.dtype:
            for threads in given.threads:
                torch.set_num_threads(threads)
                for p in given.p:
                    load = os.getloadavg()[0]
                    found = timed(make(), getattr(torch, dtype), p, given.rounds, given.compiled)
                    for way, each in found.items():
                        case = {"set": name, "dtype": dtype, "threads": threads, "p": p, "load": load}
                        rows.append({**case, "way": way, **each})
                        if each["against"] != way:
                            table.add_row(
                                dtype, str(threads), f"{p:g}", f"{way} : {each['against']}", f"{each['ms']:.2f}",
                                _shown(each["wall"]), _shown(each["processor"]), f"{each['state']:.2f}", f"{load:.1f}",
                            )  # fmt: skip
        console.print(table)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
