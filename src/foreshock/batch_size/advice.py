"""Whether to change the batch size, to what, and why: the best goodput, if it is worth the switch and safe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from foreshock.batch_size.gain import lr_factor
from foreshock.batch_size.gates import active
from foreshock.batch_size.goodput import (
    C,
    Candidate,
    Goodput,
    Noise,
    Throughput,
    as_number,
    critical_batch,
    goodput,
    size_of,
)
from foreshock.errors import UsageError

__all__ = ["Steady", "SwitchAdvice", "switch_advice"]

EDGE = 1.0  # chi that a larger batch must not bring about by its learning rate


@dataclass(frozen=True, slots=True)
class SwitchAdvice:
    """What to do about the batch.

    Attributes:
        decision: "switch" or "hold".
        current: the candidate in use.
        target: the one to go to; `current` where the advice is to hold.
        best: the one with the highest goodput, whether or not it is worth going there; `current` where none is known.
        gain: by what share its goodput is higher than the current one; NaN where there is no noise scale.
        lr_factor: by which to multiply the learning rate on the way to `target`.
        saved: seconds that the switch saves until the end of the training, its own time paid; NaN where not known.
        reasons: in sentences, what decided first.
        goodput: what it was read from, None where there is none.
    """

    decision: Literal["switch", "hold"]
    current: Candidate
    target: Candidate
    best: Candidate
    gain: float
    lr_factor: float
    saved: float
    reasons: tuple[str, ...]
    goodput: Goodput | None = None

    @property
    def text(self) -> str:
        """All of it in a few lines."""
        here, there = _said(self.current), _said(self.target)
        what = f"Hold the batch at {here}."
        if self.decision == "switch":
            what = f"Switch from {here} to {there}, learning rate times {self.lr_factor:.3g}."
        return "\n".join((what, *self.reasons))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "decision": self.decision, "current": _said(self.current), "target": _said(self.target),
            "best": _said(self.best), "gain": self.gain, "lr_factor": self.lr_factor, "saved": self.saved,
            "reasons": list(self.reasons), "goodput": None if self.goodput is None else self.goodput.to_dict(),
        }  # fmt: skip


def switch_advice(
    current: Candidate,
    candidates: Throughput,
    noise: float | Noise | None = None,
    *,
    threshold: float = 0.10,
    switch_time: float = 0.0,
    remaining_time: float = math.inf,
    gates: Sequence[str] | Mapping[str, float | bool] = (),
    chi: float | None = None,
    lr_rule: str = "sqrt",
    lr_aware: bool = False,
    batches: Iterable[Candidate] | None = None,
    c: float = C,
) -> SwitchAdvice:
    """Returns whether to change the batch.

    Switch, if nothing forbids it, to the best goodput, where that is better by `threshold`, and better at both ends
    of the noise scale's band; where gain * remaining_time is more than the switch takes; and, on the way up, where
    the learning rate that follows the batch keeps chi below 1: of the larger sizes that keep it the best is taken.

    Args:
        current: batch size, or (strategy, batch size).
        candidates: what is known of the throughput, in any form that `goodput` takes.
        noise: gradient noise scale, as estimated or as a number; None where it is not known yet.
        threshold: least gain, as a share. 10 %: COPUS, arXiv 2604.26687.
        switch_time: seconds that a switch costs.
        remaining_time: seconds that the training would go on at the current size.
        gates: reasons against any change, or signals to read them from, see `gates.active`.
        chi: reading of curvature at the current batch and learning rate, where there is one.
        lr_rule: how the learning rate follows, see `gain.lr_factor`.
        lr_aware: take the lr-aware goodput.
        batches: what to choose from, where `candidates` is a line or a function; or sizes between measured ones.
        c: critical batch size over noise scale.

    Raises:
        UsageError: nothing is known of the throughput of `current`, or an argument out of range.

    Source: COPUS, arXiv 2604.26687 (argmax and threshold); the rules for cost and chi are derived here.

    >>> advice = switch_advice(64, {64: 640.0, 256: 1600.0}, 500)
    >>> advice.decision, advice.target, round(advice.gain, 2), advice.lr_factor
    ('switch', 256, 1.12, 2.0)
    >>> switch_advice(64, {64: 640.0, 256: 1600.0}, 500, gates={"sc_frac": 0.8, "rho": 0.3}).decision
    'hold'
    """
    if not (threshold >= 0.0 and switch_time >= 0.0 and remaining_time >= 0.0):
        raise UsageError(
            f"switch_advice: threshold, switch_time and remaining_time are not negative, got {threshold!r}, "
            f"{switch_time!r} and {remaining_time!r}"
        )
    shut = list(active(gates))
    number = None if noise is None else as_number(noise)
    status = "ok" if noise is None or number is not None else cast(Noise, noise).status
    if status == "gated" and not shut:
        shut = list(getattr(noise, "reasons", ())) or ["the noise scale is gated"]
    if shut:
        return _hold(current, "Gradients are no measure of what a batch is worth for now: " + "; ".join(shut) + ".")
    if noise is None or status != "ok" or (number is not None and not number > 0.0):
        return _hold(current, f"The noise scale is {'not known' if noise is None else 'undefined'} so far.")
    ends: tuple[float, ...] = ()
    if number is not None:
        scale = number
        found = goodput(candidates, c * scale, lr_aware=lr_aware, candidates=batches)
    else:
        noise = cast(Noise, noise)
        scale = noise.noise_scale
        _, low, high = critical_batch(noise, c)
        ends = () if low is None or high is None else (low, high)
        found = goodput(candidates, noise, lr_aware=lr_aware, candidates=batches, c=c)
    if not found.at(current) > 0.0:
        raise UsageError(f"switch_advice: {current!r} has no throughput, so there is nothing to compare with")
    known = _Known(current, found, scale, ends, threshold, lr_rule, chi)
    return known.decide(switch_time, remaining_time)


@dataclass(frozen=True, slots=True)
class _Known:
    current: Candidate
    found: Goodput
    scale: float
    ends: tuple[float, ...]
    threshold: float
    rule: str
    chi: float | None

    def decide(self, switch_time: float, remaining_time: float) -> SwitchAdvice:
        found, current = self.found, self.current
        told = [
            f"Critical batch size {found.B_c:.4g}; goodput is highest at {_said(found.best)}"
            + (f", {_said(found.band[0])} to {_said(found.band[1])} by the noise scale's band" if found.band else "")
            + "."
        ]
        target, warned = self._safe(found.best)
        told += warned
        gain = self._gain(target)
        if target == current:
            return self._held(told, "The current size is it." if not warned else "")
        told.append(f"Going from {_said(current)} to {_said(target)} gains {gain:.1%}.")
        if not gain >= self.threshold:
            return self._held(told, f"That is less than the {self.threshold:.0%} that a switch must be worth.")
        if any(self._gain(target, end) <= 0.0 for end in self.ends):
            return self._held(told, "Within the band of the noise scale it may as well lose: average over more steps.")
        saved = math.inf
        if math.isfinite(remaining_time):
            # the work that is left takes 1/(1 + gain) of the time; the paper file's rule, gain * remaining > cost,
            # counts the same in seconds of the new size
            saved = (gain * remaining_time - switch_time) / (1.0 + gain)
            if not gain * remaining_time > switch_time:
                return self._held(told, f"The switch takes {switch_time:.3g} s, and {remaining_time:.3g} s are left.")
        factor = self._factor(target)
        if size_of(target) > size_of(current) and self.chi is not None:
            told.append(f"chi is {self.chi:.3g} and would be {factor * self.chi:.3g} at once; watch it for some steps.")
        told_best = self._gain(found.best)
        return SwitchAdvice("switch", current, target, found.best, told_best, factor, saved, tuple(told), found)

    def _gain(self, target: Candidate, critical: float | None = None) -> float:
        return self.found.at(target, critical) / self.found.at(self.current, critical) - 1.0

    def _factor(self, target: Candidate) -> float:
        return lr_factor(size_of(self.current), size_of(target), self.rule, noise_scale=self.scale)

    def _safe(self, best: Candidate) -> tuple[Candidate, list[str]]:
        """Returns the best candidate whose learning rate keeps chi below 1, and what there is to say about it."""
        chi, current = self.chi, self.current
        if chi is None or not chi > 0.0 or size_of(best) <= size_of(current) or self._factor(best) * chi < EDGE:
            return best, []
        held = f"chi is {chi:.3g}, and the learning rate that goes with {_said(best)}, {self._factor(best):.3g} times"
        held += f" this one, would take it to {self._factor(best) * chi:.3g}, beyond the edge at 1."
        fits = [
            each for each in self.found.curve
            if size_of(each) > size_of(current) and self._factor(each) * chi < EDGE and self._gain(each) > 0.0
        ]  # fmt: skip
        return max(fits, key=self.found.at, default=current), [held]

    def _held(self, told: list[str], why: str) -> SwitchAdvice:
        found = self.found
        said, here = tuple(([why] if why else []) + told), self.current
        return SwitchAdvice("hold", here, here, found.best, self._gain(found.best), 1.0, 0.0, said, found)


class Steady:
    """Keeps noisy advice from flapping: switches when asked several times in a row, and back only for more.

    A noise scale wanders by tens of per cent from reading to reading, and with it the best batch. So a switch is passed
    on when `patience` readings in a row wanted the same direction and the last goes no further than they; after a
    switch the next `rest` readings are of a state that is settling, and hold; and one that takes back the last switch
    must gain twice the threshold.

    >>> steady = Steady(patience=2, rest=0)
    >>> wanted = switch_advice(64, {64: 640.0, 256: 1600.0}, 500)
    >>> steady.decide(wanted).decision, steady.decide(wanted).decision
    ('hold', 'switch')
    """

    def __init__(self, *, patience: int = 3, rest: int = 3, threshold: float = 0.10) -> None:
        self.patience, self.rest, self.threshold = patience, rest, threshold
        self._wanted: list[int] = []
        self._resting = 0
        self._last = 0  # +1 where the last switch was to a larger batch, -1 to a smaller one

    def decide(self, advice: SwitchAdvice) -> SwitchAdvice:
        """Returns the advice of this reading, held back where it is too early."""
        if self._resting:
            self._resting -= 1
            self._wanted = []
            return self._later(advice, f"The last switch is settling; {self._resting + 1} more readings.")
        if advice.decision == "hold":
            self._wanted = []
            return advice
        here, there = size_of(advice.current), size_of(advice.target)
        way = (there > here) - (there < here)
        if way == -self._last and way and advice.gain < 2.0 * self.threshold:
            self._wanted = []
            return self._later(advice, f"It takes back the last switch, which must gain {2 * self.threshold:.0%}.")
        if self._wanted and (self._wanted[-1] > here) - (self._wanted[-1] < here) != way:
            self._wanted = []
        self._wanted.append(there)
        if len(self._wanted) < self.patience:
            return self._later(advice, f"{len(self._wanted)} of {self.patience} readings in a row want it.")
        nearest = min(self._wanted[-self.patience :], key=lambda size: abs(math.log(size / here)))
        if nearest != there:
            return self._later(advice, f"The readings in a row agree on {nearest:,} only; the next may agree on more.")
        self._wanted, self._resting, self._last = [], self.rest, way
        return advice

    def _later(self, advice: SwitchAdvice, why: str) -> SwitchAdvice:
        reasons = (why, *advice.reasons)
        return replace(
            advice, decision="hold", target=advice.current, lr_factor=1.0, saved=0.0, reasons=reasons
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"wanted": list(self._wanted), "resting": self._resting, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._wanted = [int(size) for size in state["wanted"]]
        self._resting, self._last = int(state["resting"]), int(state["last"])


def _hold(current: Candidate, why: str) -> SwitchAdvice:
    return SwitchAdvice("hold", current, current, current, math.nan, 1.0, 0.0, (why,))


def _said(candidate: Candidate) -> str:
    return f"{candidate:,}" if not isinstance(candidate, tuple) else " ".join(str(part) for part in candidate)
