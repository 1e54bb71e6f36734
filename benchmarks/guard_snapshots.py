"""What snapshots cost: paired with the same training without, interleaved step by step, in one process, one thread.

Run with `python benchmarks/guard_snapshots.py [SHARE]` (a share of the rounds, default 1). The two networks of
`bench_monitor.py`, with AdamW. A round gives each contender one step, in an order that turns; "plain again" shows what
the method cannot resolve. Contenders take a snapshot every 10 steps, the densest there is, and at the distance that
`Snapshots()` has found for itself in 65 steps of its own before. Printed are the CPU time of all steps against the
plain loop's, the time of a snapshot and its bytes, what restoring one takes, and the time of one that is written to
disk as well.

Goal: 1.01 at the distance that is found.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench_monitor import GPT, NETS, Step, loop
from foreshock.guard.snapshots import Snapshots

CONTENDERS = ("plain", "plain again", "every 10", "found")
ALONE = 65  # steps of each contender before the rounds: a distance is found by wall time, which is one's own only alone


class Contender:
    """One training with its own copy of the net, and its ring."""

    def __init__(self, name: str, settings: dict[str, int], spill: Path | None = None) -> None:
        torch.manual_seed(0)
        self.model = GPT(**settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.train: Step = loop(self.model, self.optimizer, lambda loss: None)
        self.ring: Snapshots | None = None
        self.costs: list[float] = []
        if not name.startswith("plain"):
            self.ring = Snapshots(every=10 if name == "every 10" else None, spill=spill)
            self.ring.attach(self.model, self.optimizer)
        self.spent = 0.0

    def step(self, number: int, tokens: torch.Tensor) -> None:
        begun = time.process_time()
        self.train(tokens)
        if self.ring is not None and self.ring.due(number):
            before = time.process_time()
            self.ring.take(number)
            self.costs.append(time.process_time() - before)
        self.spent += time.process_time() - begun


def measure(name: str, settings: dict[str, int], batch: int, rounds: int) -> None:
    contenders = {each: Contender(each, settings) for each in CONTENDERS}
    for contender in contenders.values():
        for number in range(ALONE):
            contender.step(number, torch.randint(0, 256, (batch, settings["length"])))
        contender.spent, contender.costs = 0.0, []
    for number in range(rounds):
        tokens = torch.randint(0, 256, (batch, settings["length"]))
        for turn in range(len(CONTENDERS)):
            contenders[CONTENDERS[(number + turn) % len(CONTENDERS)]].step(ALONE + number, tokens)
    plain = contenders["plain"].spent
    print(f"{name}: a plain step takes {1e3 * plain / rounds:.1f} ms of CPU time")
    for each in CONTENDERS[1:]:
        contender, ring = contenders[each], contenders[each].ring
        line = f"  {each:12} {contender.spent / plain:.4f}"
        if ring is not None:
            taken = 1e3 * statistics.median(contender.costs)
            line += f"   {taken:.2f} ms a snapshot ({len(contender.costs)}), {ring.distance} steps apart"
            line += f"   {ring.nbytes / len(ring.steps) / 1e6:.2f} MB each, {len(ring.steps)} held"
        print(line)
    ring = contenders["every 10"].ring
    assert ring is not None
    begun = time.process_time()
    ring.restore(ring.steps[-1])
    print(f"  restoring    {1e3 * (time.process_time() - begun):.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        written = Contender("every 10", settings, Path(folder) / "ring")
        assert written.ring is not None
        written.train(torch.randint(0, 256, (batch, settings["length"])))
        walls = []
        for number in range(10):
            begun = time.perf_counter()
            written.ring.take(number)
            walls.append(time.perf_counter() - begun)
        print(f"  to disk      {1e3 * statistics.median(walls[2:]):.1f} ms of wall time a snapshot")


if __name__ == "__main__":
    torch.set_num_threads(1)
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for title, (sizes, rows, times) in NETS.items():
        measure(title, sizes, rows, max(40, int(times * share)))
