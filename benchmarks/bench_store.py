"""The run directory against its peers on the same records: appending, loading with every checksum, reading a signal.

Run with `python benchmarks/bench_store.py [STEPS]` (default 1,000,000 steps to read, 50 signals, float32). CPU time,
best of three, all in one process. The peers are `os.write` of as many bytes (the floor: no record format, no
checksum), SQLite in WAL mode with one row and one commit a step (the store with the same promise after a kill), and
`numpy.save` of the finished matrix (no appending, no checksum).
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foreshock.run import Run, RunWriter

APPENDS = 20_000
BUDGET_LOAD, BUDGET_COLUMN = 1.0, 0.050  # seconds, of a run of a million steps and 50 signals


def cpu(work: Callable[[], object], repeats: int = 3) -> float:
    """Returns the shortest CPU time in seconds."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def append_ours(folder: Path, columns: int) -> Callable[[], None]:
    names = tuple(f"signal{index}" for index in range(columns))
    row = np.random.default_rng(0).standard_normal((1, columns)).astype(np.float32)
    writer = RunWriter(folder / f"ours-{columns}").open()
    step = np.zeros(1, np.int64)

    def work() -> None:
        for _ in range(APPENDS):
            writer.append("step", names, step, (0.0,), row)
            step[0] += 1

    return work


def append_bytes(folder: Path, columns: int) -> Callable[[], None]:
    descriptor = os.open(folder / f"bytes-{columns}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    record = bytes(20 + 4 * columns)

    def work() -> None:
        for _ in range(APPENDS):
            os.write(descriptor, record)

    return work


def append_sqlite(folder: Path, columns: int) -> Callable[[], None]:
    base = sqlite3.connect(folder / f"sqlite-{columns}.db", isolation_level=None)
    base.execute("pragma journal_mode=wal")
    base.execute("pragma synchronous=normal")
    base.execute("create table step (step integer, time real, row blob)")
    row = np.zeros((1, columns), np.float32)

    def work() -> None:
        for step in range(APPENDS):
            base.execute("insert into step values (?, ?, ?)", (step, 0.0, row.tobytes()))

    return work


def reading(folder: Path, steps: int, columns: int = 50) -> None:
    values = np.random.default_rng(0).standard_normal((steps, columns)).astype(np.float32)
    names = tuple(f"signal{index}" for index in range(columns))
    with RunWriter(folder / "run") as writer:
        for first in range(0, steps, 10_000):
            block = values[first : first + 10_000]
            writer.append("step", names, np.arange(first, first + len(block)), np.zeros(len(block)), block)
    np.save(folder / "matrix.npy", values)
    base = sqlite3.connect(folder / "run.db")
    base.execute("create table step (step integer, time real, row blob)")
    base.executemany("insert into step values (?, 0.0, ?)", ((step, row.tobytes()) for step, row in enumerate(values)))
    base.commit()

    def sqlite_column() -> None:
        rows = base.execute("select row from step order by step").fetchall()
        np.frombuffer(b"".join(row for (row,) in rows), np.float32).reshape(-1, columns)[:, 3].astype(np.float64)

    load = cpu(lambda: Run.load(folder / "run", strict=True))
    whole = cpu(lambda: np.load(folder / "matrix.npy"))
    run = Run.load(folder / "run")
    column = cpu(lambda: run["signal3"])
    mapped = cpu(lambda: np.load(folder / "matrix.npy", mmap_mode="r")[:, 3].astype(np.float64))
    other = cpu(sqlite_column, repeats=1)
    records = cpu(lambda: sum(1 for _ in run.records()), repeats=1)
    scale = steps / 1e6
    print(f"\nreading {steps:,} steps x {columns} signals, ms CPU")
    print(f"  load, every checksum  {load * 1e3:8.1f}   {load / whole:5.2f} x numpy.load of the whole matrix")
    ratios = f"{column / mapped:5.2f} x numpy.load mapped, {column / other:.3f} x SQLite"
    print(f"  one signal            {column * 1e3:8.1f}   {ratios}")
    print(f"  records, us a step    {records / steps * 1e6:8.2f}")
    met = load <= BUDGET_LOAD * scale and column <= BUDGET_COLUMN * scale
    budget = f"load {BUDGET_LOAD * 1e3:.0f} ms, signal {BUDGET_COLUMN * 1e3:.0f} ms a million steps"
    print(f"  budget: {budget}: {'met' if met else 'NOT MET'}")


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("appending one record a step, us CPU")
        for columns in (50, 1600):
            works = [make(folder, columns) for make in (append_ours, append_bytes, append_sqlite)]
            rounds = [[cpu(work, repeats=1) for work in works] for _ in range(3)]  # interleaved
            ours, raw, sqlite = (min(times) for times in zip(*rounds, strict=True))
            ratios = f"{ours / raw:5.2f} x bare os.write, {ours / sqlite:5.2f} x SQLite"
            print(f"  {columns:5d} signals  {ours / APPENDS * 1e6:6.2f}   {ratios}")
        reading(folder, steps)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
