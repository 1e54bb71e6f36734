"""The cause `outlier_batch`: the loss of one batch, or of a few, was off before anything was updated by it.

Sources: Chowdhery et al. 2022, arXiv 2204.02311 (spikes are made by particular batches in particular states); Ling team
2025, arXiv 2503.05139 (skip the step, hand the batch out again).
"""

from __future__ import annotations

import math

from foreshock.diagnose.base import Cause
from foreshock.diagnose.odds import Odds
from foreshock.diagnose.onset import BEYOND, PART, RAISED
from foreshock.diagnose.strike import Leap, Strike, changed, strike
from foreshock.diagnose.usual import Reading
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "outlier_batch"
KINDS = frozenset({"spike", "divergence", "nonfinite", "precursor"})
NEEDS = ("loss",)
BETTER = ("grad_norm", "update_rms", "lr")
# Log-odds, from planted faults of many kinds in small networks; nothing but a loss that leaps and is back gives 0.45.
PRIOR = -1.5
AT_ONCE, BY_AND_BY, BIT_BY_BIT = 0.5, -1.5, -3.0  # how much of the rise came in one record
CALM, STEPPED_OUT, UNKNOWN, UNSEEN = 1.5, -4.0, 0.0, -0.7  # what the steps before were like
STRANGE, ORDINARY = 1.5, -2.5  # what its gradient was like, beyond or within so many deviations
BACK, HARM, STAYS = 0.8, 0.0, -0.5  # how it went on
PLANNED = -3.0  # settings that changed
EASY, LITTLE = 3.5, -3.0  # a batch whose loss was off itself, and whose step did the harm; off by a tenth of that
FEW = 0.2  # share of the examples that are few
CONCENTRATED = 2.0
RULED_OUT = 0.02
SOON = 3  # records until it is back
STRANGE_Z, PLAIN_Z = 4.5, 2.0  # their largest and their mean, together
REFERENCES = ("Chowdhery et al. 2022, arXiv 2204.02311", "Ling team 2025, arXiv 2503.05139")
CONTRADICTS = (
    "The same event in a rerun from before it without this batch, or with another one in its place.",
    "A usual loss of the same batch in a model that has not seen it.",
)  # fmt: skip


