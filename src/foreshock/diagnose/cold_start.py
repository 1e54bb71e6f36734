"""The cause `cold_start`: parts of the network were new, or were asked for classes they had never seen.

Source: Good starts matter, arXiv 2503.06385 (the initial loss spike of new head rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foreshock.detect.series import Series, near, series
from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.new_rows import NewRows, new_rows
from foreshock.diagnose.onset import Onset, onset
from foreshock.diagnose.outside import CHANGES, Outside, likeness, outside, renewed, watched
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "cold_start"
KINDS = frozenset({"spike", "divergence", "drift"})
NEEDS = ("loss",)
BETTER = ("softmax_new", "outside_norm", "param_norm", "update_norm", "grad_norm")
# Log-odds, added up. Alone, no shape of the loss tells new parts from new data: that takes one of the first four.
START = -3.0
RENEWED, SOON, LATER = 6.0, 4.0, 2.5  # tensors came at the rise, within 5 steps before, or 30; rows that began high
CALM = -3.0  # rows came, and the loss with them was as before; what comes within 5 steps may be their updates' doing
WOKEN, SLEPT = 3.5, 8  # tensors began to be trained; records without a gradient before
MANY, SOME, NONE = 5.0, 3.5, -1.0  # rows of new classes: from a tenth, from 3 %, none although it was looked
STAYS, RETURNS, ENDS, BURST = 1.0, -1.5, -1.5, -1.0  # the loss after the rise; and an unusual update before it
HEAD = 0.5  # the gradient's share of the last module went up
BLIND = 0.4  # score that the shape alone can reach
AT_ONCE, SOON_STEPS, LATER_STEPS = 1, 5, 30
LEAST_NEW, TENTH, FOLD = 0.03, 0.1, 3.0  # share of rows of new classes, and times that before
LOOK = 110  # steps after the rise whose readings tell of classes: five readings at the usual distance
BACK, FEW = 24, 4  # records before the rise that tell its level; at least
STAYED, GONE, CLIFF = 0.25, 0.1, 0.45  # shares of the rise: left after 5 to 14 records; not; lost from one to the next
REFERENCES = ("A good start matters, arXiv 2503.06385",)
ADVICE = (
    "Take new head rows from data instead of at random, by least squares on features of new and old classes "
    "(`fs.HeadStatistics`) and scaled beside the old rows: "
    "`fs.init_new_rows(head, statistics, new, optimizer=optimizer, monitor=monitor)`.",
    "Warm the new tensors up in a parameter group of their own: "
    '`optimizer.add_param_group({"params": new, "lr": 0.1 * lr})`, raised over some hundred steps; a second moment of '
    "zero beside an old step count makes their first Adam updates (1 - beta1) / sqrt(1 - beta2) learning rates long.",
    "Let new classes come in by and by: begin with a small share of them in each batch, beside replayed old ones.",
)
WELL = (
    "The rows were well chosen, what is left is learnt: rehearse more examples of the old classes beside the new ones, "
    "and warm the learning rate up once more.",
)
CONTRADICTS = (
    "The same rise in a rerun from before it in which the old tensors, or batches without the new classes, are kept.",
    "A loss that is back at its level with the next batch: nothing had to be learnt.",
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The loss after its rise: the share of it that is left after 5 to 14 records, and the largest fall between two."""

    level: float
    top: float
    left: float
    cliff: float


