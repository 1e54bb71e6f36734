"""The cause `schedule`: the loop changed its steps: learning rate, batch, accumulation, loss scale or a setting."""

from __future__ import annotations

import math

from foreshock.detect.series import Series, near, series
from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.edge import verdict
from foreshock.diagnose.leaps import BEFORE, HARMLESS, Leap, leaps, rates
from foreshock.diagnose.onset import onset
from foreshock.diagnose.wording import number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "schedule"
KINDS = frozenset({"spike", "divergence", "drift", "watch", "transient", "nonfinite"})
NEEDS = ("lr",)
BETTER = ("batch_size", "micro_batches", "loss_scale", "chi_growth", "grad_norm")
STILL = 0.03  # score where nothing changed
WARMING, CLIMB, WINDOW = 0.3, 1.25, 100  # score of a learning rate that has climbed to its highest so far by a quarter
NEVER, STILL_CLIMBING = 1.02, 20  # times its highest before that it must be; and it climbed in the last so many steps
ADVICE = {
    "lr": (
        "Warm the learning rate up over more steps, or raise it by less: "
        "`torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=1000)`.",
    ),
    "resumed": (
        "Restore the scheduler with the optimizer when a run is resumed: `scheduler.load_state_dict(...)`, and compare "
        "`optimizer.param_groups[0]['lr']` with the last value of the run before.",
    ),
    "batch_size": (
        "Lower the learning rate with the batch (by the root of their ratio with Adam, in proportion with SGD), or "
        "accumulate gradients over more micro-batches.",
    ),
    "batch_switched": (
        "Keep the optimizer's moments at a switch of the batch, `switch(optimizer, old=..., new=..., moments='keep')`, "
        "and let the learning rate come to its new value over some hundred steps.",
    ),
    "micro_batches": ("Divide each loss by the number of micro-batches: `(loss / accumulate).backward()`.",),
    "loss_scale": (
        "Take the scale out of the gradients before the update: `scaler.unscale_(optimizer)`, and step by "
        "`scaler.step(optimizer)`; differentiate the mean loss.",
    ),
    "setting": ("Change such a setting with the learning rate lowered for some hundred steps, or not in mid-run.",),
}
CONTRADICTS = ("The same event in a rerun from before it in which the schedule stays as it was.",)


def schedule(run: Run, event: Event) -> Cause | None:
    """Returns how likely the schedule made the event; None where neither learning rate nor batches were recorded.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    here = near(run, event)
    columns, others = rates(here), [name for name in BETTER[:3] if name in here]
    how = onset(run, event)
    rise = event.onset if how is None or how.rise is None else max(event.onset, min(how.rise, event.raised))
    told = [name for name in columns if len(series(here, name).within(rise - BEFORE, rise))]
    if not told and not others:
        return None
    found = leaps(here, rise)
    best = found[0] if found else None
    score = STILL if best is None else max(STILL, best.score)
    said = [leap.told for leap in found if leap.score > STILL]
    resumed = _resumed(here, rise)
    if resumed is not None and best is not None and best.what.startswith("lr"):
        said.append(f"The run was resumed at step {resumed:,}.")
    if told and (best is None or best.score < WARMING):
        warming = _warming(series(here, told[0]), rise)
        score, said = (max(score, WARMING), [warming, *said]) if warming else (score, said)
    edge = verdict(run, event) if told else None
    if edge is not None and edge.score("learning rate") > STILL:
        said += edge.said
        score = max(score, edge.score("learning rate"))
    if not said:
        said = [_still(here, told, others, rise)]
    todo = _advice(found, resumed, score)
    return Cause(NAME, score, tuple(filter(None, said)), CONTRADICTS, todo, (), (*told, *others))


def _still(run: Run, told: list[str], others: list[str], rise: int) -> str:
    """Returns that nothing changed."""
    said = f"The learning rate did not leap in the {BEFORE} steps before"
    said = f"{said}; it stood at {number(series(run, told[0]).at(rise))}." if told else "No learning rate was recorded."
    if others:
        names = {"batch_size": "batch size", "micro_batches": "number of micro-batches", "loss_scale": "loss scale"}
        said += f" Nor did {' or '.join(names[name] for name in others)} change in a way that would."
    return said


def _warming(rate: Series, rise: int) -> str:
    """Returns that the learning rate climbed all the time and was higher than ever; empty where it was not so."""
    now, then = rate.at(rise), rate.at(rise - WINDOW)
    part, before = rate.within(rise - WINDOW, rise).values, rate.within(0, rise - WINDOW).values
    then = float(part[0]) if math.isnan(then) and len(part) else then
    top = float(before.max()) if len(before) else 0.0
    if not now > NEVER * rate.at(rise - STILL_CLIMBING):
        return ""
    if not (len(part) > 8 and now >= CLIMB * then > 0 and now > NEVER * top and (part[1:] >= 0.999 * part[:-1]).all()):
        return ""
    return (
        f"The learning rate had climbed {now / then:.3g}-fold in the {WINDOW} steps before, to {number(now)}, higher "
        "than ever before."
    )


def _resumed(run: Run, rise: int) -> int | None:
    found = [int(note["step"]) for note in run.notes if note.get("kind") == "resumed" and "step" in note]
    return max((step for step in found if rise - BEFORE <= step <= rise), default=None)


def _advice(found: list[Leap], resumed: int | None, score: float) -> tuple[str, ...]:
    if score < RULED_OUT:
        return ()
    kinds = [leap.what.partition("/")[0] for leap in found if leap.score > HARMLESS * score] or ["lr"]
    kinds = [kind if kind in ADVICE else "setting" for kind in kinds]
    if resumed is not None and "lr" in kinds:
        kinds.insert(0, "resumed")
    return tuple(line for kind in dict.fromkeys(kinds) for line in ADVICE[kind])
