"""Norms of gradients, parameters and updates, run-wide and per tensor, and the first non-finite tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from foreshock.probes import native
from foreshock.probes.base import Step
from foreshock.probes.packs import Pack
from foreshock.probes.plan import Plan
from foreshock.probes.sweep import Tally, Totals
from foreshock.run.absent import ABSENT


def gradient(step: Step, pack: Pack) -> Tensor:
    """Returns the gradient of the pack in hand as rows: in scratch 0 unless it could be viewed."""
    cache = step.cache
    if cache.get("pack") is not pack:
        cache["pack"], cache["rows"] = pack, pack.rows(step.grads, "grad", 0)
        cache.pop("squared", None)
        cache.pop("summed", None)
    return cache["rows"]  # type: ignore[no-any-return]


def gradient_squared(step: Step, pack: Pack) -> Tensor:
    """Returns the squared gradient of the pack in hand, element by element, in scratch 1; computed once a step."""
    rows = gradient(step, pack)
    if "squared" not in step.cache:
        step.cache["squared"] = torch.mul(rows, rows, out=pack.scratch(1))
    return step.cache["squared"]  # type: ignore[no-any-return]


def sum_gradient_squares(step: Step, pack: Pack) -> None:
    """Writes `grad_squares`, each row's sum of squares of the gradient, once a step."""
    squared = gradient_squared(step, pack)
    if "summed" not in step.cache:
        step.plan.ledger.sum("grad_squares", pack, squared)
        step.cache["summed"] = True


def _norms(name: str, plan: Plan, squared: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.sqrt(squared.sum(1)), f"{name}/": np.sqrt(plan.by_unit(squared))}


class GradientNorm:
    """Measures `grad_norm`, the Euclidean norm of the gradient as consumed (clipped where the loop clips), and
    `nonfinite`, `nonfinite_first`: how many tensors have a gradient (or, where `Update` runs too, a parameter) whose
    norm is not finite, and which is the first in model order."""

    name = "grad_norm"

    def begin(self, step: Step, tally: Tally) -> None:
        tally.sums.append("grad_squares")

    def fused(self, measures: bool) -> int:
        return 0  # always summed

    def visit(self, step: Step, pack: Pack) -> None:
        sum_gradient_squares(step, pack)

    def settle(self, totals: Totals) -> Mapping[str, np.ndarray]:
        squared = totals.sums["grad_squares"]
        bad = ~np.isfinite(squared)
        if "param_squares" in totals.sums:
            bad |= ~np.isfinite(totals.sums["param_squares"])
        first = np.where(bad.any(1), bad.argmax(1), -1)
        return _norms("grad_norm", totals.plan, squared) | {
            "nonfinite": bad.sum(1).astype(np.float64),
            "nonfinite_first": first.astype(np.float64),
        }


class Update:
    """Measures `param_norm` after the step, and `update_norm` and `update_rms` from a copy taken just before it.

    The copy takes 4 bytes a parameter (8 in float64). It is made after the step before and made anew when the
    parameters were written to in between: then what was written is measured too, as `outside_norm` and `outside_count`.
    A write that torch does not count (through `.data`) shows as part of the next update. Above `plan.COPY_LIMIT`
    nothing is copied and only `param_norm` is measured.
    """

    name = "update"
    order = 2

    def __init__(self) -> None:
        self._held: tuple[Plan, list[int]] | None = None
        self._at = -1  # step after which it was copied
        self._moves = self._written = False

    def before(self, plan: Plan) -> None:
        """Copies the parameters, unless the copy made after the last step is still what they are."""
        self._written = False
        if plan.keeps_copies and (self._held is None or self._held[0] is not plan or self._held[1] != _marks(plan)):
            known = self._held is not None and self._held[0] is plan and bool(self._held[1])
            self._written = known and self._at == plan.under_way - 1
            with torch.no_grad():
                values = plan.values()
                for pack in plan.packs:
                    last = pack.own("before").clone() if self._written else None
                    now = pack.copy(values, "before")
                    if last is not None:
                        _outside(plan, pack, last, now)
            self._held = plan, []

    def begin(self, step: Step, tally: Tally) -> None:
        self._moves = self._held is not None and self._held[0] is step.plan
        tally.squares += ["param_squares", "update_squares"] if self._moves else ["param_squares"]
        if self._moves:
            self._held, self._at = (step.plan, _marks(step.plan)), step.number
        if self._written:
            tally.squares.append("outside_squares")
            tally.sums.append("outside_elements")

    def fused(self, measures: bool) -> int:
        return native.PARAMETERS | native.UPDATE if self._moves else native.PARAMETERS

    def visit(self, step: Step, pack: Pack) -> None:
        plan = step.plan
        now = pack.lasting_rows(step.params, "params", 2)
        plan.ledger.squares("param_squares", pack, now)
        if self._moves:
            plan.ledger.squares("update_squares", pack, pack.own("before").sub_(now))
            pack.keep("before", now, "params")

    def settle(self, totals: Totals) -> Mapping[str, np.ndarray]:
        plan = totals.plan
        signals = _norms("param_norm", plan, totals.sums["param_squares"])
        if "update_squares" in totals.sums:
            squared = totals.sums["update_squares"]
            signals |= _norms("update_norm", plan, squared)
            signals["update_rms"] = np.sqrt(squared.sum(1) / plan.numel.sum())
            signals["update_rms/"] = np.sqrt(plan.by_unit(squared) / plan.by_unit(plan.numel))
        if "outside_squares" in totals.sums:
            changed = totals.sums["outside_elements"]
            written = _norms("outside_norm", plan, totals.sums["outside_squares"])
            written |= {"outside_count": changed.sum(1), "outside_count/": plan.by_unit(changed)}
            for suffix in ("", "/"):  # values that were written as they were are nothing
                none = written[f"outside_count{suffix}"] == 0
                for name in ("outside_norm", "outside_count"):
                    signals[name + suffix] = np.where(none, ABSENT, written[name + suffix])
        return signals


def _outside(plan: Plan, pack: Pack, last: Tensor, now: Tensor) -> None:
    """Measures what was written to a pack's tensors between the last step and this one."""
    plan.ledger.squares("outside_squares", pack, now - last)
    plan.ledger.sum("outside_elements", pack, (now != last).to(pack.dtype))


def _marks(plan: Plan) -> list[int]:
    """Returns what changes when a parameter is written to by an operation that torch counts."""
    return [param._version for param in plan.params]