def outlier_batch(run: Run, event: Event) -> Cause | None:
    """Returns how likely a batch made the event by itself; None where nothing tells what was usual.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    found = strike(run, event)
    if found is None or "loss" not in found.order.tracks:
        return None
    odds = Odds(PRIOR)
    step = _judged(odds, found)
    if step is None:
        said = odds.con or ["The loss of no batch stood out."]
        return Cause(NAME, RULED_OUT, tuple(said), CONTRADICTS, (), REFERENCES, ("loss",))
    _concentrated(odds, run, event)
    advice = _advice(step) if odds.score >= RULED_OUT else ()
    said = odds.pro if odds.total >= 0 or not odds.con else [*odds.con, *odds.pro]
    against = tuple(f"Here: {_lower(each)}" for each in odds.con) if odds.total >= 0 else ()
    return Cause(NAME, odds.score, tuple(said), (*against, *CONTRADICTS), advice, REFERENCES, tuple(odds.signals))


def _judged(odds: Odds, found: Strike) -> int | None:
    """Adds up what speaks for the batch of one step, and returns that step; None where there is none."""
    loss, leap = found.loss, found.leap
    if leap is not None and leap.loss is not None and RAISED <= abs(leap.off) < math.inf:
        _easy(odds, found, leap, leap.loss)
        return leap.step
    if loss is None:
        return None
    if not math.isfinite(loss.value) or math.isinf(loss.z):
        odds.con.append(f"The loss of step {loss.step:,} is no high number but none at all.")
        return None
    odds.add(0.0, f"The loss of step {loss.step:,}, of its batch before any update by it, was {loss.told}.", "loss")
    _sudden(odds, found, loss)
    _steps_before(odds, found, leap)
    _gradient(odds, found, loss)
    _afterwards(odds, found, loss)
    _others(odds, found, loss.step)
    return loss.step


def _easy(odds: Odds, found: Strike, leap: Leap, loss: Reading) -> None:
    """Adds that a batch was off itself, though the loss of later ones made the event."""
    way = "high" if loss.z > 0 else "low, as of examples that are all alike,"
    top = found.order.tracks["loss"].most(leap.step, found.order.looked[1])
    little = top is not None and 0 < leap.off < PART * min(top.z, BEYOND)
    weight = EASY + LITTLE if little else EASY
    said = f"The loss of step {leap.step:,} was unusually {way} before any update by it: {loss.told}."
    odds.add(weight, said, "loss")
    first = leap.readings[0]
    odds.add(0.0, f"Its {first.name} was {first.told}.", first.signal)
    if found.built[0]:
        odds.add(-found.built[0], found.built[1], first.signal)
    if found.loss is not None and found.loss.step > leap.step:
        odds.add(0.0, f"The losses from step {found.loss.step:,} on are of the weights that it left.")
    _others(odds, found, leap.step)


def _sudden(odds: Odds, found: Strike, loss: Reading) -> None:
    if found.share >= 0.6:
        odds.add(AT_ONCE, f"{percent(found.share)} of the rise came in this one record.")
    elif found.share < 0.3:
        weight = BY_AND_BY if found.share >= 0.15 else BIT_BY_BIT
        odds.add(weight, f"Only {percent(found.share)} of the rise up to the peak came in this record.")


def _steps_before(odds: Odds, found: Strike, leap: Leap | None) -> None:
    if leap is not None:
        first = leap.readings[0]
        odds.add(
            STEPPED_OUT, f"At step {leap.step:,}, before the loss rose, the {first.name} was {first.told}.",
            first.signal,
        )  # fmt: skip
        return
    before = found.before
    if before is None:
        odds.add(UNKNOWN, "Whether the steps before were usual is not known: no updates or gradients were recorded.")
    elif found.built[0]:
        odds.add(-found.built[0], found.built[1], before.signal)
    elif found.unseen:
        said = f"What the {count(found.unseen, 'step')} before it did is not known: only every so many were recorded."
        odds.add(UNSEEN, said, before.signal)
    else:
        odds.add(
            CALM, f"All steps before were usual: {before.name} at most {before.told} in the last records.",
            before.signal,
        )  # fmt: skip


def _gradient(odds: Odds, found: Strike, loss: Reading) -> None:
    if not found.gradient:
        return
    first = found.gradient[0]
    signal = first.signal.partition("/")[0]
    sizes = [min(abs(each.z), 2 * STRANGE_Z) for each in found.gradient]
    off = (max(sizes) + sum(sizes) / len(sizes)) / 2
    part = (min(off, STRANGE_Z) - PLAIN_Z) / (STRANGE_Z - PLAIN_Z)
    weight = ORDINARY + (STRANGE - ORDINARY) * max(0.0, part)
    if weight >= 0:
        odds.add(weight, f"Its gradient was unusual too: {first.name} {first.told}.", signal)
    else:
        odds.add(
            weight, f"Its gradient was as usual ({first.name} {first.told}), as if only the number were wrong that was "
            "reported.", signal,
        )  # fmt: skip


def _afterwards(odds: Odds, found: Strike, loss: Reading) -> None:
    if found.back is not None and found.back <= SOON:
        odds.add(BACK, f"{count(found.back, 'record')} later the loss was back in its range.")
    elif found.own is not None:
        first = found.own.readings[0]
        odds.add(
            HARM, f"The update by it did harm: its {first.name} was {first.told}, and the loss "
            + ("has not come back." if found.back is None else f"took {count(found.back, 'record')} to come back."),
            first.signal,
        )  # fmt: skip
    else:
        odds.add(STAYS, f"The loss stayed up {'to the end' if found.back is None else f'for {found.back} records'}.")


def _others(odds: Odds, found: Strike, step: int) -> None:
    for each in changed(found.order, step):
        moved = f"The {each.name} went from {number(each.usual)} to {number(each.value)} at step {each.step:,}."
        odds.add(PLANNED, moved, each.signal)


def _concentrated(odds: Odds, run: Run, event: Event) -> None:
    """Adds what attribution found: few examples that carry the rise."""
    for found in run.findings_of(event, "attribution")[-1:]:
        few, of = found.get("culprit_concentration"), found.get("culprit_count")
        if isinstance(few, int) and isinstance(of, int) and 0 < few <= FEW * of:
            odds.add(CONCENTRATED, f"{count(few, 'example')} of {of:,} pushed 90 % of the rise.")


def _advice(step: int) -> tuple[str, ...]:
    return (
        f"Look at the batch of step {step:,}: labels, range of the inputs, padding, duplicates, source.",
        "Leave such steps out: `guard = fs.Guard(monitor)` and `guard.step()` in place of `optimizer.step()`; with "
        "`fs.Requeue(loader)` the batch comes again later, and is put in quarantine if it strikes twice.",
        "Clip the gradient to its usual norm, so that one batch moves little: "
        "`torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)`.",
        "Check what the loader hands out: assert the range of inputs and labels where a batch is made.",
    )


def _lower(said: str) -> str:
    return said[:1].lower() + said[1:]
