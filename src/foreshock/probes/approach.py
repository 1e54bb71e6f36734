"""How chi approaches the edge: who drives it, when it will be there, what the loss will do, and what would stop it.

All of it is read off numbers that a reading has at hand, this one's and the last one's, but for lambda_max(H), which
takes products of its own and is measured seldom, in alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature import Edge, Operator, eigsh
from foreshock.curvature.counterfactual import KAPPA, counterfactual, steps_to_edge
from foreshock.curvature.outlook import foretell
from foreshock.curvature.split import Mark, mode_denominator, split
from foreshock.probes.room import VECTORS, lacking

COPIES = 8  # of the parameters, that comparing and solving take beside the reading: two kept, others for the moment
TOP_EVERY = 50  # readings in alarm from one lambda_max(H) to the next: it hardly moves meanwhile (Bai et al. 2025)
NEAR = 0.9  # chi from which on it is worth foretelling what the loss will do
RECENT = 10  # readings whose growth says how chi drifts
STEEPEST = 0.02  # drift of ln chi per step, at most: readings of a few steps are noisier than that
TOP_TOL, TOP_MATVECS = 0.05, 40  # it is compared with a bound of which a few per cent do not matter


class Approach:
    """Compares each reading with the one before, and keeps for that two tensors as long as each parameter.

    Attributes:
        matvecs: products that the last `look` took.
        overlap: of the last reading's direction with the one before, NaN where there was none.
        denominators: part of each of the reading's parameters in the growth of ln chi; empty where there is none.
    """

    def __init__(self) -> None:
        self.matvecs = 0
        self.denominators: tuple[float, ...] = ()
        self.overlap = math.nan
        self._last: Mark | None = None
        self._held = False
        self._since_top: int | None = None  # readings in this alarm since lambda_max(H) was measured
        self._top = math.nan
        self._grown: deque[tuple[int, float]] = deque(maxlen=RECENT)  # steps, and growth beside the denominators'

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

    def signals(
        self, reading: Edge, optimizer: Optimizer, grads: Sequence[Tensor | None] | None, *, since: int, held: bool
    ) -> dict[str, float]:
        """Returns what is known beside chi; where memory is short, what needs none.

        Args:
            reading: of this step.
            optimizer: about to take the step.
            grads: that the step consumes, for all its parameters.
            since: steps since the last reading.
            held: whether it is on a batch that is held; readings of other batches are not compared with it.
        """
        self.denominators, self.overlap = (), math.nan
        found = {"chi_mode_loss": reading.mode_loss, "hessian_top": self._top}
        before, self._last = self._last if held == self._held else None, None
        sharded = any(hasattr(param, "to_local") for param in reading.params)
        if not sharded and not lacking(reading.params, VECTORS + COPIES):
            try:
                growth = self._growth(before, reading)
                self._drifts(growth, since)
                found |= growth | _stable(reading, optimizer)
                if grads is not None and reading.chi > NEAR:
                    found |= self._foretold(reading, optimizer, grads)
                self._last, self._held = Mark.of(reading), held
            except torch.OutOfMemoryError:
                pass
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _drifts(self, growth: Mapping[str, float], since: int) -> None:
        """Takes note of what moves chi beside the denominators; their part follows from the second moments."""
        if "chi_growth" in growth:
            self._grown.append((since, growth["chi_growth"] - growth["chi_growth_denominator"]))
        else:
            self._grown.clear()

    def _foretold(
        self, reading: Edge, optimizer: Optimizer, grads: Sequence[Tensor | None]
    ) -> dict[str, float]:
        """Returns how far the loss will rise, and when."""
        steps = sum(steps for steps, _ in self._grown)
        drift = sum(grown for _, grown in self._grown) / steps if steps else 0.0
        drift = min(max(drift, -STEEPEST), STEEPEST)
        ahead = foretell(reading, grads, optimizer, loss=reading.loss, drift=drift)
        if ahead is None:
            return {}
        return {"expected_rise": ahead.rise} | ({} if ahead.steps is None else {"expected_rise_in": float(ahead.steps)})

    def _growth(self, before: Mark | None, reading: Edge) -> dict[str, float]:
        """Returns the growth of ln chi since the last reading, in parts."""
        if before is None:
            return {}
        part = split(before, reading)
        self.overlap = part.overlap
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
        self._grown.clear()


def _stable(reading: Edge, optimizer: Optimizer) -> dict[str, float]:
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
