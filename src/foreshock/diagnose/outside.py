"""Weights that moved by nobody's update around an event: what was written to them, by whom, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from foreshock.detect.series import near, series
from foreshock.diagnose.new_rows import new_rows
from foreshock.diagnose.onset import onset
from foreshock.diagnose.wording import count, number, percent
from foreshock.diagnose.written import LATELY, Written, burst, written
from foreshock.run.action import Rollback
from foreshock.run.event import Event
from foreshock.run.run import Run

BACK = 20  # steps before the rise of the loss in which a write counts: it is seen at once, but for a rare example
CHANGES = ("added", "replaced", "resized", "removed")
FEW = 16  # elements: a fault of memory strikes a few, who initialises writes rows
WHOLE = 0.9  # share of a tensor's elements that is all of it: some come out as they were
SCALED, FORGOTTEN = 0.9, 0.25  # cosines from which weights were scaled, and below which they were drawn again
ANEW, LOADED = 0.98, 0.3  # how likely weights were drawn anew that have forgotten, or have not
LARGER, HUGE = 3.0, 30.0  # times as large as they were: hardly an initialisation, and none


@dataclass(frozen=True, slots=True)
class Outside:
    """What was written at one step.

    Attributes:
        step: after the update of the step before, before that of this one; the loss of this step may see it.
        tensors: those that were written to, the most changed first.
        modules: those all of whose tensors were, of two or more.
        rise: step at which the loss rose.
        fault: 0 to 1, how likely memory or hardware wrote, rather than the program.
    """

    step: int
    tensors: tuple[Written, ...]
    modules: tuple[str, ...]
    rise: int
    fault: float

    @property
    def strength(self) -> float:
        """How likely it made the event, whoever wrote."""
        late = self.rise - self.step
        return 0.97 if late <= 1 else 0.85 if late <= 5 else 0.5

    @property
    def drawn(self) -> float:
        """How likely a program that wrote them drew them anew, and did not load or scale what was there."""
        cosine = self.largest.cosine
        elements = sum(each.elements for each in self.tensors)
        if math.isnan(cosine) or abs(cosine) < FORGOTTEN or elements < WHOLE * self.largest.size:
            return ANEW
        return LOADED if cosine >= SCALED else (ANEW + LOADED) / 2

    @property
    def largest(self) -> Written:
        """The tensor of most elements."""
        return _largest(self.tensors)

    def told(self) -> str:
        """Returns what was written, in a sentence."""
        first = self.tensors[0]
        others = f" and {count(len(self.tensors) - 1, 'other tensor')}" if len(self.tensors) > 1 else ""
        name = f"`{first.name}`" if first.name else "the parameters"
        ends = f"its norm went from {number(first.before)} to {number(first.after)}"
        by = {
            "measured": f"by {number(first.change)}",
            "norms": f"by at least {number(first.change)} more than its update of {number(first.update)}",
            "bound": f"by {number(first.change)}, where its optimizer can move it by {number(first.update)} at most",
        }[first.how]
        changed = "" if math.isnan(first.elements) else f" in {count(int(first.elements), 'element')}"
        whole = "" if math.isnan(first.size) or not changed else f" of {first.size:,.0f}"
        return f"Before step {self.step:,} {name}{others} changed {by}{changed}{whole}, by no update; {ends}."


def outside(run: Run, event: Event) -> Outside | None:
    """Returns what was written to the weights just before the loss rose; None where nothing was, or nobody knows.

    Args:
        run: the run, complete or so far.
        event: of any kind.
    """
    run = near(run, event)
    known = _FOUND.get(run)
    if known is None or known[0] != event:
        known = _FOUND[run] = (event, _outside(run, event))
    return known[1]


_FOUND: WeakKeyDictionary[Run, tuple[Event, Outside | None]] = WeakKeyDictionary()  # two causes ask for the last one


def _outside(run: Run, event: Event) -> Outside | None:
    found = onset(run, event)
    rise = event.onset if found is None or found.rise is None else min(found.rise, event.raised)
    here = run.window(rise - BACK - LATELY, max(rise, event.onset) + BACK)
    undone = {action.step for action in here.actions if isinstance(action, Rollback)}
    steps = {step for step in range(rise - BACK, max(rise, event.onset) + 2) if not {step, step - 1} & undone}
    names = list(here.tensors("param_norm")) or ([""] if "param_norm" in here else [])
    tensors = {name: written(here, name, steps) for name in names}
    held = [(step, each) for name in names for step, each in tensors[name].items()]
    bursts = {step for step, each in held if each.how == "bound" and burst(here, held, names, step)}
    held = [(step, each) for step, each in held if each.how != "bound" or step not in bursts]
    if not held:
        return None
    step = max({step for step, _ in held}, key=lambda at: (at <= rise, _share(held, at), at))
    mine = sorted((each for at, each in held if at == step), key=lambda each: -each.change / max(each.before, 1e-30))
    modules = _modules(names, {each.name for each in mine})
    alone = len(mine) == 1 and sum(each.rpartition(".")[0] == mine[0].name.rpartition(".")[0] for each in names) > 1
    changed = bool(renewed(here, step - 1, step + 1)) or new_rows(here, step - 1, step + 1) is not None
    return Outside(step, tuple(mine), modules, rise, _fault(mine, modules, alone, changed))


def watched(run: Run, event: Event) -> bool:
    """Returns whether a write to the weights at the event would show: norms of neighbouring steps, or of writes."""
    run = near(run, event)
    if "outside_norm" in run or run.tensors("outside_norm"):
        return True
    tail = f"/{run.tensors('update_norm')[0]}" if run.tensors("update_norm") else ""
    moved = series(run, f"update_norm{tail}").within(event.onset - BACK, event.onset + BACK).steps
    return len(moved) > 1 and bool(np.min(np.diff(moved)) == 1) and f"param_norm{tail}" in run


def renewed(run: Run, first: int, last: int, *, but: int | None = None) -> dict[str, tuple[str, ...]]:
    """Returns the tensors that came, went or were replaced with first <= step <= last: kind of change -> names.

    What did so at step `but` is left out.
    """
    found: dict[str, list[str]] = {}
    for note in run.notes:
        if note.get("kind") == "parameters_changed" and first <= (step := int(note.get("step", -1))) <= last:
            if step == but:
                continue
            for kind in CHANGES:
                names = note.get(kind)
                found.setdefault(kind, []).extend(map(str, names) if isinstance(names, (list, tuple)) else [])
    return {kind: tuple(names) for kind, names in found.items() if names}


def _share(held: Sequence[tuple[int, Written]], step: int) -> float:
    shares = [each.change / max(each.before, 1e-30) for at, each in held if at == step]
    return min(max(shares), 1e3)


def _modules(names: Sequence[str], written: set[str]) -> tuple[str, ...]:
    """Returns the modules of two or more tensors all of which were written to."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(name.rpartition(".")[0], []).append(name)
    return tuple(module for module, own in members.items() if len(own) > 1 and set(own) <= written)


