"""What one study of the landscape-spike reproduction hands back: numbers for claims, runs, rows, things to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from foreshock.papers.claims import Claim
from foreshock.run import Run, absent

__all__ = ["Found", "Live", "Shelf", "Statement", "judge", "recorded", "silent"]

Floats = npt.NDArray[np.float64]
SAME = 0.5  # |cos| of two readings' directions, below which they are of two eigenvectors and say nothing of growth

Live = Callable[[float, str], None]
"""Called as (share that is done, what is going on)."""

Shelf = MutableMapping[str, Any]
"""Where studies of one seed leave trainings for each other."""


class Descent(Protocol):
    """A training by plain gradient descent: the loss of every step, and readings, NaN where they were not taken."""

    lr: float
    losses: Floats
    sharpness: Floats
    chi_gradient: Floats
    alignment: Floats
    overlap: Floats


def recorded(trace: Descent, name: str, **meta: object) -> Run:
    """Returns a training as a run, under the library's names of signals.

    W is constant under plain gradient descent, so that all growth of ln chi is the landscape's.
    """
    losses, lr = trace.losses, trace.lr
    readings = {
        "sharpness": trace.sharpness, "chi_gradient": trace.chi_gradient, "chi_alignment": trace.alignment,
        "chi_overlap": trace.overlap,
    }
    edge, sharpness = 2.0 / lr, readings["sharpness"]
    chi = sharpness / edge
    growth = np.full(len(losses), np.nan)
    at = np.flatnonzero(np.isfinite(chi))
    before, after = at[:-1], at[1:]
    lasting = (chi[before] > 0) & (chi[after] > 0) & (readings["chi_overlap"][after] >= SAME)
    growth[after[lasting]] = np.log(chi[after] / chi[before])[lasting]
    nothing = np.where(np.isfinite(growth), 0.0, np.nan)
    found = {
        **readings, "chi": chi, "threshold": np.where(np.isfinite(chi), edge, np.nan), "max_stable_lr": 2.0 / sharpness,
        "chi_gradient_sym": readings["chi_gradient"], "chi_growth": growth, "chi_growth_landscape": growth,
        "chi_growth_preconditioner": nothing, "chi_growth_lr": nothing, "chi_growth_momentum": nothing,
        "chi_growth_denominator": nothing,
    }
    table = {"loss": losses, "lr": np.full(len(losses), lr)}
    for signal, values in found.items():
        table[signal] = absent(len(losses))
        there = np.isfinite(values)
        table[signal][there] = values[there]
    return Run.from_arrays(table, name=name, paper="landscape-spikes", **meta)


def silent(share: float, text: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a study of one seed found.

    Attributes:
        numbers: name of a statement -> what was measured.
        runs: place -> run.
        rows: of the table of trainings.
        drawn: what only figures need.
        remarks: what a reader has to know.
    """

    numbers: Mapping[str, float]
    runs: Mapping[str, Run] = field(default_factory=dict)
    rows: Sequence[tuple[str, ...]] = ()
    drawn: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim before it is measured: an interval for the number of that name.

    Attributes:
        name: of the number.
        text: what is claimed, ending in what the number is.
        low, high: the interval.
        source: whose claim, and where the interval comes from.
    """

    name: str
    text: str
    low: float = -math.inf
    high: float = math.inf
    source: str = ""


def judge(statements: Sequence[Statement], found: Mapping[int, Sequence[Found]]) -> list[Claim]:
    """Returns the claims that at least one seed can decide, each with the seeds that can.

    Args:
        statements: what is claimed.
        found: seed -> what its studies found.
    """
    claims = []
    for each in statements:
        measured = {
            seed: study.numbers[each.name] for seed, studies in found.items() for study in studies
            if each.name in study.numbers
        }
        if measured:
            claims.append(Claim(each.name, each.text, each.low, each.high, measured, each.source))
    return claims
