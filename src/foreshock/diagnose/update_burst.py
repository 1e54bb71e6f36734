"""The cause `update_burst`: one step went far further than any before it, at a loss that was as usual.

A gradient out of scale, a second moment that was lost or shrank, a momentum out of scale: Adam's update is bounded only
while v has seen gradients like the one at hand. Sources: arXiv 2507.06464 (S3; the response to a burst); Bai et al.
2025, arXiv 2506.04805 (g^2/v).
"""

from __future__ import annotations

import math

from foreshock.bursts import burst_response
from foreshock.diagnose.base import Cause
from foreshock.diagnose.odds import Odds
from foreshock.diagnose.onset import RAISED, Onset
from foreshock.diagnose.reach import S3_LINE, Reach, reach
from foreshock.diagnose.strike import STEPPED, Leap, Strike, changed, strike, turned
from foreshock.diagnose.wording import count, number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "update_burst"
ADAM = tuple(burst_response("Adam", betas=(0.9, beta2)) for beta2 in (0.999, 0.95))
KINDS = frozenset({"spike", "divergence", "nonfinite", "precursor"})
NEEDS = ("grad_norm",)
BETTER = ("update_rms", "grad_sq_over_v_max", "v_ratio", "lr")
# Log-odds, from planted faults of many kinds in small networks.
PRIOR = -1.5
USUAL_LOSS, OWN_LOSS = 1.5, -2.0  # what the loss of its own batch was
PER_FOLD, MOST = 0.5, 2.5  # for each factor of e that it was out of scale, at the most
LOST = 3.0  # the second moment fell faster than it can
AT_ONCE, SOON, LATE = 1.0, 0.3, -0.5  # records until the loss rose
SET, SHAPED, UNSEEN = -5.0, 0.5, -1.5
TURNED = -3.0  # its gradient pointed against the one before: the step before had gone too far already
HARM = 1.0  # a batch whose own loss was off, and whose update made more of it
NOTHING = 0.03
BEYOND = 1.5  # times the largest update that gradients can make, from which they did not: weight decay adds to it
ANY_BETA2 = (
    "A smaller `beta2` (0.95 for AdamW) lets v follow bursts: after one of them Adam goes "
    f"{ADAM[0].displacement:.3g} learning rates at 0.9 and 0.999, and {ADAM[1].displacement:.3g} at 0.9 and 0.95."
)
REFERENCES = ("arXiv 2507.06464, section on the response to bursts", "Bai et al. 2025, arXiv 2506.04805")
CONTRADICTS = (
    "The same event in a rerun from before it in which this update is clipped.",
    "A loss of its own batch that is off already: then the batch made the gradient what it was.",
)  # fmt: skip


