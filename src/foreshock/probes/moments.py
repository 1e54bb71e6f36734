"""The second moment against the gradient: does v follow g^2, or is it history that decays?

Source: Bai et al. 2025, arXiv 2506.04805: before a spike of Adam's preconditioner g^2/v is far below 1 and v shrinks
like beta2^t, tensor by tensor. Deviations: (1) v_{t-1} = (v_t - (1 - beta2) g_t^2) / beta2 is not stored but recovered,
which float32 allows up to g^2/v of 2e6/(1 - beta2), bfloat16 up to 32/(1 - beta2); (2) it is floored at eps^2, below
which eps rules the denominator, so that a coordinate that wakes up gives a large finite number; (3) where the norm
of v under- or overflows float32 (v of 1e-19, torch path only), its growth is that of the sum of v instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.probes import native
from foreshock.probes.base import Step
from foreshock.probes.memory import Memory
from foreshock.probes.norms import gradient, gradient_squared
from foreshock.probes.packs import Pack, local
from foreshock.probes.plan import Plan
from foreshock.probes.second_moment import SecondMoment
from foreshock.probes.sweep import Tally, Totals
from foreshock.run.absent import ABSENT

# v decays freely where it falls by this share of ln beta2 or more: squared gradients are then below a tenth of it
FREELY = 0.9

# sums of v^2 that the type holds to full precision
_SAFE = {np.dtype(np.float32): (1e-30, 1e30), np.dtype(np.float64): (1e-290, 1e290)}


class Moments:
    """Measures `v_ratio`, `grad_sq_over_v_mean`, `grad_sq_over_v_max` and `effective_step`, run-wide and per tensor,
    and `v_free`, the share of the parameters whose v decays freely.

    Run-wide values: the ratio of the norms of all v together, the mean over all coordinates, the maximum over all,
    the largest effective step. Absent for tensors without a second moment, at steps that a gradient scaler skipped,
    and `v_ratio` where the step before was not seen.
    """

    name = "moments"

    def __init__(self) -> None:
        self._memory = Memory(["v_squares", "v"])
        self._plan: Plan | None = None
        self._state: Any = None
        self._entries: list[dict[Any, Any] | None] = []
        self._groups: list[int] = []

    def begin(self, step: Step, tally: Tally) -> None:
        tally.sums += ["v", "ratio"]
        tally.squares.append("v_squares")
        tally.maxima.append("ratio_most")
        self._held(step)
        self._note_constants(step, tally)

    def recall(self, step: Step, tally: Tally) -> None:
        """Prepares to take the size of v alone, so that the next step has one to compare with."""
        tally.sums.append("v")
        tally.squares.append("v_squares")
        self._held(step)

    def fused(self, measures: bool) -> int:
        return native.SECOND_MOMENT | native.RATIO if measures else native.SECOND_MOMENT

    def visit(self, step: Step, pack: Pack) -> None:
        moment = step.plan.moments[pack.group]
        ledger = step.plan.ledger
        v = self.remember(step, pack)
        if moment is None or v is None:
            ledger.nothing("ratio", pack)
            ledger.nothing("ratio_most", pack)
            return
        squared = _seen_gradient_squared(step, pack, moment)
        stored = next(held for held in pack.chosen(self._held(step)) if held is not None).dtype
        old = torch.sub(v, squared, alpha=moment.admit_less(stored), out=pack.scratch(2))
        old.clamp_min_(moment.least(v.dtype))
        ratio = torch.div(squared, old, out=old)
        ledger.sum("ratio", pack, ratio)
        ledger.top("ratio_most", pack, ratio)

    def remember(self, step: Step, pack: Pack) -> Tensor | None:
        """Writes the size of v; returns v as rows, in scratch 2 unless it could be viewed, or None without one."""
        moment = step.plan.moments[pack.group]
        v = self._rows(step, pack, moment)
        if v is None:
            step.plan.ledger.nothing("v_squares", pack)
            step.plan.ledger.nothing("v", pack)
        else:
            step.plan.ledger.squares("v_squares", pack, v)
            step.plan.ledger.sum("v", pack, v)
        return v

    def settle(self, totals: Totals) -> Mapping[str, np.ndarray]:
        plan = totals.plan
        table = np.array([_constants(moment) for moment in totals.moments])
        keep, eps, corrected, divides = table[plan.group_of].T
        corrected, divides = corrected > 0, divides > 0
        groups = range(len(totals.moments))
        t = np.stack([totals.scalars[f"t{g}"] for g in groups], 1)[:, plan.group_of]
        lr = np.stack([totals.scalars[f"lr{g}"] for g in groups], 1)[:, plan.group_of]

        held = totals.sums["v"] > 0
        held |= ~np.isfinite(totals.sums["v"])
        gone = ~held | totals.skipped[:, None]
        # bias correction of v_{t-1} and v_t: 1 - beta2^t, exact for beta2 near 1
        older = np.where(corrected, -np.expm1((t - 1) * np.log(keep)), 1.0)
        newer = np.where(corrected, -np.expm1(t * np.log(keep)), 1.0)
        first = gone | (t <= 1)  # v_0 is nothing yet
        numel = plan.numel
        mean = np.where(first, 0.0, totals.sums["ratio"] * keep * older)
        most = np.where(first, -np.inf, totals.maxima["ratio_most"] * keep * older)
        weight = np.where(first, 0.0, numel)
        step = np.where(gone | ~divides, -np.inf, lr / (np.sqrt(totals.sums["v"] / numel / newer) + eps))
        by_unit = plan.by_unit
        signals = {
            "grad_sq_over_v_mean": _known(mean.sum(1) / weight.sum(1), weight.sum(1) > 0),
            "grad_sq_over_v_mean/": _known(by_unit(mean) / by_unit(weight), by_unit(weight) > 0),
        }
        for name, values in (("grad_sq_over_v_max", most), ("effective_step", step)):
            whole, units = values.max(1), by_unit(values, np.maximum)
            signals |= {name: _known(whole, whole != -np.inf), f"{name}/": _known(units, units != -np.inf)}
        return signals | self._growth(totals, keep)

    def note(self, totals: Totals) -> None:
        """Takes what `remember` left."""
        self._memory.keep(totals)

    def _growth(self, totals: Totals, keep: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `v_ratio` against the step before, wherever that was seen, and `v_free` made of it."""
        plan, squared, plain = totals.plan, totals.sums["v_squares"], totals.sums["v"]
        known, before = self._memory.follow(totals)
        known &= ~totals.skipped
        # the compiled sweep adds up in double, whatever the model's type
        least, most = _SAFE[np.dtype(np.float64 if plan.native is not None else plan.recorded)]

        def ratio(new: np.ndarray, old: np.ndarray, new_plain: np.ndarray, old_plain: np.ndarray) -> np.ndarray:
            low, high = np.minimum(new, old), np.maximum(new, old)
            growth = np.where((low > least) & (high < most), np.sqrt(new / old), new_plain / old_plain)
            return _known(growth, known.reshape(-1, *[1] * (new.ndim - 1)) & (old_plain > 0))

        columns = squared, before["v_squares"], plain, before["v"]
        whole = [each.sum(1) for each in columns]
        units = [plan.by_unit(each) for each in columns]
        each = ratio(*columns)
        told = np.isfinite(each) & (keep < 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            free = told & (np.log(each) < FREELY * np.log(keep))
        weight = (plan.numel * told).sum(1)
        share = _known((plan.numel * free).sum(1) / np.where(weight > 0, weight, 1.0), weight > 0)
        return {"v_ratio": ratio(*whole), "v_ratio/": ratio(*units), "v_free": share}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self._memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._memory.load_state_dict(state["memory"])

    def _rows(self, step: Step, pack: Pack, moment: SecondMoment | None) -> Tensor | None:
        if moment is None:
            return None
        found = self._held(step)
        if all(found[i] is None for i in pack.index):
            return None
        return pack.lasting_rows(found, "second", 2)

    def _held(self, step: Step) -> list[Tensor | None]:
        """Returns for each tensor its second moment as it is now, None where it has none; looked up once a step."""
        found: list[Tensor | None] | None = step.cache.get("moments")
        if found is None:
            entries, plan = self._entries_of(step), step.plan
            keys = [None if moment is None else moment.key for moment in plan.moments]
            pairs = zip(entries, self._groups, strict=True)
            found = [None if entry is None else entry.get(keys[group]) for entry, group in pairs]
            if not plan.plain:
                found = [None if v is None else local(v) for v in found]
            # under the same name some optimizers keep means of blocks, projections or quantised numbers
            found = [
                v if isinstance(v, Tensor) and v.is_floating_point() and v.shape == param.shape else None
                for v, param in zip(found, step.params, strict=True)
            ]
            step.cache["moments"] = found
        return found

    def _entries_of(self, step: Step) -> list[dict[Any, Any] | None]:
        """Returns each tensor's entry in the optimizer's state, None where it has none yet.

        Optimizers keep these dictionaries from step to step, so they are looked up only where one was missing, the
        state was loaded, or the plan is new.
        """
        state, plan = step.optimizer.state, step.plan
        if self._plan is not plan or self._state is not state or state.get(plan.params[0]) is not self._entries[0]:
            self._plan, self._state, self._groups = plan, state, plan.group_of.tolist()
            self._entries = [state.get(param) for param in plan.params]
        for i, entry in enumerate(self._entries):
            if entry is None:
                self._entries[i] = state.get(plan.params[i])
        return self._entries

    def _note_constants(self, step: Step, tally: Tally) -> None:
        """Keeps each group's learning rate and step count for the host; those on the device are not asked for."""
        entries = self._entries_of(step)
        counts: list[Any] = [None] * len(step.plan.moments)
        for entry, group, grad in zip(entries, self._groups, step.grads, strict=True):
            if counts[group] is None and grad is not None and entry is not None and "step" in entry:
                count = entry["step"]
                # a count on the host is read at once, one on the device goes with the sums
                counts[group] = float(count) if not isinstance(count, Tensor) or count.is_cpu else count
        for g, group_settings in enumerate(step.optimizer.param_groups):
            tally.scalars[f"t{g}"] = 0.0 if counts[g] is None else counts[g]
            tally.scalars[f"lr{g}"] = group_settings.get("lr", 0.0)


def _constants(moment: SecondMoment | None) -> tuple[float, float, bool, bool]:
    return (1.0, 0.0, False, False) if moment is None else (moment.keep, moment.eps, moment.corrected, moment.divides)


def _known(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, values, ABSENT)


def _seen_gradient_squared(step: Step, pack: Pack, moment: SecondMoment) -> Tensor:
    """Returns the square of what the second moment saw: the gradient, with coupled decay g + decay * theta_t.

    In scratch 1; scratch 2 may hold v and is left alone.
    """
    if not moment.decay:
        return gradient_squared(step, pack)
    copied = step.plan.copied_at == step.number
    theta = pack.own("before") if copied else pack.rows(step.params, "params", 1)
    sign = -1.0 if moment.maximizes else 1.0
    step.cache.pop("squared", None)
    return torch.add(gradient(step, pack), theta, alpha=sign * moment.decay, out=pack.scratch(1)).square_()
