"""What curvature costs, against those who measure it too: the same nets, batches and weights, paired, in one process.

Run with `python benchmarks/curvature.py [--quick] [--all] [--nets A,B] [--only top,five] [--json PATH]`. The unit is
one plain gradient (forward and backward) of the same loss on the same batch, taken before and after whatever is
measured, in CPU time on one thread; printed is the median over repetitions of the quotient. Errors are relative, the
worst of the repetitions (each from another random start): of products against float64, of eigenvalues against our own
solver at a tolerance of 1e-6, which `--check` holds against ARPACK in float64. Memory is in gradients as well.

Nets: A an MLP on digits, Ag the same with GELU, B a GPT of 0.87 M parameters, C a convolutional net with GroupNorm,
each after some Adam (`curvature_nets.py`). Peers: `pip install -e '.[peers]'`; those not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import curvature_memory
import curvature_peers as peers
from curvature_nets import NETS, Bench
from curvature_peers import Answer, Contender
from curvature_rows import BARS, LEFT_OUT, OURS, TITLES, Row, Work, checked, rows
from curvature_track import FORWARD, along_steps, tracked

SHORT = 0.05  # seconds of gradients taken before and after each measurement, at least one
LEVEL = 0.95  # of our cost: what a peer must be below to count as faster; the rest is noise


@dataclass(frozen=True, slots=True)
class Result:
    net: str
    row: str
    who: str
    gradients: float
    products: float
    error: float
    bar: float | None
    note: str


class Clock:
    """Measures in gradients of one net."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._once()
        self._count = max(1, math.ceil(SHORT / self._once()))
        self.gradient = self._unit()

    def _once(self) -> float:
        begun = time.process_time()
        torch.autograd.grad(self._bench.loss(), self._bench.params)
        return time.process_time() - begun

    def _unit(self) -> float:
        return sum(self._once() for _ in range(self._count)) / self._count

    def cost(self, run: Callable[[], Answer]) -> tuple[float, Answer]:
        """Returns what a call cost, in gradients, and what it returned."""
        before = self._unit()
        begun = time.process_time()
        answer = run()
        spent = time.process_time() - begun
        return 2 * spent / (before + self._unit()), answer


def measure(clock: Clock, net: str, row: Row) -> Iterator[Result]:
    """Measures a row's contenders in turns."""
    found: dict[str, list[tuple[float, Answer]]] = {each.who: [] for each in row.contenders}
    failed: dict[str, str] = {}
    for seed in range(row.repeats):
        for each in row.contenders:
            if each.who not in failed and (seed == 0 or not _slow(found[each.who], each, row)):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        found[each.who].append(clock.cost(lambda each=each, seed=seed: each.run(seed)))
                except Exception as error:
                    failed[each.who] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:70]}"
    for each in row.contenders:
        runs = found[each.who]
        if each.who in failed or not runs:
            yield Result(net, row.key, each.who, math.nan, math.nan, math.nan, None, failed[each.who])
            continue
        yield Result(
            net, row.key, each.who, statistics.median(cost for cost, _ in runs),
            statistics.median(answer.products for _, answer in runs), max(row.error(answer) for _, answer in runs),
            BARS.get((row.key, net)) if each.who == OURS else None, runs[0][1].note,
        )


def _slow(runs: Sequence[tuple[float, Answer]], each: Contender, row: Row) -> bool:
    """Returns whether a peer's solver is so far behind that repeating it would only take time."""
    return each.who != OURS and bool(runs) and runs[0][0] > 40.0


def memory(net: str, wanted: Sequence[str], here: Sequence[str]) -> Iterator[Result]:
    """Yields peaks as multiples of one gradient's."""
    smooth = net in ("Ag", "B")
    unit, why = curvature_memory.measure(net, "gradient")
    if why:
        print(f"memory on {net} is left out: {why}")
        return
    for who in curvature_memory.CONTENDERS[1:]:
        own = who in curvature_memory.OURS
        key = "memory of differences" if who == "differences" else "memory"
        if key not in wanted or (not own and who not in here) or (who == "differences" and not smooth):
            continue
        peak, why = curvature_memory.measure(net, who)
        note = why or f"{peak:.0f} MiB; a gradient takes {unit:.0f}"
        bar = BARS.get((key, net)) if own else None
        yield Result(net, key, f"{OURS}, {who}" if own else who, peak / unit, 1, math.nan, bar, note)