def _fault(tensors: Sequence[Written], modules: Sequence[str], alone: bool, renewed: bool) -> float:
    """Returns how likely it is that no program wrote this: log-odds of the signs.

    Args:
        tensors: that were written to.
        modules: of which nothing was left out.
        alone: whether it is one tensor of a module that has others.
        renewed: whether the optimizer was given other tensors at that step, or a head rows that were chosen.
    """
    first, odds = tensors[0], 0.0
    elements = sum(each.elements for each in tensors)
    if elements <= FEW and not all(each.size <= elements for each in tensors):
        odds += 4.0
    grown = max(each.after / max(each.before, 1e-30) for each in tensors)
    odds += 3.0 if not grown < HUGE or not math.isfinite(first.change) else 1.5 if grown > LARGER else 0.0
    odds -= 4.0 * renewed + 2.5 * bool(modules)
    largest = _largest(tensors)
    if FEW < elements < WHOLE * largest.size:
        return 1 / (1 + math.exp(2.5 - odds))  # rows, whatever became of the rest of their module
    odds += 1.2 if alone else 0.2 if len(tensors) == 1 else -1.0
    cosine = largest.cosine
    if cosine >= SCALED:
        odds += 1.5
    elif abs(cosine) < FORGOTTEN:
        odds -= 2.0
    elif not math.isnan(cosine):
        odds += 1.0
    return 1 / (1 + math.exp(-odds))


def _largest(tensors: Sequence[Written]) -> Written:
    return max(tensors, key=lambda each: each.size if not math.isnan(each.size) else 0.0)


def likeness(each: Written) -> str:
    """Returns what the weights before and after have in common, in a sentence; empty where that is not known."""
    if math.isnan(each.cosine):
        return ""
    what = "none of the old weights is left" if abs(each.cosine) < FORGOTTEN else f"{percent(each.cosine)} are the same"
    return f"The cosine of `{each.name}` before and after is {each.cosine:.2f}: {what}."
