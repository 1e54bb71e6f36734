"""The cause `nonfinite`: a value overflowed, or was 0/0, in a training that was well until then.

A divergence that ends in infinities ends there because numbers end there; what drove it is the cause, not this.
"""

from __future__ import annotations

import math

import numpy as np

from foreshock.detect.nonfinite import WATCHED
from foreshock.detect.series import Floats, Ints, near
from foreshock.diagnose.base import Cause
from foreshock.diagnose.odds import Odds
from foreshock.diagnose.onset import onset
from foreshock.diagnose.usual import OUT
from foreshock.diagnose.wording import count, number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "nonfinite"
KINDS = frozenset({"nonfinite"})
NEEDS = ("loss",)
BETTER = ("grad_norm", "param_norm", "nonfinite_first", "loss_scale")
# Log-odds, from planted faults in small networks.
PRIOR = 2.0
CALM, RISEN, RUN_AWAY = 2.0, -2.5, -6.0  # what loss and gradient were before: usual, high, beyond all measure
NAMED = 0.5  # it began in some tensors only
HIGH, HUGE, FAR = 4.0, 100.0, 8.0  # times the usual, and deviations that are no noise
LATELY = 8  # records before
MANY = 6  # tensors that are named
REFERENCES = ("Micikevicius et al. 2018, arXiv 1710.03740",)
CONTRADICTS = ("Losses or gradients that had grown far beyond their range in the steps before.",)
FORWARD = (
    "Look in the forward pass of step {step}: a logarithm, root or division of 0, a softmax over a row that is masked "
    "as a whole, an `exp` that overflows, an input that is not finite: `assert torch.isfinite(batch).all()`."
)
BACKWARD = (
    "Look in the backward pass of step {step}: a root or norm at 0, a division whose denominator vanishes, a `where` "
    "that hides a NaN in the forward pass only; `torch.autograd.detect_anomaly()` names the operation."
)
HALF = (
    "In float16 all above 65504 is infinite: lower the scale of the loss (`GradScaler(init_scale=...)`), or run the "
    "last layers and the loss in float32; bfloat16 has the range of float32. An `eps` of 1e-8 is 0 in float16."
)
SKIP = (
    "Leave such steps out: `guard = fs.Guard(monitor)` and `guard.step()` in place of `optimizer.step()` refuses any "
    "step whose loss or gradient is not finite; here that was step {step}."
)


def nonfinite(run: Run, event: Event) -> Cause | None:
    """Returns how likely a value that is no number came by itself; None where the run does not tell what was before.

    Args:
        run: the run, complete or so far.
        event: of kind nonfinite.
    """
    here = near(run, event)
    struck = _struck(here, event.onset)
    if not struck:
        return None
    odds = Odds(PRIOR)
    first, value = struck[0]
    odds.add(
        0.0, f"At step {event.onset:,} the {_WORDS.get(first, first)} was {number(value)}"
        + (", the loss was not" if first != "loss" and "loss" in run else "") + ".", first,
    )  # fmt: skip
    _tensors(odds, here, event)
    _before(odds, run, here, event)
    _afterwards(odds, here, event)
    advice = _advice(odds, here, event, first)
    said = [*odds.con, *odds.pro] if odds.total < 0 else odds.pro
    against = tuple(f"Here: {each[:1].lower()}{each[1:]}" for each in odds.con) if odds.total >= 0 else ()
    return Cause(NAME, odds.score, tuple(said), (*against, *CONTRADICTS), advice, REFERENCES, tuple(odds.signals))


_WORDS = {
    "loss": "loss", "grad_norm": "norm of the gradient", "update_norm": "norm of the update",
    "param_norm": "norm of the parameters after the update", "nonfinite": "number of tensors that are not finite",
}  # fmt: skip


def _struck(run: Run, step: int) -> list[tuple[str, float]]:
    """Returns the signals that were not finite at a step, in the order in which they come about."""
    found = []
    for name in WATCHED:
        if name in run:
            steps, values = run.measured(name)
            place = int(np.searchsorted(steps, step))
            if place < len(steps) and steps[place] == step and not math.isfinite(values[place]):
                found.append((name, float(values[place])))
    if found or "nonfinite" not in run:
        return found
    steps, values = run.measured("nonfinite")
    return [("nonfinite", float(value)) for value in values[steps == step] if value > 0]


