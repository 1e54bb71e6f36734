"""How a softmax in low precision led up to an event: since when it absorbed, what inflated, how long before the loss.

Source: Liu, Cao, Li and Zhou 2026, arXiv 2605.06152; levels as in `foreshock.detect.softmax_levels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreshock.detect.absorption import CALM, RECENT
from foreshock.detect.series import Ints, near, series
from foreshock.detect.softmax_levels import ERROR, NATS, at_work, faded, inflated
from foreshock.run.event import Event, family
from foreshock.run.run import Run

HARM = ("spike", "divergence", "drift", "nonfinite", "precursor")  # what absorption has to come before
NAMES = (
    "absorbed", "residual", "error", "wrong", "margin_median", "head_mean", "head_centred", "feature_mean", "cosine",
    "sensitivity", "logit",
)  # fmt: skip
TRAILING, RISING = 3, 30  # last readings before the loss, or steps of them, that may lie in its rise already
FAR, GAPS = 200, 5  # steps, or times what readings are apart, from the last one to the event: it tells no more
AT_WORK = 500  # steps, where it was at work: that does not end by itself
LATELY = 12  # readings that are quoted where absorption was not at work


@dataclass(frozen=True, slots=True)
class Slide:
    """Absorption before one event.

    Attributes:
        since: first reading of the unbroken stretch at work that leads up to the event; None where it was not at work.
        last: last reading of that stretch; the last one before the event where it was not at work.
        inflating: first reading of the stretch with head and features inflating.
        imminent: first reading of the stretch at which one step shifted a logit by more than a nat.
        rise: step at which the loss rose; None where it has not.
        readings: readings of the stretch at work.
        begin: signals (without "softmax_") at `since`; empty where it was not at work.
        end: the same at `last`.
        most: largest values of the stretch, or of the last readings where it was not at work.
        by: the rules of inflation that held, "cosine" and "growth".
        growth: of the head's class mean, `last` over its smallest at the beginning; NaN without a head.
        rest: of the rest of the head, likewise.
    """

    since: int | None
    last: int
    inflating: int | None
    imminent: int | None
    rise: int | None
    readings: int
    begin: Mapping[str, float]
    end: Mapping[str, float]
    most: Mapping[str, float]
    by: tuple[str, ...]
    growth: float
    rest: float

    @property
    def lead(self) -> int | None:
        """Steps from the first reading at work to the rise of the loss; None where one of them is missing."""
        return None if self.since is None or self.rise is None else self.rise - self.since

    @property
    def verified(self) -> bool | None:
        """Whether a float64 recomputation found the gradient wrong; None where there was none."""
        error = self.most.get("error")
        return None if error is None else error > ERROR


def slide(run: Run, event: Event) -> Slide | None:
    """Returns what the softmax did before an event; None where it was not read close enough to it.

    Args:
        run: the run, complete or so far.
        event: of any kind.
    """
    run = near(run, event)
    absorbed, residual = series(run, "softmax_absorbed"), series(run, "softmax_residual")
    steps = np.intersect1d(absorbed.steps, residual.steps)
    until = _until(run, event)
    steps = steps[steps <= until]
    if not len(steps):
        return None
    found = {name: _exactly(run, f"softmax_{name}", steps) for name in NAMES}
    states = [_state(*values) for values in zip(found["absorbed"], found["residual"], found["error"], strict=True)]
    last = _last(states, steps, event)
    if until - steps[-1] > max(FAR if last is None else AT_WORK, GAPS * _gap(steps)):
        return None
    rise = _rise(event)
    if last is None:
        lately = slice(max(0, len(steps) - LATELY), None)
        return Slide(
            None, int(steps[-1]), None, None, rise, 0, {}, _at(found, len(steps) - 1), _most(found, lately), (),
            np.nan, np.nan,
        )  # fmt: skip
    first = _first(states, last)
    places = [place for place in range(first, last + 1) if states[place] == "work"]
    base = _base(found, slice(max(0, first - RECENT), last + 1))
    rules = {place: inflated({f"softmax_{name}": value for name, value in _at(found, place).items()}, base)
             for place in places}  # fmt: skip
    inflating = next((place for place in places if rules[place]), None)
    imminent = next((place for place in places if found["sensitivity"][place] > NATS), None)
    end = _at(found, last)
    ratio = {name: end[name] / base[name] if name in end and base else np.nan for name in ("head_mean", "head_centred")}
    return Slide(
        int(steps[first]), int(steps[last]), None if inflating is None else int(steps[inflating]),
        None if imminent is None else int(steps[imminent]), rise, len(places), _at(found, first), end,
        _most(found, slice(first, last + 1)), tuple(sorted({rule for each in rules.values() for rule in each})),
        float(ratio["head_mean"]), float(ratio["head_centred"]),
    )  # fmt: skip


def _until(run: Run, event: Event) -> int:
    """Returns the last step that belongs to what led up to the event."""
    if event.kind in HARM:
        return event.onset
    final = int(run.steps[-1]) if len(run) else event.raised
    if family(event) == "softmax":
        return final if event.end is None else event.end
    return event.raised


def _rise(event: Event) -> int | None:
    lead = event.data.get("lead")
    if event.kind in HARM:
        return event.onset
    return event.raised + lead if isinstance(lead, int) else None


def _gap(steps: Ints) -> float:
    recent = np.diff(steps[-RECENT:])
    return float(np.median(recent)) if len(recent) else 0.0


def _exactly(run: Run, name: str, steps: Ints) -> NDArray[np.float64]:
    """Returns the values measured at these steps, NaN at those without."""
    values = series(run, name)
    result: NDArray[np.float64] = np.where(np.isin(steps, values.steps), values.sampled(steps), np.nan)
    return result


def _state(absorbed: float, residual: float, error: float) -> str:
    checked = None if np.isnan(error) else error
    if at_work(absorbed, residual, checked):
        return "work"
    return "faded" if faded(absorbed, residual, checked) else "between"


def _last(states: list[str], steps: Ints, event: Event) -> int | None:
    """Returns the place of the last reading at work before the event; None where the last readings were not."""
    rising = int(np.sum(steps > steps[-1] - RISING))
    trailing = max(TRAILING, rising) if event.kind in HARM else len(states)
    places = range(len(states) - 1, max(-1, len(states) - 2 - trailing), -1)
    return next((place for place in places if states[place] == "work"), None)


def _first(states: list[str], last: int) -> int:
    """Returns the place of the first reading at work of the stretch that ends at `last`."""
    first, over = last, 0
    for place in range(last, -1, -1):
        if states[place] == "work":
            first, over = place, 0
        over += states[place] == "faded"
        if over >= CALM:
            break
    return first


def _at(found: Mapping[str, NDArray[np.float64]], place: int) -> dict[str, float]:
    return {name: float(values[place]) for name, values in found.items() if np.isfinite(values[place])}


def _most(found: Mapping[str, NDArray[np.float64]], part: slice) -> dict[str, float]:
    kept = {name: values[part][np.isfinite(values[part])] for name, values in found.items()}
    return {name: float(values.max()) for name, values in kept.items() if len(values)}


def _base(found: Mapping[str, NDArray[np.float64]], part: slice) -> dict[str, float]:
    """Returns the head where its class mean was smallest."""
    mean, rest = found["head_mean"][part], found["head_centred"][part]
    known = np.isfinite(mean) & np.isfinite(rest) & (mean > 0) & (rest > 0)
    if not known.any():
        return {}
    place = int(np.argmin(np.where(known, mean, np.inf)))
    return {"head_mean": float(mean[place]), "head_centred": float(rest[place])}
