"""Weights that moved by nobody's update around an event: what was written to them, and what that looks like.

Told in three ways, the surest first. `outside_norm` is what the monitor measured where somebody wrote to a parameter.
Else | |theta_t| - |theta_{t-1}| | > |update_t| is impossible for an update alone, by the triangle inequality; older and
imported runs tell as much. And an update is bounded by what its optimizer can make of the gradient: one beyond that, of
a tensor or two while the others are usual, holds what somebody wrote without torch noticing.

From three norms comes the cosine of the weights before and after, (|a|^2 + |b|^2 - |b - a|^2) / (2 |a| |b|): weights
that were initialised again have forgotten where they were (0), scaled ones have not (1), disturbed ones lie between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from foreshock.detect.second_moment import groups, optimizer
from foreshock.detect.series import Series, near, series
from foreshock.diagnose.onset import onset
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.action import Rollback
from foreshock.run.event import Event
from foreshock.run.run import Run

BACK = 20  # steps before the rise of the loss in which a write counts: it is seen at once, but for a rare example
SLACK, ROUNDING = 1.05, 2e-5  # of an update's norm, and of the parameters' norm in float32, that are no proof
BEYOND = 1.5  # times its bound from which an update was none
LATELY, HABIT, ALIKE = 128, 3, 5.0  # so many writes in the steps before, and times their median: some loops always do
CLOSE, AFAR = 1.05, 0.45  # times their bounds that others come to under a tampered state; a burst takes Adam to 0.43
ALONE = 0.5  # times such an update, that those around it may be
CHANGES = ("added", "replaced", "resized", "removed")
LEAST = 1e-3  # of a tensor's norm: less makes no event
FEW = 16  # elements: a fault of memory strikes a few, who initialises writes rows
WHOLE = 0.9  # share of a tensor's elements that is all of it: some come out as they were
SCALED, FORGOTTEN = 0.9, 0.25  # cosines from which weights were scaled, and below which they were drawn again
ANEW, LOADED = 0.98, 0.3  # how likely weights were drawn anew that have forgotten, or have not
LARGER, HUGE = 3.0, 30.0  # times as large as they were: hardly an initialisation, and none


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor that was written to.

    Attributes:
        name: of the tensor, or module; empty for all together.
        change: norm of what was written, or the least it can have been.
        before, after: norms of the tensor.
        update: norm of the update at that step, or its bound; NaN where neither is known.
        elements: that changed; NaN where not counted.
        size: elements of the tensor; NaN where not known.
        how: "measured", "norms" or "bound".
    """

    name: str
    change: float
    before: float
    after: float
    update: float
    elements: float
    size: float
    how: str

    @property
    def cosine(self) -> float:
        """Cosine of the weights before and after; NaN where the change is not known exactly."""
        if self.how == "norms" or not self.before * self.after > 0:
            return math.nan
        with np.errstate(all="ignore"):
            a, b = np.float64(self.before), np.float64(self.after)
            return float((a / b + b / a - np.float64(self.change) ** 2 / (a * b)) / 2)


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
    tensors = {name: _written(here, name, steps) for name in names}
    held = [(step, each) for name in names for step, each in tensors[name].items()]
    bursts = {step for step, each in held if each.how == "bound" and _burst(here, held, names, step)}
    held = [(step, each) for step, each in held if each.how != "bound" or step not in bursts]
    if not held:
        return None
    step = max({step for step, _ in held}, key=lambda at: (at <= rise, _share(held, at), at))
    mine = sorted((each for at, each in held if at == step), key=lambda each: -each.change / max(each.before, 1e-30))
    modules = _modules(names, {each.name for each in mine})
    alone = len(mine) == 1 and sum(each.rpartition(".")[0] == mine[0].name.rpartition(".")[0] for each in names) > 1
    changed = renewed(here, step - 1, step + 1)
    return Outside(step, tuple(mine), modules, rise, _fault(mine, modules, alone, bool(changed)))