def _tensors(odds: Odds, run: Run, event: Event) -> None:
    """Adds in which tensors it was; those before one in model order follow from it in the backward pass."""
    names = run.tensors("grad_norm")
    if not names:
        _first(odds, run, event)
        return
    steps, _, matrix = run.window(event.onset, event.onset + 1).matrix("grad_norm")
    if not len(steps):
        _first(odds, run, event)
        return
    values = np.asarray(matrix[0], np.float64)
    bad = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
    if not bad:
        odds.add(0.0, "The gradients of all tensors were finite: it came in the update.", "grad_norm")
    elif len(bad) == len(names):
        odds.add(0.0, f"The gradients of all {len(names)} tensors were not finite.", "grad_norm")
    else:
        told = ", ".join(f"`{name}`" for name in bad[:MANY]) + (", ..." if len(bad) > MANY else "")
        follows = ""
        if len(bad) > 1 and bad == list(names[: len(bad)]):
            follows = f"; it began in `{bad[-1]}` or in what follows that, since all tensors before get it passed back"
        odds.add(
            NAMED, f"Of {len(names)} tensors {count(len(bad), 'gradient')} were not finite: {told}{follows}.".replace(
                "1 gradient were", "1 gradient was"), "grad_norm",
        )  # fmt: skip


def _first(odds: Odds, run: Run, event: Event) -> None:
    """Adds the first tensor in model order, where only that was recorded."""
    names = run.meta.get("tensors")
    if "nonfinite_first" not in run or not isinstance(names, (list, tuple)):
        return
    steps, values = run.measured("nonfinite_first")
    for index in values[steps == event.onset]:
        if math.isfinite(index) and 0 <= index < len(names):
            odds.add(0.0, f"The first tensor that was not finite was `{names[int(index)]}`.", "nonfinite_first")


def _before(odds: Odds, run: Run, here: Run, event: Event) -> None:
    """Adds what loss and gradient were like just before."""
    order = onset(run, event)
    worst, told = 1.0, ""
    for name, word in (("loss", "loss"), ("grad_norm", "gradient norm")):
        track = None if order is None else order.tracks.get(name)
        if order is not None and track is not None:
            first = order.previous(event.onset, LATELY)
            top = track.most(order.looked[0] if first is None else first, event.onset - 1)
            if top is None:
                continue
            ratio = top.ratio if 0 < top.ratio < math.inf else 1.0 + max(0.0, top.z) / OUT
            if top.z >= FAR and ratio > worst:
                worst, told = ratio, f"The {word} had reached {top.told} by step {top.step:,}."
        elif order is None:
            worst, told = max((worst, told), _early(here, event, name, word))
    if worst >= HUGE:
        odds.add(RUN_AWAY, f"{told} It is the end of a divergence.", "loss", "grad_norm")
    elif worst >= HIGH:
        odds.add(RISEN, f"{told}", "loss", "grad_norm")
    else:
        odds.add(CALM, "Losses and gradients were in their range until the step before.", "loss", "grad_norm")


def _early(run: Run, event: Event, name: str, word: str) -> tuple[float, str]:
    """Returns how much a signal had grown since the start of a run that has hardly begun."""
    if name not in run:
        return 1.0, ""
    steps, values = run.measured(name)
    known: tuple[Ints, Floats] = (steps[steps < event.onset], values[steps < event.onset])
    finite = known[1][np.isfinite(known[1])]
    if not len(finite) or finite[0] <= 0:
        return 1.0, ""
    ratio = float(finite.max() / finite[0])
    return ratio, f"The {word} had grown {number(ratio)}-fold since the start."


def _afterwards(odds: Odds, run: Run, event: Event) -> None:
    """Adds whether it stayed."""
    records = event.data.get("count")
    later = run.window(event.onset, event.onset + 10_000)
    spoilt = None
    if "param_norm" in later:
        steps, values = later.measured("param_norm")
        bad = steps[~np.isfinite(values)]
        spoilt = int(bad[0]) if len(bad) else None
    if spoilt is not None:
        odds.add(
            0.0, f"The weights have not been finite since the update of step {spoilt:,}: nothing after it can be used; "
            "go back to a state before.", "param_norm",
        )  # fmt: skip
    elif isinstance(records, int):
        odds.add(0.0, "It was this one step." if records == 1 else f"{count(records, 'record')} were not finite.")


def _advice(odds: Odds, run: Run, event: Event, first: str) -> tuple[str, ...]:
    step = f"{event.onset:,}"
    where = FORWARD if first == "loss" else BACKWARD
    scaled = "loss_scale" in run and float(np.nanmax(run["loss_scale"], initial=1.0)) > 2.0
    half = scaled or any("16" in str(each) for each in run.meta.get("dtypes", ()) or ())
    said = [SKIP.format(step=step), where.format(step=step), HALF]
    if half:
        said.insert(1, said.pop())
    return tuple(said) if odds.total >= 0 else ("Look at what made the loss grow before it ended.",)
