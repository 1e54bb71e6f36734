"""Twenty tanh units on two sines: thousands of steps of full-batch Adam, dozens of spikes, each Hessian known whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.papers.adam_exact import Floats, Hyper, Problem, Trail, descend, resume
from foreshock.papers.adam_problems import sines
from foreshock.papers.adam_readings import moments, read
from foreshock.papers.adam_study import Found, Live, passages, row, settled_runs, verdicts
from foreshock.papers.calm_spikes import Match, match, spikes
from foreshock.run import Run

__all__ = ["BATCHES", "RESCUES", "STEPS", "batches", "recorded", "rescued", "sine_spikes"]

STEPS, BATCH_STEPS = 8000, 5000
BATCHES = (200, 100)
GRID = 200  # samples of the training with batches
RESCUES: tuple[tuple[str, str, Mapping[str, float]], ...] = (
    ("eps 0.1", "chi_gradient", {"eps": 0.1}),
    ("eps 0.01", "chi_gradient", {"eps": 1e-2}),
    ("eps 0.001", "chi_gradient", {"eps": 1e-3}),
    ("lr 10 % lower", "chi_gradient", {"lr": 0.018}),
    ("beta2 0.9", "chi_gradient", {"beta2": 0.9}),
    ("beta2 0.99", "chi_gradient", {"beta2": 0.99}),
)
"""Name, the signal that raises the alarm, and the settings from then on."""
AFTERWARDS = 60  # steps after the peak that was, within which a rescue must hold
APPROACH = 100  # steps before the crossing over which chi's growth is split


def recorded(problem: Problem, trail: Trail, seed: int, every: int = 1, **meta: Any) -> Run:
    """Returns a training as a run, with curvature read at every so many steps."""
    columns = {**moments(problem, trail), **read(problem, trail, every)}
    hyper = trail.hyper
    settings = {"lr": hyper.lr, "betas": [hyper.beta1, hyper.beta2], "eps": hyper.eps, "weight_decay": 0.0}
    return Run.from_arrays(
        columns, paper="adam-spikes", seed=seed, tensors=list(problem.tensors), **meta,
        optimizers=[{"class": "Adam", "groups": [settings]}],
    )


def sine_spikes(seed: int, live: Live = lambda share, text: None, steps: int = STEPS) -> Found:
    """Returns what 8,000 full-batch steps show, spike by spike."""
    started = time.perf_counter()
    problem, start = sines(seed)
    trail = descend(problem, start, Hyper(), steps)
    live(0.1, "two sines: every Hessian")
    run = recorded(problem, trail, seed, name=f"Two sines, seed {seed}")
    live(0.8, "two sines: rescues")
    found = spikes(trail.losses)
    limit = 2 / trail.hyper.lr
    matches = {
        signal: match(found, settled_runs(run, signal)) for signal in ("chi", "chi_gradient", "chi_gradient_sym")
    } | {
        signal: match(found, settled_runs(run, signal, edge=limit)) for signal in ("hessian_top", "gradient_top")
    }
    numbers = {"spikes": float(len(found)), "spikes at 2x": float(len(spikes(trail.losses, 2)))}
    for signal, each in matches.items():
        numbers |= {f"{signal} recall": each.recall, f"{signal} precision": each.precision}
        numbers[f"{signal} lead"] = _median([spike.trigger - up for spike, (up, _) in each.pairs])
        numbers[f"{signal} lead to peak"] = _median([spike.peak - up for spike, (up, _) in each.pairs])
    numbers["lead ratio"] = numbers["chi lead"] / numbers["chi_gradient lead"]
    numbers["gradient_top score"] = _score(matches["gradient_top"])
    found_passages = passages(found, matches["chi"], matches["chi_gradient"], run["v_ratio"])
    kept = np.mean([each.in_order for each in found_passages], axis=0) if found_passages else np.full(5, np.nan)
    numbers |= dict(zip(("order a", "order b", "order c", "order d", "order e"), kept.tolist(), strict=True))
    rises = np.diff(trail.losses) > 0
    numbers["sign of the sum"] = float(np.mean(rises == (run["chi_change"][:-1] > 0)))
    numbers["sign of the ratio"] = float(np.mean(rises == (np.nan_to_num(run["chi_step"][:-1], nan=-1) > 1)))
    numbers["sum over ratio"] = numbers["sign of the sum"] - numbers["sign of the ratio"]
    numbers |= _dense(problem, trail, run)
    numbers["preconditioner share"] = _median([_share(run, up) for _, (up, _) in matches["chi"].pairs])
    numbers["blamed on the preconditioner"] = _share_of(verdicts(run, found), "preconditioner")
    numbers["v ratio at crossing"] = _median([run["v_ratio"][up] for _, (up, _) in matches["chi"].pairs])
    outcomes = {
        name: rescued(problem, trail, matches[signal], changes) for name, signal, changes in RESCUES
    }
    numbers |= {f"rescued by {name}": float(np.mean(np.array(each) <= 1.5)) for name, each in outcomes.items() if each}
    return Found(
        numbers, {"sines": run}, [row("Two sines, full batch", seed, run, time.perf_counter() - started)],
        {"rescues": outcomes, "matches": matches, "passages": found_passages},
    )


def rescued(problem: Problem, trail: Trail, announced: Match, changes: Mapping[str, float]) -> list[float]:
    """Returns, for each spike that is announced, how high the loss still rises when settings change at the alarm.

    The alarm is the third reading of the run above 1; the rise, in units of the loss at the alarm, is looked for until
    60 steps after the peak that was.
    """
    result = []
    for spike, (up, _) in announced.pairs:
        alarm = up + 2
        after = resume(problem, trail, alarm, max(spike.peak - alarm, 0) + AFTERWARDS, **changes)
        result.append(float(after.losses.max() / after.losses[0]))
    return result


def batches(seed: int, live: Live = lambda share, text: None, steps: int = BATCH_STEPS) -> Found:
    """Returns what the same network does on 200 points, in whole and in halves, chi of all points read now and then."""
    numbers: dict[str, float] = {}
    runs, rows = {}, []
    for place, size in enumerate(BATCHES):
        started = time.perf_counter()
        live(place / len(BATCHES), f"two sines: batches of {size}")
        problem, start = sines(seed, GRID)
        rng = np.random.default_rng(seed + 1)
        trail = descend(problem, start, Hyper(), steps, batches=partial(_batch, rng, size))
        run = recorded(problem, trail, seed, every=4, name=f"Two sines, batches of {size}, seed {seed}")
        bumps = spikes(trail.losses, 2)
        found = match(bumps, settled_runs(run, "chi"))
        numbers |= {
            f"bumps in {size}": float(len(bumps)), f"recall in {size}": found.recall,
            f"alarms in {size}": float(len(found.pairs) + len(found.alone)),
            f"unexplained in {size}": _share_of(verdicts(run, bumps), "unexplained"),
            f"max chi in {size}": float(np.nanmax(run["chi"][50:])),
        }
        runs[f"sines-batch-{size}"] = run
        rows.append(row(f"Two sines, batches of {size} of {GRID}", seed, run, time.perf_counter() - started, 2))
    return Found(numbers, runs, rows)


def _batch(rng: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
    """Returns the rows of one step: the first of a fresh permutation."""
    return rng.permutation(GRID)[:size]


def _share_of(found: Sequence[str], wanted: str) -> float:
    return sum(each == wanted for each in found) / len(found) if found else float("nan")


def _score(found: Match) -> float:
    """Returns the harmonic mean of recall and precision, 0 where nothing was announced."""
    hits, misses = len(found.pairs), len(found.missed) + len(found.alone)
    return 2 * hits / (2 * hits + misses) if hits + misses else 0.0


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _share(run: Run, up: int) -> float:
    """Returns the preconditioner's share of chi's growth over the 100 steps before it crosses 1."""
    window = slice(max(up - APPROACH, 0) + 1, up + 1)
    preconditioner, landscape = (
        float(np.nansum(run[name][window])) for name in ("chi_growth_preconditioner", "chi_growth_landscape")
    )
    return preconditioner / (preconditioner + landscape)


def _dense(problem: Problem, trail: Trail, run: Run) -> dict[str, float]:
    """Returns by how much chi differs from the top eigenvalue of the unsymmetric W H, and how far S exceeds chi."""
    rows = np.arange(0, len(trail), max(len(trail) // 50, 1))
    plain: Floats = trail.weights[rows][:, :, None] * problem.hessians(trail.thetas[rows])
    tops = np.linalg.eigvals(plain).real.max(axis=1)
    return {
        "dense": float(np.abs(run["chi"][rows] / tops - 1).max()),
        "S above chi": float((run["chi_gradient_sym"] - run["chi"]).max()),
    }
