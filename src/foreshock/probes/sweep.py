"""One pass over the tensors for all probes that look at every element.

Each pack is fetched from memory once and, while it is in the cache, shown to every part; the parts leave sums and
maxima per row on the device: one short vector a step. They are added up per tensor and turned into signals on the host
when the recorder brings N of them over: the last arithmetic on a few numbers per tensor costs no kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from foreshock.probes.base import Every, Step
from foreshock.probes.packs import Pack
from foreshock.probes.plan import Plan
from foreshock.probes.second_moment import SecondMoment


class Tally:
    """What the parts leave behind for one step, beside what they write into the plan's ledger.

    Attributes:
        sums, squares, maxima: names of the ledger's quantities, by how they are read.
        scalars: name -> number, or tensor of one element.
    """

    def __init__(self) -> None:
        self.sums: list[str] = []
        self.squares: list[str] = []
        self.maxima: list[str] = []
        self.scalars: dict[str, Tensor | float] = {}


@dataclass(slots=True)
class Totals:
    """N steps of a sweep on the host.

    Attributes:
        plan: the tensors it went over.
        moments: for each parameter group how v is kept.
        steps: (N,) step numbers, ascending.
        sums, maxima: quantity -> (N, tensors) float64.
        scalars: name -> (N,) float64.
    """

    plan: Plan
    moments: tuple[SecondMoment | None, ...]
    steps: np.ndarray
    sums: dict[str, np.ndarray]
    maxima: dict[str, np.ndarray]
    scalars: dict[str, np.ndarray]

    @property
    def skipped(self) -> np.ndarray:
        """(N,) bool: the gradient scaler vetoed the update."""
        return self.scalars["found_inf"] > 0 if "found_inf" in self.scalars else np.zeros(len(self.steps), bool)


@runtime_checkable
class Part(Protocol):
    """A probe that looks at every element of the tensors, as a part of a `Sweep`.

    It may also have `fused(measures)`, which says by flags of `native` what the compiled sweep is to do in place of
    `visit` or `remember` (a sweep is compiled if all its parts have it); `before(plan)`, called just before the update;
    `recall(step, tally)` and `remember(step, pack)`, called instead of `begin` and `visit` on the step before one that
    is due, and `note(totals)` for what they left; `state_dict()` and `load_state_dict(state)`.
    """

    name: str

    def begin(self, step: Step, tally: Tally) -> None:
        """Says what it will write."""
        ...

    def visit(self, step: Step, pack: Pack) -> None:
        """Measures one pack: writes into `step.plan.ledger`, runs on the device and asks it nothing."""
        ...

    def settle(self, totals: Totals) -> Mapping[str, np.ndarray]:
        """Returns signal -> (N,) or, under `name/`, (N, units); the absent marker where it was not measured."""
        ...


@dataclass(frozen=True, slots=True)
class Swept:
    """One step of a sweep, still on the device.

    Attributes:
        flat: 1-D, sums, then maxima, then scalars.
        layout: what they are; equal for steps that can be settled together.
        host: the scalars that the host knew.
    """

    flat: Tensor
    layout: tuple[Any, ...]
    host: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Active:
    """A part at a step: measuring, or keeping what the next step will be compared with."""

    part: Part | Every
    measures: bool
    begin: Callable[[Step, Tally], None]
    visit: Callable[[Step, Pack], None]
    settle: Callable[[Totals], Mapping[str, np.ndarray] | None]
    fused: Callable[[bool], int]


class Sweep:
    """Runs parts over the packs of a plan."""

    def __init__(self, parts: Sequence[Part | Every]) -> None:
        # those that let a copy go come after those that may still want to read it
        self.parts = sorted(parts, key=lambda part: getattr(_inner(part), "order", 0))
        self._always: list[_Active] = []
        self.fused = all(hasattr(_inner(part), "fused") for part in parts)

    def before(self, number: int, plan: Plan, failed: Callable[[Part | Every, Exception], None]) -> None:
        """Lets parts keep what the update will overwrite; a part that raises is given to `failed`."""
        plan.under_way = number
        for part in tuple(self.parts):
            inner = _inner(part)
            if hasattr(inner, "before") and _due(part, number):
                try:
                    inner.before(plan)
                    plan.copied_at = number
                except Exception as error:
                    failed(part, error)

    def __call__(self, step: Step, failed: Callable[[Part | Every, Exception], None]) -> Swept | None:
        """Returns the step's vector, or None where no part is due; a part that raises is given to `failed`."""
        plan, live = step.plan, self._live(step.number)
        tally = self._begun(step, live, failed)
        if plan.native is not None:
            what = 0
            for active in tuple(live):
                try:
                    what |= active.fused(active.measures)
                except Exception as error:
                    failed(active.part, error)
                    live.remove(active)
                    tally = self._begun(step, live, failed)
            plan.native.run(what, step.grads, step.params, step.cache.get("moments"), plan.moments)
        for pack in plan.packs if plan.native is None else ():
            for active in live:
                try:
                    active.visit(step, pack)
                except Exception as error:
                    failed(active.part, error)
                    live = [other for other in live if other is not active]
                    tally = self._begun(step, live, failed)
        if step.found_inf is not None:
            tally.scalars["found_inf"] = step.found_inf
        # what two parts both asked for is written once more, with the same content
        sums, squares, maxima = (tuple(dict.fromkeys(names)) for names in (tally.sums, tally.squares, tally.maxima))
        if not (sums or squares or maxima):
            return None
        device = {name: value for name, value in tally.scalars.items() if isinstance(value, Tensor)}
        host = {name: float(value) for name, value in tally.scalars.items() if name not in device}
        pieces = plan.ledger.take((*sums, *squares, *maxima))
        pieces += [value.detach().to(plan.device).view(1) for value in device.values()]
        layout = (plan, plan.moments, tuple(live), sums, squares, maxima, tuple(device), tuple(host))
        return Swept(torch.cat(pieces), layout, tuple(host.values()))

    def _live(self, number: int) -> list[_Active]:
        """Returns the parts that measure at a step, or keep something for the next."""
        if not any(isinstance(part, Every) for part in self.parts):
            if len(self._always) != len(self.parts):  # one was taken out
                self._always = [_measuring(part) for part in self.parts]
            return list(self._always)
        live = []
        for part in self.parts:
            if _due(part, number):
                live.append(_measuring(part))
            elif hasattr(_inner(part), "remember") and _due(part, number + 1):
                inner = _inner(part)
                live.append(_Active(part, False, inner.recall, inner.remember, inner.note, inner.fused))
        return live

    @staticmethod
    def _begun(step: Step, live: list[_Active], failed: Callable[[Part | Every, Exception], None]) -> Tally:
        """Returns what the parts say they will write; takes out of `live` those that raise."""
        tally = Tally()
        for active in tuple(live):
            try:
                active.begin(step, tally)
            except Exception as error:
                live.remove(active)
                failed(active.part, error)
                return Sweep._begun(step, live, failed)
        return tally

    @staticmethod
    def settle(steps: np.ndarray, layout: tuple[Any, ...], block: np.ndarray, known: Sequence[tuple[float, ...]],
               failed: Callable[[Any, Exception], None]) -> dict[str, np.ndarray]:
        """Returns the signals of N steps of one layout from their (N, length) vectors and what the host knew."""
        plan, moments, parts, sums, squares, maxima, device, host = layout
        ledger, count = plan.ledger, len(plan.tensors)
        rows = {}
        for i, name in enumerate((*sums, *squares, *maxima)):
            rows[name] = block[:, i * ledger.rows : (i + 1) * ledger.rows]
        at = len(rows) * ledger.rows
        with np.errstate(all="ignore"):
            summed = {name: ledger.summed(rows[name], count) for name in sums}
            summed |= {name: ledger.summed(rows[name], count, roots=True) for name in squares}
            topped = {name: ledger.topped(rows[name], count) for name in maxima}
        rest = {name: block[:, at + i] for i, name in enumerate(device)}
        rest |= {name: np.array([each[i] for each in known]) for i, name in enumerate(host)}
        totals = Totals(plan, moments, steps, summed, topped, rest)
        signals: dict[str, np.ndarray] = {}
        for active in parts:
            try:
                with np.errstate(all="ignore"):
                    signals.update(active.settle(totals) or {})
            except Exception as error:
                failed(active.part, error)
        return signals


def _measuring(part: Part | Every) -> _Active:
    inner = _inner(part)
    return _Active(part, True, inner.begin, inner.visit, inner.settle, getattr(inner, "fused", lambda measures: 0))


def _inner(part: Any) -> Any:
    return part.probe if isinstance(part, Every) else part


def _due(part: Part | Every, number: int) -> bool:
    return not isinstance(part, Every) or part.due(number)
