"""The cosine of successive gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from foreshock.probes import native
from foreshock.probes.base import Step
from foreshock.probes.memory import Memory
from foreshock.probes.norms import gradient, sum_gradient_squares
from foreshock.probes.packs import Pack
from foreshock.probes.plan import Plan
from foreshock.probes.sweep import Tally, Totals
from foreshock.run.absent import ABSENT


class GradientCosine:
    """Measures `grad_cosine`, the cosine between this step's gradient and the last one's.

    At the edge of stability the unstable mode flips its sign every step, so it nears -1 (Cohen et al. 2022,
    arXiv 2207.14484). The last gradient is kept (4 bytes a parameter, 8 in float64) and is part of `state_dict`;
    above `plan.COPY_LIMIT` it is not, and nothing is measured. Absent where the step before was not seen or either
    gradient is zero.
    """

    name = "grad_cosine"
    order = 1

    def __init__(self) -> None:
        self._memory = Memory(["grad_squares"])
        self._plan: Plan | None = None
        self._saved: list[Tensor] = []

    def begin(self, step: Step, tally: Tally) -> None:
        if step.plan.keeps_copies:
            self._adopt(step.plan)
            tally.sums += ["grad_squares", "grad_products"]

    def recall(self, step: Step, tally: Tally) -> None:
        """Prepares to keep the gradient without measuring, so that the next step has one to compare with."""
        if step.plan.keeps_copies:
            self._adopt(step.plan)
            tally.sums.append("grad_squares")

    def fused(self, measures: bool) -> int:
        if self._plan is None:  # nothing is kept of a model this large
            return 0
        return native.COSINE | native.KEEP_GRADIENT if measures else native.KEEP_GRADIENT

    def visit(self, step: Step, pack: Pack) -> None:
        if not step.plan.keeps_copies:
            return
        now, last = gradient(step, pack), pack.own("last_grad")
        sum_gradient_squares(step, pack)
        step.plan.ledger.dot("grad_products", pack, now, last, spare=2)
        pack.keep("last_grad", now, "grad")

    def remember(self, step: Step, pack: Pack) -> None:
        """Keeps the gradient."""
        if step.plan.keeps_copies:
            sum_gradient_squares(step, pack)
            pack.keep("last_grad", gradient(step, pack), "grad")

    def settle(self, totals: Totals) -> Mapping[str, np.ndarray]:
        if "grad_products" not in totals.sums:
            return {}
        known, before = self._memory.follow(totals)

        def cosine(products: np.ndarray, now: np.ndarray, last: np.ndarray) -> np.ndarray:
            size = np.sqrt(now) * np.sqrt(last)  # not the root of the product: it would underflow
            seen = known.reshape(-1, *[1] * (size.ndim - 1)) & (size != 0)
            return np.where(seen, np.clip(products / size, -1.0, 1.0), ABSENT)

        sums = totals.sums["grad_products"], totals.sums["grad_squares"], before["grad_squares"]
        return {
            "grad_cosine": cosine(*(each.sum(1) for each in sums)),
            "grad_cosine/": cosine(*(totals.plan.by_unit(each) for each in sums)),
        }

    def note(self, totals: Totals) -> None:
        """Takes what `remember` left."""
        if "grad_squares" in totals.sums:
            self._memory.keep(totals)

    def state_dict(self) -> dict[str, Any]:
        if self._plan is None:
            return {}
        last = [pack.own("last_grad").clone() for pack in self._plan.packs]
        return {"memory": self._memory.state_dict(), "last": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plan = None
        if state:
            self._memory.load_state_dict(state["memory"])
            self._saved = list(state["last"])

    def _adopt(self, plan: Plan) -> None:
        if plan is self._plan:
            return
        saved, self._saved = self._saved, []
        if [tuple(rows.shape) for rows in saved] == [pack.shape for pack in plan.packs]:
            for pack, rows in zip(plan.packs, saved, strict=True):
                pack.own("last_grad").copy_(rows)
        else:
            self._memory = Memory(["grad_squares"])
        self._plan = plan
