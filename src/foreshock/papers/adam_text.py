"""A character Transformer that learns excerpts of novels by heart: full-batch Adam, forgetting slowly and fast."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from foreshock.papers.adam_readers import Reader
from foreshock.papers.adam_study import Found, Live, causes, row, settled_runs
from foreshock.papers.calm_spikes import match, spikes
from foreshock.papers.text import novels
from foreshock.papers.transformer import Reading, reading
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["BETAS", "NEAR", "TEXT_STEPS", "descend", "text_spikes", "watch"]

TEXT_STEPS, LR = 800, 0.01
BETAS = (0.999, 0.99, 0.95)
NEAR = {0.999: 0.95, 0.95: math.inf}  # where chi is read (a reading costs 20 steps), and from which chi on at each step
EVERY, RAW_EVERY = 6, 20  # steps between readings where it is not near, and readings between raw eigenvalues
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

        watched = watch if beta2 in NEAR else descend
        run = watched(reading(text, seed), beta2, steps, step)
        name = f"transformer-beta2-{beta2:g}"
        runs[name], titles[name] = run, f"\u03b2\u2082 {beta2:g}"
        rows.append(row(f"Transformer, beta2 {beta2:g}", seed, run, time.perf_counter() - started))
        numbers |= {f"{what} at {beta2:g}": value for what, value in _measures(run).items()}
    return Found(numbers, runs, rows, {"titles": titles})


def _measures(run: Run) -> dict[str, float]:
    """Returns what is judged of one training."""
    losses = run["loss"]
    found = spikes(losses)
    rises = np.diff(losses[LEARNED:]) > 0
    late = losses[2 * LEARNED :]
    numbers = {
        "spikes": float(len(found)), "rising": float(rises.mean()) if len(rises) else math.nan,
        "largest": float(late.max() / np.median(late)) if len(late) else math.nan,
    }  # fmt: skip
    if "chi" not in run:
        return numbers
    for signal in ("chi", "chi_gradient"):
        each = match(found, settled_runs(run, signal))
        numbers |= {
            f"{signal} recall": each.recall, f"{signal} precision": each.precision,
            f"{signal} lead": _median([spike.trigger - up for spike, (up, _) in each.pairs]),
        }
    shares = [cause.shares["preconditioner"] for cause in causes(run, found) if cause is not None and cause.shares]
    numbers["preconditioner share"] = _median(shares)
    steps, chi = run.measured("chi")
    numbers["median chi"] = _median(chi[steps >= LEARNED].tolist())
    steps, raw = run.measured("hessian_top")
    numbers["raw"] = float(raw[steps >= LEARNED].max(initial=0.0)) * LR / 2
    return numbers


def watch(problem: Reading, beta2: float, steps: int, live: Callable[[int, float], None]) -> Run:
    """Returns the run of a training that a monitor watches, chi read on its batch now and then, at each step near 1."""
    optimizer = _adam(problem, beta2)
    names = dict(problem.model.named_parameters())
    reader = Reader(optimizer, problem.loss, names, every=EVERY, near=NEAR[beta2], raw=RAW_EVERY, tol=TOL)
    return reader.watch(problem.model, steps, live, name=f"Transformer on novels, beta2 {beta2:g}")


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