def renewed(run: Run, first: int, last: int) -> dict[str, tuple[str, ...]]:
    """Returns the tensors that came, went or were replaced with first <= step <= last: kind of change -> names."""
    found: dict[str, list[str]] = {}
    for note in run.notes:
        if note.get("kind") == "parameters_changed" and first <= int(note.get("step", -1)) <= last:
            for kind in CHANGES:
                names = note.get(kind)
                found.setdefault(kind, []).extend(map(str, names) if isinstance(names, (list, tuple)) else [])
    return {kind: tuple(names) for kind, names in found.items() if names}


def _share(held: Sequence[tuple[int, Written]], step: int) -> float:
    shares = [each.change / max(each.before, 1e-30) for at, each in held if at == step]
    return min(max(shares), 1e3)


def _written(run: Run, name: str, steps: set[int]) -> dict[int, Written]:
    """Returns what was written to one tensor, by step."""
    tail = f"/{name}" if name else ""
    norms, updates = series(run, f"param_norm{tail}"), series(run, f"update_norm{tail}")
    measured, counted = series(run, f"outside_norm{tail}"), series(run, f"outside_count{tail}")
    whole, at = _size(run, tail, updates), set(norms.steps.tolist())
    told: dict[int, float] = {}
    if f"outside_norm{tail}" in run:  # with the infinite ones
        told = dict(zip(*(each.tolist() for each in run.measured(f"outside_norm{tail}")), strict=True))
    limits = _bounds(run, tail, updates) if len(updates) else {}
    moves, elements, found = _exactly(updates), _exactly(counted), {}
    for step in sorted(steps & (at | told.keys())):
        before, after = norms.at(step - 1), norms.at(step)
        if math.isnan(before) or (step - 1 not in at and step not in told):
            continue
        update = moves.get(step, math.nan)
        if step not in at:
            after = math.inf  # it was recorded, and is no number any more
        if step in told:
            size = told[step] if math.isfinite(told[step]) else math.inf
            if size > LEAST * before and not _usual(measured, step, size):
                some = elements.get(step, math.nan)
                found[step] = Written(name, size, before, after, update, some, whole, "measured")
            continue
        least = abs(after - before) - (update if math.isfinite(update) else math.inf)
        if abs(after - before) > SLACK * update + ROUNDING * max(before, after) and least > LEAST * before:
            found[step] = Written(name, least, before, after, update, math.nan, whole, "norms")
        elif step in limits and _alone(updates, step, update) and update > max(BEYOND * limits[step], LEAST * before):
            found[step] = Written(name, update, before, after, limits[step], math.nan, whole, "bound")
    return found


def _alone(updates: Series, step: int, size: float) -> bool:
    """Returns whether the updates around one are small beside it: a state that was tampered with acts for longer."""
    place = int(np.searchsorted(updates.steps, step))
    around = [*updates.values[max(0, place - 1) : place], *updates.values[place + 1 : place + 2]]
    return bool(around) and max(around) < ALONE * size


def _burst(run: Run, held: Sequence[tuple[int, Written]], names: Sequence[str], step: int) -> bool:
    """Returns whether other tensors came near their bounds as well: then it was the optimizer's doing."""
    own, close, others = {each.name for at, each in held if at == step}, 0, 0
    near = AFAR if optimizer(run).startswith("Adam") else CLOSE
    for name in names:
        updates = series(run, f"update_norm/{name}")
        limit = _bounds(run, f"/{name}", updates).get(step)
        if name not in own and limit is not None:
            others += 1
            close += updates.at(step) > near * limit
    return not others or close > others / 4


def _exactly(values: Series) -> dict[int, float]:
    return dict(zip(values.steps.tolist(), values.values.tolist(), strict=True))


