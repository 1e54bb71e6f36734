"""A character Transformer that learns excerpts of novels by heart: full-batch Adam, forgetting slowly and fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from foreshock.monitor import Monitor
from foreshock.papers.adam_readers import Reader
from foreshock.papers.adam_study import Found, Live, row, settled_runs
from foreshock.papers.calm_spikes import match, spikes
from foreshock.papers.text import novels
from foreshock.papers.transformer import Reading, reading
from foreshock.probes import FREE
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["BETAS", "READ", "TEXT_STEPS", "descend", "text_spikes", "watch"]

TEXT_STEPS, LR = 800, 0.01
BETAS = (0.999, 0.99, 0.95)
READ = (0.999, 0.95)  # where chi is read: a reading costs as much as 20 steps
EVERY, RAW_EVERY = 3, 20  # steps between readings, and readings between raw eigenvalues
TOL = 1e-2
LEARNED = 100  # steps by which the excerpts are known


def text_spikes(seed: int, live: Live = lambda share, text: None, steps: int = TEXT_STEPS) -> Found:
    """Returns spikes and chi for each beta2.

    Raises:
        MissingExtraError: the novels are not installed.
    """
    text = novels()
    numbers: dict[str, float] = {}
    runs: dict[str, Run] = {}
    rows, titles = [], {}
    for place, beta2 in enumerate(BETAS):
        started = time.perf_counter()

        def step(at: int, loss: float, place: int = place, beta2: float = beta2) -> None:
            live((place + at / steps) / len(BETAS), f"Transformer, beta2 {beta2:g}: loss {loss:.3g}")

        watched = watch if beta2 in READ else descend
        run = watched(reading(text, seed), beta2, steps, step)
        name = f"transformer-beta2-{beta2:g}"
        runs[name], titles[name] = run, f"\u03b2\u2082 {beta2:g}"
        rows.append(row(f"Transformer, beta2 {beta2:g}", seed, run, time.perf_counter() - started))
        numbers |= {f"{what} at {beta2:g}": value for what, value in _measures(run).items()}
    if {"longest at 0.999", "longest at 0.95"} <= set(numbers):
        numbers["longer above"] = numbers["longest at 0.999"] / numbers["longest at 0.95"]
    return Found(numbers, runs, rows, {"titles": titles})


def _measures(run: Run) -> dict[str, float]:
    """Returns what is judged of one training."""
    losses = run["loss"]
    found = spikes(losses)
    rises = np.diff(losses[LEARNED:]) > 0
    numbers = {"spikes": float(len(found)), "rising": float(rises.mean()) if len(rises) else math.nan}
    if "chi" not in run:
        return numbers
    for signal in ("chi", "chi_gradient"):
        each = match(found, settled_runs(run, signal, 2))
        numbers |= {
            f"{signal} recall": each.recall, f"{signal} precision": each.precision,
            f"{signal} lead": _median([spike.trigger - up for spike, (up, _) in each.pairs]),
        }
    steps, chi = run.measured("chi")
    lengths = [last - up + EVERY for up, last in settled_runs(run, "chi", 1)]
    numbers |= {"median chi": _median(chi[steps >= LEARNED].tolist()), "longest": float(max(lengths, default=0))}
    steps, raw = run.measured("hessian_top")
    numbers["raw"] = float(raw[steps >= LEARNED].max(initial=0.0)) * LR / 2
    return numbers


def watch(problem: Reading, beta2: float, steps: int, live: Callable[[int, float], None]) -> Run:
    """Returns the run of a training that a monitor watches, chi read on its batch at every second step."""
    optimizer = _adam(problem, beta2)
    names = dict(problem.model.named_parameters())
    reader = Reader(optimizer, problem.loss, names, every=EVERY, near=math.inf, raw=RAW_EVERY, tol=TOL)
    with one_thread(), Monitor(problem.model, optimizer, probes=[*FREE, reader]) as monitor:
        monitor.annotate(paper="adam-spikes", name=f"Transformer on novels, beta2 {beta2:g}")
        for step in range(steps):
            reader.look(step)
            optimizer.zero_grad()
            loss = problem.loss()
            monitor.observe(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            live(step, loss.item())
    return monitor.run


def descend(problem: Reading, beta2: float, steps: int, live: Callable[[int, float], None]) -> Run:
    """Returns the run of the same training unwatched: the loss alone."""
    optimizer = _adam(problem, beta2)
    losses = np.empty(steps)
    with one_thread():
        for step in range(steps):
            optimizer.zero_grad()
            loss = problem.loss()
            losses[step] = loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            live(step, losses[step])
    return Run.from_arrays({"loss": losses}, paper="adam-spikes", name=f"Transformer on novels, beta2 {beta2:g}")


def _adam(problem: Reading, beta2: float) -> torch.optim.Adam:
    return torch.optim.Adam(problem.model.parameters(), lr=LR, betas=(0.9, beta2))


def _median(values: list[float] | list[int]) -> float:
    return float(np.median(values)) if values else math.nan