def update_burst(run: Run, event: Event) -> Cause | None:
    """Returns how likely one step out of scale made the event; None where neither gradients nor updates were recorded.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    found = strike(run, event)
    if found is None or not any(name in found.order.tracks for name in STEPPED):
        return None
    leap = found.leap if found.leap is not None else found.own
    if leap is None or not leap.readings:
        return Cause(NAME, NOTHING, (_calm(found),), CONTRADICTS, (), REFERENCES, _read(found.order))
    odds = Odds(PRIOR)
    _size(odds, leap, known=found.order.at("grad_norm", leap.step) is not None)
    _loss(odds, found, leap)
    _lag(odds, found, leap)
    for each in changed(found.order, leap.step):
        moved = f"The {each.name} went from {number(each.usual)} to {number(each.value)} at step {each.step:,}."
        odds.add(SET, moved, each.signal)
    if found.built[0]:
        odds.add(-found.built[0], found.built[1], "grad_norm")
    if turned(found.order, leap.step):
        odds.add(TURNED, "Its gradient pointed against the one before: that step had gone too far.", "grad_cosine")
    advice: tuple[str, ...] = ()
    if odds.score >= NOTHING:
        known = reach(run, _ratio(found.order, leap))
        _bounds(odds, leap, known)
        advice = _advice(leap, known)
    said = odds.pro if odds.total >= 0 or not odds.con else [*odds.con, *odds.pro]
    against = tuple(f"Here: {each[:1].lower()}{each[1:]}" for each in odds.con) if odds.total >= 0 else ()
    return Cause(NAME, odds.score, tuple(said), (*against, *CONTRADICTS), advice, REFERENCES, tuple(odds.signals))


def _size(odds: Odds, leap: Leap, *, known: bool) -> None:
    """Adds how far the step was out of scale, and what of it was; `known` is whether its gradient was measured."""
    by_name = {each.signal: each for each in leap.readings}
    gradient, update = by_name.get("grad_norm"), by_name.get("update_in_lr") or by_name.get("update_norm")
    first = max((each for each in (gradient, update) if each is not None), key=lambda each: each.z, default=None)
    first = leap.readings[0] if first is None else first
    fold = min(MOST, PER_FOLD * math.log(first.ratio)) if 0 < first.ratio < math.inf else MOST
    odds.add(fold, f"At step {leap.step:,} the {first.name} was {first.told}.", first.signal)
    if gradient is not None and update is not None:
        other = update if first is gradient else gradient
        odds.add(0.0, f"The {other.name} was {other.told}.", other.signal)
    elif update is not None and known:
        odds.add(SHAPED, "Its gradient was as usual: the optimizer's state made the step what it was.", "grad_norm")
    if leap.lost is not None:
        odds.add(
            LOST, f"The second moment went to {number(leap.lost)} of what it was in one step, which its own decay "
            "does not allow: it was lost, or written to.", "v_ratio",
        )  # fmt: skip


def _loss(odds: Odds, found: Strike, leap: Leap) -> None:
    loss = leap.loss
    if loss is None:
        return
    if abs(leap.off) < RAISED:
        odds.add(USUAL_LOSS, f"The loss of its own batch was as usual, {number(loss.value)}.", "loss")
        return
    odds.add(OWN_LOSS, f"The loss of its own batch was off before the update: {loss.told}.", "loss")
    if found.loss is not None and found.loss.step == leap.step and (found.back is None or found.back > 3):
        odds.add(HARM, "The loss stayed up after it: the update did harm of its own.", "loss")


def _ratio(order: Onset, leap: Leap) -> float:
    """Returns how many times the usual the largest gradient of a coordinate was; inf where that is not known."""
    found = order.at("grad_sq_over_v_max", leap.step)
    return math.sqrt(found.value) if found is not None and 1 < found.value < math.inf else math.inf


def _bounds(odds: Odds, leap: Leap, known: Reach | None) -> None:
    """Adds what the optimizer can make of gradients, and whether the update was more than that."""
    update = next((each for each in leap.readings if each.signal == "update_in_lr"), None)
    if known is None or not math.isfinite(known.own.sup) or known.own.unit != "learning rates":
        return
    own, most = known.own, "one learning rate" if known.own.sup == 1 else f"{number(known.own.sup)} learning rates"
    if update is not None and update.value > BEYOND * own.sup:
        odds.add(
            0.0, f"Whatever the gradients, {own.optimizer} moves a coordinate by at most {most} in a step; this update "
            f"was {number(update.value)} in root mean square: its state was lost or written to, or its rate is not the "
            "one recorded.", "update_in_lr",
        )  # fmt: skip
        return
    times = f" of {number(own.ratio)} times the usual gradient, the largest of that step,"
    size = "" if math.isinf(own.ratio) else times
    odds.add(
        0.0, f"A burst{size} makes {own.optimizer} move a coordinate by {number(own.peak)} learning rates in one step; "
        f"no gradients make it move by more than {most}.", "update_in_lr",
    )  # fmt: skip


def _lag(odds: Odds, found: Strike, leap: Leap) -> None:
    """Adds how soon the loss rose after it."""
    if found.loss is None or found.loss.step <= leap.step:
        return
    order = found.order
    lag = int((order.steps <= found.loss.step).sum() - (order.steps <= leap.step).sum())
    weight = AT_ONCE if lag <= 3 else SOON if lag <= 8 else LATE
    if found.unseen:
        said = f"What the {count(found.unseen, 'step')} before the rise did is not known: only some were recorded."
        odds.add(UNSEEN, said, "loss")
    odds.add(weight, f"The loss left its range {count(lag, 'record')} later, at step {found.loss.step:,}.", "loss")


def _calm(found: Strike) -> str:
    before = found.before
    if before is None:
        return "No gradient or update left its range at one go before the event."
    return f"No gradient or update leapt before the loss rose: {before.name} at most {before.told} in the last records."


def _read(order: Onset) -> tuple[str, ...]:
    return tuple(name for name in ("grad_norm", "update_rms", "v_ratio") if name in order.tracks)


def _advice(leap: Leap, known: Reach | None) -> tuple[str, ...]:
    shorter = [*([known.text] if known is not None and known.text else []), *([ANY_BETA2] if known is None else [])]
    if known is not None and "S3" in known.instead:
        shorter.append(f"An optimizer whose updates stay within one learning rate, with its own one: `{S3_LINE}`.")
    lost = (
        "Find what writes to the optimizer's state: a load without it, a reset, a wrapper; then warm the rate up anew.",
    )
    return (
        *(lost if leap.lost is not None else ()),
        "Clip the update, not only the gradient: `fs.Guard(monitor, policy=fs.policies.clip_update())` and "
        "`guard.step()` in place of `optimizer.step()`.",
        *shorter,
        f"Look at what made the gradient of step {leap.step:,}: a scale that was not taken out, a sum in place of a "
        "mean, an example with a gradient of its own size; `torch.nn.utils.clip_grad_norm_` holds those.",
    )
