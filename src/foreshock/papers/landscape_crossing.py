"""Claim 3 put to the test: where lower loss is flatter, an edge that is crossed corrects itself, without a spike.

Six trainings of the tanh network descend at a learning rate so small that nothing happens. At places of each the rate
is raised, so that lambda_max = 1.02 * 2/lr there, and training goes on for 400 updates. How far the loss then rises is
set against d lambda_max / d ln L of the quiet descent at that place: below 0 lower loss is sharper (LLAS), above 0 it
is flatter (SLAF).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshock.papers.landscape_net import tanh_problem
from foreshock.papers.landscape_training import quietly
from foreshock.papers.studies import Found, Live, Shelf, silent

__all__ = ["crossing"]

STARTS = 6  # trainings for each seed
QUIET_LR = 0.01  # 2/lr = 200: the sharpest of 12 starts comes to 60
LENGTH, FIRST, EVERY = 8000, 400, 300  # updates of the quiet descent, to its first place, and from one to the next
BESIDE = 100  # updates before and after a place between which the slope is taken; at the very start it is not local
ABOVE = 1.02  # chi right after the rate was raised
AFTER = 400  # updates with the raised rate: the excess of a mode at chi = 1.02 grows by e^31 if nothing else changes
CLEAR = 5.0  # |d lambda_max / d ln L| from which on a place counts as one or the other

Floats = npt.NDArray[np.float64]


def crossing(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns what follows where the edge is crossed, by whether lower loss is sharper or flatter there.

    Args:
        seed: the starts are those of TL-GD's seeds 6 seed, ..., 6 seed + 5.
        live: told how far it is.
        steps: updates of the quiet descents, in place of 8,000.
    """
    places: list[tuple[float, float, float]] = []
    for start in range(STARTS):
        live(start / STARTS, f"edge crossed on purpose: start {start + 1} of {STARTS}")
        places += _places(STARTS * seed + start, steps or LENGTH)
    slope, rise, end = np.array(places).reshape(-1, 3).T
    sharper, flatter = slope < -CLEAR, slope > CLEAR
    numbers = {}
    if sharper.any() and flatter.any():
        numbers = {
            "flatter-rise": float(rise[flatter].max()), "flatter-end": float(end[flatter].max()),
            "sharper-rise": float(np.median(rise[sharper])),
            "sharper-share": float(np.mean(rise[sharper] > rise[flatter].max())),
        }
    return Found(numbers, drawn={"slope": slope, "rise": rise})


def _places(seed: int, length: int) -> list[tuple[float, float, float]]:
    """Returns, place by place, d lambda_max / d ln L, the highest loss over that at the place, and chi at the end."""
    problem = tanh_problem(seed)
    losses, thetas = quietly(problem, problem.theta, QUIET_LR, length)
    found = []
    sharp = {t: _sharpness(problem.curvature(thetas[t]).hessian) for t in range(0, len(losses), BESIDE)}
    for t in range(FIRST, len(losses) - BESIDE, EVERY):
        before, after = t - BESIDE, t + BESIDE
        slope = (sharp[after] - sharp[before]) / np.log(losses[after] / losses[before])
        lr = 2.0 * ABOVE / sharp[t]
        raised, path = quietly(problem, thetas[t], lr, AFTER)
        chi = lr / 2 * _sharpness(problem.curvature(path[-1]).hessian)
        found.append((float(slope), float(raised.max() / raised[0]), chi))
    return found


def _sharpness(hessian: Floats) -> float:
    return float(np.linalg.eigvalsh(hessian)[-1])
