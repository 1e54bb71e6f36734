"""How chi approaches the edge: who drives it, when it will be there, and what would stop it.

All of it is read off numbers that a reading has at hand, this one's and the last one's, but for lambda_max(H), which
takes products of its own and is measured seldom, in alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from foreshock.curvature import Edge, Operator, eigsh
from foreshock.curvature.counterfactual import KAPPA, counterfactual, steps_to_edge
from foreshock.curvature.split import Mark, mode_denominator, split
from foreshock.probes.room import VECTORS, lacking

COPIES = 8  # of the parameters, that comparing and solving take beside the reading: two kept, others for the moment
TOP_EVERY = 50  # readings in alarm from one lambda_max(H) to the next: it hardly moves meanwhile (Bai et al. 2025)
TOP_TOL, TOP_MATVECS = 0.05, 40  # it is compared with a bound of which a few per cent do not matter


class Approach:
    """Compares each reading with the one before, and keeps for that two tensors as long as each parameter.

    Attributes:
        matvecs: products that the last `look` took.
        denominators: part of each of the reading's parameters in the growth of ln chi; empty where there is none.
    """

    def __init__(self) -> None:
        self.matvecs = 0
        self.denominators: tuple[float, ...] = ()
        self._last: Mark | None = None
        self._held = False
        self._since_top: int | None = None  # readings in this alarm since lambda_max(H) was measured
        self._top = math.nan

    def look(self, operator: Operator, reading: Edge, *, alarm: bool) -> None:
        """Measures lambda_max(H) where it is due: when an alarm begins, and seldom while it lasts."""
        self.matvecs, self._top = 0, math.nan
        if not alarm:
            self._since_top = None
            return
        self._since_top = None if self._since_top is None else self._since_top + 1
        if self._since_top is None or self._since_top >= TOP_EVERY:
            self._since_top = 0
            signed = -operator if reading.weights.maximize else operator
            found = eigsh(signed, tol=TOP_TOL, max_matvecs=TOP_MATVECS)
            self.matvecs, self._top = found.matvecs, float(found.values[0])

    def signals(self, reading: Edge, optimizer: Optimizer, *, held: bool) -> dict[str, float]:
        """Returns what is known beside chi; where memory is short, what needs none.

        Args:
            reading: of this step.
            optimizer: about to take the step.
            held: whether it is on a batch that is held; readings of other batches are not compared with it.
        """
        self.denominators = ()
        found = {"chi_mode_loss": reading.mode_loss, "hessian_top": self._top}
        before, self._last = self._last if held == self._held else None, None
        sharded = any(hasattr(param, "to_local") for param in reading.params)
        if not sharded and not lacking(reading.params, VECTORS + COPIES):
            try:
                found |= self._growth(before, reading) | _outlook(reading, optimizer)
                self._last, self._held = Mark.of(reading), held
            except torch.OutOfMemoryError:
                pass
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _growth(self, before: Mark | None, reading: Edge) -> dict[str, float]:
        """Returns the growth of ln chi since the last reading, in parts."""
        if before is None:
            return {}
        part = split(before, reading)
        if part.restarted:
            return {"chi_overlap": part.overlap}
        self.denominators = part.denominators
        return {
            "chi_overlap": part.overlap, "chi_growth": part.growth, "chi_growth_lr": part.lr,
            "chi_growth_momentum": part.momentum, "chi_growth_denominator": part.denominator,
            "chi_growth_preconditioner": part.preconditioner, "chi_growth_landscape": part.landscape,
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the schedule; the last reading is not stored, and growth begins anew after a resume."""
        return {"since_top": self._since_top}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._since_top, self._last = state.get("since_top"), None


def _outlook(reading: Edge, optimizer: Optimizer) -> dict[str, float]:
    """Returns when the edge will be reached, and what would keep chi below it."""
    found = {"chi_denominator": mode_denominator(reading)}
    ahead = steps_to_edge(reading)
    if ahead is not None:
        found["chi_crossing"] = float(ahead)
    if reading.chi > KAPPA:
        stable = counterfactual(reading, optimizer, kappa=KAPPA)
        if stable.eps is not None and stable.floor is not None:
            found |= {"stable_eps": stable.eps, "stable_floor": stable.floor}
    return found
