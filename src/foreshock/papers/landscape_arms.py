"""Do spikes condense, and does condensation help? Three arms from one checkpoint, compared at equal loss.

The natural arm goes on through its spike. The quiet arm lowers the learning rate just before, so that there is none.
The merged arm lowers it too, after pairs of neurons were given the same input weights: condensation by force. Each is
looked at where its loss first falls to that which the natural arm reaches before its second spike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from foreshock.landscape import Condensation, condensation
from foreshock.papers.landscape_net import TanhProblem
from foreshock.papers.landscape_reference import reference_run
from foreshock.papers.landscape_training import REFERENCE_LR, quietly
from foreshock.papers.studies import Found, Live, Shelf, silent

__all__ = ["Arm", "arms", "closest_pairs", "compare", "merged", "unreached"]

Floats = npt.NDArray[np.float64]
BEFORE = 100  # updates before the minimum, at which the arms part
LOWER = 0.5  # of the learning rate, in the arms without a spike: the sharpest of them comes to .55 of the raised edge
PAIRS = 5  # of neurons that are merged, of 20
MOST = 12_000  # updates of an arm: at half the rate it takes the natural arm's 500 to 2,600 about 1,000 to 6,000


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm at the loss at which all are compared.

    Attributes:
        name: "natural", "quiet" or "merged".
        updates: since the checkpoint; None where it never came so low.
        loss, test: at the end.
        found: condensation of the layer in question.
        height: highest loss on the way over the checkpoint's.
    """

    name: str
    updates: int | None
    loss: float
    test: float
    found: Condensation
    height: float


def arms(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns the three arms on the tanh network, from the checkpoint before the first spike of `reference_run`."""
    run = reference_run(seed, lambda share, text: live(share / 2, text), steps, shelf)
    problem = run.problem
    if len(run.spikes) < 2:
        said = f"condensation, seed {seed}: fewer than two spikes in {len(run.losses) - 1:,} updates, so no arms"
        return Found({}, remarks=[said])
    first, second = run.spikes[:2]
    checkpoint = max(first.minimum - BEFORE, first.up)
    start, goal = run.thetas[checkpoint], second.low
    height = float(run.losses[checkpoint : second.minimum].max() / run.losses[checkpoint])
    found = [_arm(problem, "natural", run.thetas[second.minimum], second.minimum - checkpoint, height)]
    for name, begin in (("quiet", start), ("merged", merged(problem, start, PAIRS))):
        live(0.75, f"condensation: the {name} arm")
        losses, thetas = quietly(problem, begin, LOWER * REFERENCE_LR, MOST, until=goal)
        reached = len(losses) - 1 if losses[-1] < goal else None
        found.append(_arm(problem, name, thetas[-1], reached, float(losses.max() / run.losses[checkpoint])))
    origin = _arm(problem, "checkpoint", start, 0, 1.0)
    return Found(compare("tl", found), drawn={"arms": [origin, *found]}, remarks=unreached("TL-GD", seed, found))


def compare(prefix: str, found: list[Arm]) -> dict[str, float]:
    """Returns what those arms say that came down to the loss: natural and merged less quiet, errors as ratios."""
    by_name = {arm.name: arm for arm in found if arm.updates is not None}
    numbers = {}
    if "natural" in by_name and "quiet" in by_name:
        natural, quiet = by_name["natural"], by_name["quiet"]
        numbers[f"{prefix}-spike-condenses"] = natural.found.mean - quiet.found.mean
        numbers[f"{prefix}-spike-simplifies"] = natural.found.effective / quiet.found.effective
        numbers[f"{prefix}-spike-helps"] = _ratio(natural.test, quiet.test)
    if "merged" in by_name and "quiet" in by_name:
        numbers[f"{prefix}-merging-lasts"] = by_name["merged"].found.mean - by_name["quiet"].found.mean
        numbers[f"{prefix}-merging-helps"] = _ratio(by_name["merged"].test, by_name["quiet"].test)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def merged(problem: TanhProblem, theta: Floats, pairs: int) -> Floats:
    """Returns parameters in which the most aligned pairs of neurons share their input weights (w, b).

    tanh is odd, so a neuron that points the other way is first turned round with its output weight; the shared weights
    are the mean of the two by what each contributes, |a| |(w, b)|. The neurons stay two, with output weights of their
    own.
    """
    m, new = problem.neurons, theta.copy()
    weights = problem.neurons_of(theta)
    sizes = np.linalg.norm(weights, axis=1)
    for i, j in closest_pairs(weights, pairs):
        if weights[i] @ weights[j] < 0:
            weights[j] = -weights[j]
            new[2 * m + j] = -new[2 * m + j]
        parts = np.abs(theta[[2 * m + i, 2 * m + j]]) * sizes[[i, j]]
        shared = (parts[0] * weights[i] + parts[1] * weights[j]) / parts.sum()
        new[[i, j]], new[[m + i, m + j]] = shared[0], shared[1]
    return new


def closest_pairs(weights: Floats, pairs: int, *, signed: bool = False) -> list[tuple[int, int]]:
    """Returns the pairs of rows with the largest |cos| (cos where `signed`), each row at most once, closest first.

    >>> closest_pairs(np.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.1], [0.1, 3.0]]), 2)
    [(1, 3), (0, 2)]
    """
    units = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    cosines = units @ units.T if signed else np.abs(units @ units.T)
    rows, columns = np.triu_indices(len(units), 1)
    found: list[tuple[int, int]] = []
    taken: set[int] = set()
    for place in np.argsort(-cosines[rows, columns], kind="stable"):
        i, j = int(rows[place]), int(columns[place])
        if len(found) < pairs and i not in taken and j not in taken:
            found.append((i, j))
            taken |= {i, j}
    return found


def _arm(problem: TanhProblem, name: str, theta: Floats, updates: int | None, height: float) -> Arm:
    found = condensation(torch.from_numpy(problem.neurons_of(theta)))
    return Arm(name, updates, problem.loss(theta), problem.test_error(theta), found, height)


def _ratio(error: float, other: float) -> float:
    return error / other if other > 0 else math.nan


def unreached(title: str, seed: int, found: list[Arm]) -> list[str]:
    """Returns a remark on each arm that never came down to the loss of comparison."""
    return [
        f"{title}, seed {seed}: the {arm.name} arm never came down to the natural arm's loss (it ended at "
        f"{arm.loss:.3g}), so it is not compared"
        for arm in found if arm.updates is None
    ]