def run(args: argparse.Namespace) -> Iterator[Result]:
    """Yields all results, net by net."""
    here = [] if args.alone else list(peers.installed())
    for net in args.nets:
        wanted = [row for row in args.only if args.all or (row, net) not in LEFT_OUT]
        bench = NETS[net]()
        clock, work = Clock(bench), Work(bench, here)
        print(f"{net}: a gradient takes {clock.gradient * 1e3:.1f} ms of CPU", flush=True)
        for row in rows(work, wanted, args.repeats):
            yield from measure(clock, net, row)
        if args.check:
            print(*checked(work), sep="\n")
        for key, who, cost, products, error, note in (
            *along_steps(bench, clock.cost, wanted, 5), *tracked(bench, clock.cost, wanted, args.follow)
        ):
            yield Result(net, key, who, cost, products, error, BARS.get((key, net)) if who == OURS else None, note)
        yield from memory(net, wanted, here)


def show(results: Sequence[Result]) -> Table:
    """Returns the results as a table, each row's own measurement first and its peers below it."""
    table = Table(title="in gradients of the same loss; errors are relative", header_style="bold")
    for column, side in (
        ("net", "left"), ("measured", "left"), ("by", "left"), ("gradients", "right"), ("products", "right"),
        ("error", "right"), ("bar", "right"), ("", "left"),
    ):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    last = ("", "")
    for each in results:
        new = last != (each.net, each.row)
        if new and last[0]:
            table.add_section()
        last = (each.net, each.row)
        if each.bar is None:
            bar = ""
        else:
            bar = f"[green]{each.bar:g}[/]" if each.gradients <= each.bar else f"[red]{each.bar:g} missed[/]"
        beaten = each.who == OURS and any(
            other.gradients < LEVEL * each.gradients and not other.error > 0.02
            for other in results
            if (other.net, other.row) == last and other.who not in (OURS, FORWARD)
        )
        note = each.note + (" [red]not first[/]" if beaten else "")
        table.add_row(
            each.net if new else "", TITLES[each.row] if new else "",
            f"[bold]{each.who}[/]" if each.who == OURS else each.who,
            _number(each.gradients, ".2f" if each.gradients < 5 else ".1f"), _number(each.products, ".3g"),
            _number(each.error, ".1e"), bar, note,
        )
    return table


def _number(value: float, style: str) -> str:
    return "" if math.isnan(value) else format(value, style)


def machine() -> dict[str, str]:
    """Returns what the numbers were measured on."""
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": (models or [platform.processor()])[0], "python": platform.python_version(), "torch": torch.__version__,
        **peers.installed(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="A,Ag,B,C", help="of A, Ag, B, C")
    parser.add_argument("--only", default=",".join(TITLES), help=f"of {', '.join(TITLES)}")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--follow", type=int, default=6, help="training steps that the tracker is followed for")
    parser.add_argument("--quick", action="store_true", help="every measurement once, fewer steps followed")
    parser.add_argument("--all", action="store_true", help="every row on every net, three times as long")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--check", action="store_true", help="hold the references against ARPACK in float64")
    parser.add_argument("--json", type=Path, help="file that the results are written to as well")
    args = parser.parse_args()
    args.nets, args.only = args.nets.split(","), args.only.split(",")
    for name, known in [*((net, NETS) for net in args.nets), *((row, TITLES) for row in args.only)]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if args.quick:
        args.repeats, args.follow = 1, 3
    torch.set_num_threads(1)
    on = machine()
    print(", ".join(f"{key} {value}" for key, value in on.items()))
    begun = time.monotonic()
    results = []
    for each in run(args):
        results.append(each)
        print(f"  {each.net} {TITLES[each.row]}: {each.who} {each.gradients:.2f}", flush=True)
    Console(width=170).print(show(results))
    print(f"{time.monotonic() - begun:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({"machine": on, "results": [asdict(each) for each in results]}, indent=1))


if __name__ == "__main__":
    main()
