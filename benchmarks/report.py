"""Report of a run of a million steps and 50 signals: time and size, as ratios to a plain JSON dump and a PNG.

Run with `python benchmarks/report.py [STEPS]`. One core; the peers do strictly less: the JSON holds the same numbers
and no page, the PNG draws eight of the curves, static, undecimated as matplotlib does it by default.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foreshock.report.page import write
from foreshock.run import Run
from foreshock.run.event import Event

SIGNALS = 50
BUDGET_SECONDS, BUDGET_MEGABYTES = 10.0, 3.0  # design, section 7


def long_run(steps: int, directory: Path) -> tuple[Run, list[Event]]:
    """Returns a stored run with four spikes: loss, grad_norm, lr, ten more run-wide signals, 37 per tensor."""
    random = np.random.default_rng(0)
    x = np.arange(steps)
    loss = 3 * np.exp(-x / (steps / 4)) + 2 + 0.05 * random.standard_normal(steps)
    columns = {"loss": loss, "grad_norm": np.exp(0.1 * random.standard_normal(steps)), "lr": 1e-3 * (1 - x / steps)}
    columns |= {f"signal{i}": random.standard_normal(steps) for i in range(10)}
    columns |= {f"grad_norm/layer{i}": np.exp(0.1 * random.standard_normal(steps)) for i in range(SIGNALS - 13)}
    events = []
    for at in (np.array([0.2, 0.45, 0.6, 0.9]) * steps).astype(int):
        for column in ("loss", "grad_norm", "grad_norm/layer3"):
            columns[column][at : at + 30] += 5 * np.exp(-np.arange(30) / 8)
        base = float(np.median(loss[at - 100 : at]))
        events.append(Event("spike", at, at, at, at + 29, loss[at] - base, 100.0, "loss", {"baseline": base}))
    path = Run.from_arrays(columns, name=f"{steps} steps").save(directory / "run")
    return Run.load(path), [Event.from_dict(json.loads(json.dumps(e.to_dict(), default=int))) for e in events]


def timed(make: Callable[[], Path], repeats: int = 3) -> tuple[float, float]:
    """Returns the shortest CPU time in seconds and the size of the file in MB."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        path = make()
        best = min(best, time.process_time() - start)
    return best, path.stat().st_size / 1e6


def plain_json(run: Run, path: Path) -> Path:
    """Writes every value of the run as JSON."""
    path.write_text(json.dumps({column: run[column].tolist() for column in run.columns}))
    return path


def png(run: Run, path: Path) -> Path:
    """Draws eight curves of the run with matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 16))
    FigureCanvasAgg(figure)
    for axes, column in zip(figure.subplots(8), run.columns, strict=False):
        axes.plot(run.steps, run[column])
    figure.savefig(path)
    return path


def main(steps: int = 1_000_000) -> int:
    """Prints the table; returns 1 where a budget is missed."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run, events = long_run(steps, directory)
        seconds, megabytes = timed(lambda: write(run, directory / "page.html", events=events))
        print(f"{steps:,} steps x {SIGNALS} signals, one core")
        print(f"{'':28} {'CPU s':>8} {'ratio':>7} {'MB':>9} {'ratio':>8}")
        print(f"{'foreshock page':28} {seconds:8.2f} {1:7.2f} {megabytes:9.2f} {1:8.2f}")
        peers: tuple[tuple[str, Callable[[], Path]], ...] = (
            ("plain JSON of the values", lambda: plain_json(run, directory / "run.json")),
            ("matplotlib PNG, 8 curves", lambda: png(run, directory / "run.png")),
        )
        for label, make in peers:
            other, size = timed(make, repeats=1)
            print(f"{label:28} {other:8.2f} {other / seconds:7.2f} {size:9.2f} {size / megabytes:8.2f}")
    return int(seconds > BUDGET_SECONDS or megabytes > BUDGET_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
