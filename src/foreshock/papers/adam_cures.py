"""What settings of Adam do to spikes, from the first step on: how many are left, how high, and what the fit costs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from foreshock.papers.adam_exact import Hyper, descend
from foreshock.papers.adam_problems import sines
from foreshock.papers.adam_sines import STEPS, recorded
from foreshock.papers.adam_study import Found, Live, settled_runs
from foreshock.papers.calm_spikes import match, spikes

__all__ = ["CURES", "Cure", "cures"]

LAST = 500  # steps whose median loss is what a training ends at
CURES: dict[str, tuple[float, ...]] = {
    "eps": (1e-8, 1e-3, 3e-3, 1e-2, 0.1),
    "beta2": (0.9999, 0.999, 0.99, 0.97, 0.95, 0.9),
    "lr": (0.02, 0.01, 0.005),
    "beta1": (0.95, 0.9, 0.5, 0.0),
}
"""Settings of the training on two sines, one changed at a time from lr .02, betas (.9, .999), eps 1e-8."""


class Cure(NamedTuple):
    """What came of a setting: spikes of at least twofold, their median height, the loss at the end, and the share of
    steps over which the loss rose."""

    spikes: int
    height: float
    final: float
    rising: float


def cures(seed: int, live: Live = lambda share, text: None, steps: int = STEPS) -> Found:
    """Returns spikes and final losses for each setting, and chi against spikes at beta2 .99."""
    started = time.perf_counter()
    problem, start = sines(seed)
    table: dict[tuple[str, float], Cure] = {}
    usual = Hyper()
    for name, values in CURES.items():
        live(0.5 * len(table) / sum(map(len, CURES.values())), f"two sines: other {name}")
        for value in values:
            changed: dict[str, Any] = {name: value}
            losses = descend(problem, start, replace(usual, **changed), steps).losses
            found = spikes(losses, 2)
            heights = [losses[spike.peak] / losses[spike.baseline] for spike in found]
            table[name, value] = Cure(
                len(found), float(np.median(heights)) if heights else float("nan"),
                float(np.median(losses[-LAST:])), float(np.mean(np.diff(losses) > 0)),
            )
    live(0.5, "two sines: chi at beta2 .99")
    trail = descend(problem, start, replace(usual, beta2=0.99), steps)
    run = recorded(problem, trail, seed, every=2, name=f"Two sines, beta2 .99, seed {seed}")
    fast = match(spikes(trail.losses), settled_runs(run, "chi"))
    base, counts = table["eps", usual.eps], {value: table["beta2", value].spikes for value in CURES["beta2"]}
    heights = [table["beta2", value].height for value in (0.999, 0.99, 0.97)]
    thetas = descend(problem, start, usual, steps).thetas[steps // 2 :: 50]
    top = float(np.median(np.linalg.eigvalsh(problem.hessians(thetas))[:, -1]))
    numbers = {
        "eps 0.1: spikes": float(table["eps", 0.1].spikes),
        "eps 0.1: cost": table["eps", 0.1].final / base.final,
        "eps 0.01: spikes left": table["eps", 1e-2].spikes / base.spikes if base.spikes else float("nan"),
        "eps critical": usual.lr * top * (1 - usual.beta1) / (2 * (1 + usual.beta1)),
        "beta2: most spikes at": max(counts, key=lambda value: counts[value]),
        "beta2 0.99: more spikes by": counts[0.99] / counts[0.999] if counts[0.999] else float("nan"),
        "beta2 0.9: spikes left": counts[0.9] / counts[0.999] if counts[0.999] else float("nan"),
        "beta2 0.9: rising": table["beta2", 0.9].rising,
        "beta2: height falls by": min(heights[0] / heights[1], heights[1] / heights[2]),
        "lr 0.005: spikes left": table["lr", 0.005].spikes / base.spikes if base.spikes else float("nan"),
        "beta2 0.99: precision": fast.precision,
        "beta2 0.99: recall": fast.recall,
    }
    seconds = f"{time.perf_counter() - started:.1f}"
    rows = [
        (
            f"Two sines, {name} {value:g}", str(seed), f"{steps:,}", str(cure.spikes), "-", "-", "-",
            f"{cure.final:.2g}", seconds if (name, value) == ("eps", usual.eps) else "",
        )
        for (name, value), cure in table.items()
        if getattr(usual, name) != value or name == "eps"
    ]
    return Found(numbers, {"sines-beta2-0.99": run}, rows, {"cures": table})