def cold_start(run: Run, event: Event) -> Cause | None:
    """Returns how likely new tensors, weights drawn again or new classes made the event; None without a loss.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    here = near(run, event)
    if "loss" not in here:
        return None
    how = onset(run, event)
    rise = event.onset if how is None or how.rise is None else how.rise
    begin = min(rise, event.onset)  # of a rise that goes on: new parts came where it began
    odds, sure = START, False
    said: list[str] = []
    against: list[str] = []
    rows = new_rows(here, begin - LATER_STEPS, rise + AT_ONCE)
    rise = rise if rows is None or rows.calm else begin
    for part in (
        _rows(rows, begin), _renewed(here, begin, rows), _woken(here, rise), _classes(here, begin, rows)
    ):  # fmt: skip
        odds, sure = odds + part[0], sure or part[0] > 0
        (said if part[0] >= 0 else against).extend(part[1])
    shape = _shape(series(here, "loss"), rise)
    for part in (_stays(shape), _head(here, rise), _before(how, rise)):
        odds += part[0]
        (said if part[0] >= 0 else against).extend(part[1])
    score = 1 / (1 + math.exp(-odds))
    score = score if sure else min(score, BLIND)
    written = outside(run, event)
    known = rows is not None and written is not None and abs(written.step - rows.step) <= AT_ONCE
    if written is not None and written.fault < 1 - RULED_OUT and not known:
        score = 1 - (1 - score) * (1 - written.strength * (1 - written.fault) * written.drawn)
        said = _written(written) + said
    if not said or score < RULED_OUT:
        said = [_nothing(watched(run, event)), *against, *said]
        against = []
    todo = () if score < RULED_OUT else ADVICE if rows is None or not rows.good else (*WELL, *ADVICE[1:])
    read = tuple(name for name in (*NEEDS, *BETTER) if name in here)
    contradicts = (*(f"Here: {each}" for each in against), *CONTRADICTS)
    return Cause(NAME, score, tuple(said), contradicts, todo, REFERENCES, read)


def _rows(rows: NewRows | None, rise: int) -> tuple[float, list[str]]:
    """Returns what rows say that `init_new_rows` chose: whether the loss leapt with them, and by how much."""
    if rows is None:
        return 0.0, []
    late = rise - rows.step
    if rows.calm:
        return (LATER if 0 <= late <= SOON_STEPS else CALM), [rows.told()]
    return (RENEWED if late <= AT_ONCE else SOON if late <= SOON_STEPS else LATER), [rows.told()]


def _renewed(run: Run, rise: int, rows: NewRows | None) -> tuple[float, list[str]]:
    for steps, weight in ((AT_ONCE, RENEWED), (SOON_STEPS, SOON), (LATER_STEPS, LATER)):
        found = renewed(run, rise - steps, rise + 1, but=rows.step if rows is not None else None)
        if any(found.get(kind) for kind in CHANGES[:3]):
            names = [name for kind in CHANGES[:3] for name in found.get(kind, ())]
            shown = ", ".join(f"`{name}`" for name in names[:4]) + (", ..." if len(names) > 4 else "")
            ago = "at the rise" if steps == AT_ONCE else f"at most {steps} steps before the rise"
            kinds = " and ".join(kind for kind in CHANGES if found.get(kind))
            verb = "were" if len(names) > 1 else "was"
            return weight, [f"{count(len(names), 'tensor')} {verb} {kinds} {ago}: {shown}."]
    return 0.0, []


def _woken(run: Run, rise: int) -> tuple[float, list[str]]:
    """Returns whether tensors that had no gradient until then began to be trained: layers that were thawed."""
    names, first = [], rise
    for name in run.tensors("grad_norm"):
        norms = series(run, f"grad_norm/{name}").within(rise - 2 * LATER_STEPS, rise + 1)
        trained = np.flatnonzero(norms.values > 0)
        if len(trained) and trained[0] >= SLEPT and norms.steps[trained[0]] >= rise - LATER_STEPS:
            names.append(name)
            first = min(first, int(norms.steps[trained[0]]))
    if not names:
        return 0.0, []
    shown = ", ".join(f"`{name}`" for name in names[:4]) + (", ..." if len(names) > 4 else "")
    return WOKEN, [f"{count(len(names), 'tensor')} had no gradient until step {first:,}: {shown}."]


def _classes(run: Run, rise: int, rows: NewRows | None) -> tuple[float, list[str]]:
    """Returns what the shares of rows of new classes say: those after the rise, held against those before."""
    if rows is not None and rows.calm:
        return 0.0, []  # the classes came with rows that knew them
    new = series(run, "softmax_new")
    before, after = new.within(0, rise - 1).values[-5:], new.within(rise, rise + LOOK).values
    if not len(before) or not len(after):
        return 0.0, []
    was, now = float(np.max(before)), float(np.median(after))
    if now >= max(LEAST_NEW, FOLD * was):
        said = f"{percent(now)} of the rows were of classes that had not been seen until then ({percent(was)} before)."
        return (MANY if now >= TENTH else SOME), [said]
    return NONE, [f"no classes were new: at most {percent(float(np.max(after)))} of the rows were of such."]


def _shape(loss: Series, rise: int) -> _Shape | None:
    before = loss.within(rise - 4 * BACK, rise - 1).values[-BACK:]
    after = loss.values[np.searchsorted(loss.steps, rise) :][: 2 * BACK]
    if len(before) < FEW or len(after) < 15:
        return None
    level = float(np.median(before))
    excess = after - level
    top = float(np.max(excess[:5]))
    if not top > 0:
        return None
    smooth = np.convolve(excess, np.ones(3) / 3, "valid")
    falls = (smooth[:-3] - smooth[3:])[2:]
    return _Shape(level, level + top, float(np.median(excess[5:15])) / top, float(np.max(falls, initial=0.0)) / top)


def _stays(shape: _Shape | None) -> tuple[float, list[str]]:
    if shape is None:
        return 0.0, []
    rose = f"the loss rose from {number(shape.level)} to {number(shape.top)}"
    if shape.left <= GONE:
        return RETURNS, [f"{rose} and was back within five records: nothing had to be learnt."]
    if shape.cliff >= CLIFF and shape.left < 1:
        return ENDS, [f"{rose}, and fell by {percent(shape.cliff)} of that from one record to the next."]
    if shape.left >= STAYED:
        said = f"The loss rose at once, from {number(shape.level)} to {number(shape.top)}, and came down slowly"
        return STAYS, [f"{said}: after ten records {percent(min(shape.left, 1.0))} of the rise was left."]
    return 0.0, []


def _head(run: Run, rise: int) -> tuple[float, list[str]]:
    """Returns whether the last module's share of the squared gradient went up."""
    names = run.tensors("grad_norm")
    module = names[-1].rpartition(".")[0] if names else ""
    own = [name for name in names if name.rpartition(".")[0] == module]
    if not names or len(own) == len(names) or "grad_norm" not in run:
        return 0.0, []
    shares = []
    for first, last in ((rise - BACK, rise - 1), (rise, rise + 2)):
        whole = series(run, "grad_norm").within(first, last)
        if not len(whole) or not whole.values.min() > 0:
            return 0.0, []
        parts = sum(series(run, f"grad_norm/{name}").sampled(whole.steps) ** 2 for name in own)
        shares.append(float(np.median(parts / whole.values**2)))
    if not shares[1] > shares[0] + 0.1:
        return 0.0, []
    return HEAD, [f"Module `{module}` had {percent(shares[1])} of the squared gradient, up from {percent(shares[0])}."]


def _before(how: Onset | None, rise: int) -> tuple[float, list[str]]:
    """Returns whether an update just before the rise was unusual: then that is what made it."""
    if how is None or (last := how.previous(rise)) is None:
        return 0.0, []
    reading = how.at("update_in_lr", last) or how.at("update_norm", last)
    if reading is None or not (reading.out and reading.z > 0):
        return 0.0, []
    return BURST, [f"the update before the rise was {reading.ratio:.3g} times as long as usual."]


def _written(written: Outside) -> list[str]:
    said = [written.told()]
    if written.modules:
        said.append(f"All tensors of {', '.join(f'`{name}`' for name in written.modules)} changed.")
    if alike := likeness(written.largest):
        said.append(alike)
    return said


def _nothing(watched: bool) -> str:
    return "No tensors were added or replaced" + (", and none was initialised again." if watched else ".")
