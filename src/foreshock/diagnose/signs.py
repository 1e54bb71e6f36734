"""Signs of an optimizer at its edge of stability where chi was not read close enough before the event to say so.

At the edge the unstable mode flips its sign at every step: successive gradients point against each other, and loss
and gradient climb by a like factor from step to step, for many steps, without a leap. Readings of chi from further
away, and secants of successive gradients, say how near the edge was. Each sign is worth something, none as much as a
reading.

Sources: Cohen et al. 2022, arXiv 2207.14484 (the edge under adaptive optimizers); Bai et al. 2025, arXiv 2506.04805
(free decay of v, secant curvature); Li, Xu and Zhang 2023, arXiv 2305.12133 (geometric ascent).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foreshock.detect.second_moment import betas, has_second_moment, ratios
from foreshock.detect.series import Floats, Series, near, readings, series
from foreshock.diagnose.leaps import leaps, rates
from foreshock.diagnose.onset import onset
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

# Log-odds, from spikes of small networks whose chi was known: nothing said, about one in twenty.
START = -3.0
AGAINST, MOSTLY = -0.5, -0.9  # cosines of successive gradients that point against each other, and nearly so
OPPOSED, STRONGLY, ALONG = 2.5, 3.5, -2.0  # most of the last ones did, nearly all were opposite; hardly one did
ALONE, ALMOST, GROWS = 4.5, 3.5, 1.1  # gradient that grew and turned: over 4 records, or 2; growth that is some
DECAYED, LONGER = 0.8, 0.2  # weight of a second moment that made steps 20 % longer, beside one of the others
EARLIER, AGREED, LATER = 50, 0.2, 0.4  # steps in which they came to; cosine that agrees; share of a leap's weight then
HABIT = 0.5  # part of that weight that is lost where they always did
SHARE, FULL, HARDLY = 0.5, 0.75, 0.1
CLIMBED, STEEP, LEAPT = 1.0, 0.5, -2.5  # loss climbed over 4 or 8 records; or it made most of its rise in one
FEW, MANY, ONE = 4, 8, 0.75
SECANT, FLAT = 1.0, 0.8  # weight of a secant at the edge; that from which it is
CLOSE, FAR = 1.0, -1.5  # weights of the last reading of chi; where it was 0.8 or above, or so low that it cannot be
NEAR, LOW, REACH = 0.8, 0.35, 400  # chi that is close to the edge; that is far; steps for which a reading says a word
PACE, EARLY = 2e-3, 5.0  # of ln chi per step that it may have grown since; and this over the step, early on
UNREAD = 0.85  # most that this can be worth without a reading
BACK, WINDOW = 12, 100  # steps before the rise whose gradients count; and whose second moments do
FREE, HALF = 0.75, 0.4  # share of the free decay 1 - beta2 that is one; of the steps, from which v drove chi
DRIVEN, UNDRIVEN, DROVE = 0.8, 0.15, 0.12  # shares of the second moment with and without; ln 1/sqrt(v) that is enough
MOST_GROWN = 7.0  # ln of a thousand: more is said as that
SPAN = 30  # steps over which readings must reach to tell how chi grew
RAISED = 0.02  # growth of ln lr over the window that counts


@dataclass(frozen=True, slots=True)
class Signs:
    """What speaks for an edge that nobody read.

    Attributes:
        strength: 0 to 1, how likely curvature made the event; at most 0.85.
        shares: "preconditioner", "landscape" and "learning rate" -> part in it, 1 in all.
        said: the signs, in sentences.
        against: those that speak against it.
        signals: what they were read from.
    """

    strength: float
    shares: dict[str, float]
    said: tuple[str, ...]
    against: tuple[str, ...]
    signals: tuple[str, ...]


def signs(run: Run, event: Event) -> Signs | None:
    """Returns the signs of an edge of stability before an event; None where no signal would show one.

    Args:
        run: the run, complete or so far.
        event: a rise of the loss.
    """
    run = near(run, event)
    cosine = series(run, "grad_cosine")
    chi = readings(run)
    if not len(cosine) and not len(chi):
        return None
    how = onset(run, event)
    rise = event.onset if how is None or how.rise is None else min(how.rise, event.onset)
    secant = series(run, "chi_secant")
    turned, bent = _opposed(cosine, rise, event.peak), _secant(secant, rise, event.peak)
    swung = _swung(cosine, rise)
    turned, grown = max(turned, swung) if swung[0] > 0 else turned, _grown(run, rise, event.peak)
    climb = (0.0, "") if grown[0] > 0 else _climb(run, event, rise)
    if swung[0] > 0 and climb[0] < 0:  # it may leap once the mode has left the quadratic part
        climb = climb[0] * LATER, climb[1]
    found = [max(turned, grown) if turned[0] * grown[0] > 0 else turned, climb, bent, _far(chi, rise)]
    if turned[0] * grown[0] <= 0:
        found.append(grown)
    leapt = [leap for leap in leaps(run, rise) if leap.score >= 0.5]
    odds = START + sum(weight for weight, _ in found)
    shares, by, longer = _shares(run, rise, bool(leapt))
    if longer >= LONGER and max(turned[0], grown[0]) > 0:
        odds += DECAYED
    if not len(cosine):
        odds += OPPOSED / 2  # not recorded is not absent
    strength = min(UNREAD, 1 / (1 + math.exp(-odds)))
    said = [told for weight, told in found if told and weight > 0]
    against = [told for weight, told in found if told and weight <= 0]
    read = tuple(name for name in ("grad_cosine", "loss", "chi_secant", "chi", "v_ratio", "lr") if name in run)
    return Signs(strength, shares, (*said, *([by] if by else [])), tuple(against), read)


def _opposed(cosine: Series, rise: int, peak: int) -> tuple[float, str]:
    values = cosine.within(rise - BACK, max(rise, min(peak, rise + BACK))).values
    if len(values) < FEW:
        return 0.0, ""
    share, most = float(np.mean(values < AGAINST)), float(np.mean(values < MOSTLY))
    said = f"{percent(share)} of the {count(len(values), 'gradient')} up to the rise pointed against the one before"
    if share < HARDLY:
        return ALONG, said + "; an unstable mode flips them at every step."
    if share < SHARE:
        return OPPOSED * (share - HARDLY) / (SHARE - HARDLY) * 0.6, said + "."
    said += f" (cosine down to {float(values.min()):.2f}), as at an edge of stability."
    weight = STRONGLY if most >= SHARE or share >= FULL else OPPOSED
    usual = cosine.within(rise - BACK - WINDOW, rise - BACK - 1).values
    habit = float(np.mean(usual < AGAINST)) if len(usual) else 0.0
    if habit >= SHARE:
        said = f"{said[:-1]}; but so did {percent(habit)} of the {WINDOW} before."
    return weight * (1 - HABIT * min(1.0, habit / share)), said


def _swung(cosine: Series, rise: int) -> tuple[float, str]:
    """Returns whether gradients that used to agree came to oppose each other some time before the rise."""
    usual, late = cosine.within(rise - EARLIER - WINDOW, rise - EARLIER - 1), cosine.within(rise - EARLIER, rise)
    against = late.values <= MOSTLY
    if len(usual) < FEW or np.median(usual.values) < AGREED or against.sum() < FEW:
        return 0.0, ""
    ago = rise - int(late.steps[np.argmax(against)])
    return STRONGLY, (
        f"Successive gradients, which had agreed (cosine {float(np.median(usual.values)):.2f}), pointed against each "
        f"other from {count(ago, 'step')} before the rise on: {int(against.sum())} of them nearly opposite."
    )


def _grown(run: Run, rise: int, peak: int) -> tuple[float, str]:
    """Returns whether the gradient grew from record to record and turned against itself: the unstable mode alone."""
    norm, cosine = series(run, "grad_norm").within(rise - 2 * BACK, peak + 1), series(run, "grad_cosine")
    if len(norm) < 3 or norm.values.min() <= 0 or not len(cosine):
        return 0.0, ""
    top = int(np.argmax(norm.values))
    first = top
    while first > 0 and norm.values[first] > GROWS * norm.values[first - 1]:
        first -= 1
    records = top - first
    turned = cosine.within(int(norm.steps[first]) + 1, int(norm.steps[top])).values
    against = int(np.sum(turned < AGAINST))
    fold = float(norm.values[top] / norm.values[first])
    if records < 2 or fold < math.e or against < 2 or not turned[-1] < 0:
        return 0.0, ""
    said = (
        f"The gradient grew {fold:.3g}-fold over {count(records, 'record')} to the peak, and {against} of them pointed "
        "against the one before: one mode that overshoots from step to step."
    )
    return (ALONE if against >= FEW and records >= FEW else ALMOST), said


def _climb(run: Run, event: Event, rise: int) -> tuple[float, str]:
    """Returns whether the loss climbed by and by, or leapt."""
    loss = series(run, "loss")
    part = loss.within(rise - BACK, event.peak)
    if len(part) < FEW or part.values.min() <= 0:
        return 0.0, ""
    level = np.log(part.values)
    low = int(np.argmin(level[: max(1, int(np.searchsorted(part.steps, rise)) + 1)]))
    climb = _envelope(level[low:])
    total = float(climb[-1] - climb[0])
    if total <= 0:
        return 0.0, ""
    one, records = float(np.max(np.diff(climb), initial=0.0)) / total, len(climb) - 1
    if one >= ONE or records < 2:
        return LEAPT, f"The loss made {percent(one)} of its rise (on the logarithmic scale) in one record."
    if records < FEW:
        return 0.0, ""
    said = f"The loss climbed over {count(records, 'record')}, by {percent(one)} of the rise in one at most."
    return CLIMBED + STEEP * (records >= MANY), said


def _envelope(level: Floats) -> Floats:
    """Returns the running maximum over two records, since an unstable mode swings."""
    pairs = np.maximum(level[:-1], level[1:]) if len(level) > 1 else level
    result: Floats = np.maximum.accumulate(np.concatenate((level[:1], pairs)))
    return result


def _secant(secant: Series, rise: int, peak: int) -> tuple[float, str]:
    values = secant.within(rise - 2 * BACK, peak).values
    if not len(values) or values.max() < FLAT:
        return 0.0, ""
    return SECANT, f"The curvature along a step, from two gradients, reached {number(float(values.max()))} (edge 1)."


def _far(chi: Series, rise: int) -> tuple[float, str]:
    """Returns what the last reading of chi before the rise says, the less the older it is."""
    before = chi.within(rise - REACH, rise)
    if not len(before):
        return 0.0, ""
    value, age = float(before.values[-1]), rise - int(before.steps[-1])
    said = f"chi was {number(value)} {count(age, 'step')} before the rise; an optimizer goes over its edge at 1."
    if value >= NEAR:
        return CLOSE, said
    if value * math.exp((PACE + EARLY / max(rise, 1)) * age) < LOW:
        return FAR, said
    return 0.0, ""


def _shares(run: Run, rise: int, leapt: bool) -> tuple[dict[str, float], str, float]:
    """Returns who drove chi, as far as learning rate and second moments tell, that in a sentence, and the growth of
    ln 1/sqrt(v)."""
    rate = grown = 0.0
    if columns := rates(run):
        lr = series(run, columns[0])
        now, then = lr.at(rise), lr.at(rise - WINDOW)
        rate = math.log(now / then) if now > 0 and then > 0 else 0.0
    if not has_second_moment(run):
        driven, said = {"preconditioner": 0.0, "landscape": 1.0}, ""
    elif not ratios(run):
        driven, said = {"preconditioner": 0.5, "landscape": 0.5}, ""
    else:
        freely, grown = _decay(run, rise)
        share = UNDRIVEN + (DRIVEN - UNDRIVEN) * min(1.0, max(freely / HALF, grown / DROVE))
        pace = _pace(readings(run), rise)
        if pace * WINDOW > max(grown, RAISED):  # it grew by more than the second moment can have made of it
            share = min(share, max(UNDRIVEN, grown / (pace * WINDOW)))
        driven = {"preconditioner": share, "landscape": 1 - share}
        said = (
            f"In {percent(freely)} of the {WINDOW} steps before, the second moment decayed freely at beta2; its decay "
            f"made steps {percent(math.expm1(min(max(0.0, grown), MOST_GROWN)))} longer."
        )
    own = 0.8 if leapt else rate / (rate + DROVE) if rate > RAISED else 0.0
    return {name: part * (1 - own) for name, part in driven.items()} | {"learning rate": own}, said, grown


def _pace(chi: Series, rise: int) -> float:
    """Returns the growth of ln chi per step by its last readings before the rise; 0 where they tell none."""
    part = chi.within(rise - REACH, rise)
    if len(part) < 3 or part.values.min() <= 0 or part.steps[-1] - part.steps[0] < SPAN:
        return 0.0
    line = np.polyfit(part.steps - part.steps[0], np.log(part.values), 1)
    return max(0.0, float(line[0]))


def _decay(run: Run, rise: int) -> tuple[float, float]:
    """Returns the share of steps in which v decayed freely, and the growth of ln 1/sqrt(v), of what decayed most.

    Of the tensors that decayed most, since any of them can be at the edge; of the whole v where they are not recorded.
    """
    beta2 = betas(run)[1]
    best = 0.0, 0.0
    for name in ratios(run):
        values = series(run, name).within(rise - WINDOW, rise - 1).values
        values = values[values > 0]
        if len(values) < FEW:
            continue
        logs = np.log(values)
        decay = math.log(beta2) if beta2 is not None and 0 < beta2 < 1 else float(logs.min())
        freely = float(np.mean(logs <= FREE * decay)) if decay < 0 else 0.0
        grown = -0.5 * float(np.mean(logs)) * WINDOW
        best = max(best, (freely, grown)) if name == "v_ratio" or "/" in name else best
    return best