def _size(run: Run, tail: str, updates: Series) -> float:
    """Returns a tensor's elements: the square of its update's norm over the root mean square."""
    roots = series(run, f"update_rms{tail}")
    if not len(roots) or not len(updates) or not roots.values[0] > 0 or roots.steps[0] != updates.steps[0]:
        return math.nan
    return float(round((updates.values[0] / roots.values[0]) ** 2))


def _usual(measured: Series, step: int, size: float) -> bool:
    """Returns whether the loop writes as much all the time."""
    before = measured.within(step - LATELY, step - 1).values
    return len(before) >= HABIT and size <= ALIKE * float(np.median(before))


def _bounds(run: Run, tail: str, updates: Series) -> dict[int, float]:
    """Returns the most that each recorded update of a tensor can have been, by step; empty where nothing bounds it.

    Adam: lr (1-beta1) / sqrt((1-beta2)(1-beta1^2/beta2)) a coordinate, whatever the gradients (see docs of S3's
    bound); RMSprop: lr / sqrt(1-alpha); Adagrad: lr; each with its decay. SGD: lr |g| and what momentum keeps.
    """
    sets, kind = groups(run), optimizer(run)
    rate = series(run, "lr" if "lr" in run else "lr/group0")
    rates = [series(run, f"lr/{group}") for group in run.tensors("lr")] or [rate]
    if not sets or not len(rate):
        return {}

    def top(name: str) -> float:
        return max((value for each in sets if isinstance(value := each.get(name), (int, float))), default=0.0)

    steps = updates.steps
    with np.errstate(all="ignore"):
        lr = np.fmax.reduce([each.sampled(steps) for each in rates])
        decay = lr * top("weight_decay") * series(run, f"param_norm{tail}").sampled(steps - 1)
        if kind == "SGD":
            gradient = series(run, f"grad_norm{tail}")
            there = np.isin(steps, gradient.steps) & (np.diff(steps, prepend=steps[:1] - 1) == 1)
            mu = top("momentum")
            last = np.concatenate(([np.nan], updates.values[:-1])) * lr / np.concatenate(([np.nan], lr[:-1]))
            limit = (1 + mu) * (lr * gradient.sampled(steps) + decay) + mu * last
            limit[~there] = np.nan
        else:
            most = _most(kind, sets)
            root = np.sqrt(_size(run, tail, updates))
            limit = lr * most * root + decay
    good = np.isfinite(limit) & (limit > 0)
    return dict(zip(steps[good].tolist(), limit[good].tolist(), strict=True))


def _most(kind: str, sets: Sequence[object]) -> float:
    """Returns the most that a coordinate can move, in learning rates; NaN where nothing is known.

    >>> round(_most("Adam", [{"betas": [0.9, 0.999]}]), 2), _most("Adagrad", [{}]), _most("Lion", [{}])
    (7.27, 1.0, 1.0)
    """
    found = []
    for each in sets:
        group = each if isinstance(each, Mapping) else {}
        betas, alpha = group.get("betas"), group.get("alpha")
        if kind in ("Adam", "AdamW") and isinstance(betas, (list, tuple)) and len(betas) == 2:
            beta1, beta2 = (float(beta) if isinstance(beta, (int, float)) else math.nan for beta in betas)
            room = (1 - beta2) * (1 - beta1**2 / beta2) if beta2 > 0 else 0.0
            found.append((1 - beta1) / math.sqrt(room) if room > 0 else math.nan)
        elif kind == "RMSprop" and isinstance(alpha, float) and alpha < 1 and not group.get("centered"):
            momentum = group.get("momentum")
            found.append(1 / math.sqrt(1 - alpha) / (1 - (momentum if isinstance(momentum, float) else 0.0)))
        elif kind in ("Adagrad", "Lion", "SignSGD"):
            found.append(1.0)
        else:
            found.append(math.nan)
    return max(found) if found and not any(map(math.isnan, found)) else math.nan


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
        renewed: whether the optimizer was given other tensors at that step.
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
