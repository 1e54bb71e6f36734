"""Carries an action out: the only file in which an optimizer's step is taken, changed or left out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foreshock.errors import UsageError
from foreshock.guard.denominators import floor_, refill_
from foreshock.guard.scaling import Scaling
from foreshock.guard.update import Change, after_step, clipped, learning_rate, own_options, scaled
from foreshock.run.action import (
    Action,
    ClipUpdate,
    CutLr,
    Floor,
    Proceed,
    Refill,
    RepairMoments,
    Rollback,
    Scale,
    Skip,
)
from foreshock.run.event import Event

if TYPE_CHECKING:
    from foreshock.guard.guard import Guard


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of an action.

    Attributes:
        action: as it was really carried out.
        moved: whether the optimizer took a step.
    """

    action: Action
    moved: bool


def carry(guard: Guard, action: Action, events: Sequence[Event], overflow: bool) -> Carried:
    """Does what an action says, and returns what was done: where it cannot be done, the nearest thing that can.

    Args:
        guard: whose optimizer it is.
        action: what the policy decided.
        events: what it decided by.
        overflow: the scaler has found one, and will not let the step be taken.
    """
    before = guard.monitor.step
    action = settled(guard, action, events)
    if action.takes_step:
        take(guard, action)
    elif guard.scaler is not None and guard.scaler.is_enabled():
        guard.scaler.update(guard.scaler.get_scale())  # forgets this attempt; scale and growth stay as they are
    recorded = guard.monitor.step > before
    if not recorded:
        guard.monitor.refuse()
    return Carried(action, moved=recorded and not overflow)  # a fused optimizer's step is called on an overflow too


def settled(guard: Guard, action: Action, events: Sequence[Event]) -> Action:
    """Puts the state right for the action, or back; returns the action that then can be carried out."""
    if action.takes_step:
        with guard._mishaps.said("changing a step", "; it is taken as it is"):
            return prepared(guard, action, events)
    elif isinstance(action, Rollback):
        with guard._mishaps.said("going back to a snapshot", "; the step is left out instead"):
            return restored(guard, action)
        return Skip(data="requeue", step=action.step, reason=action.reason, cause=action.cause)
    return action


def prepared(guard: Guard, action: Action, events: Sequence[Event]) -> Action:
    """Puts the optimizer's state right before the step, where the action is about that."""
    if isinstance(action, (Floor, Refill)):
        reading = guard.sentry.reading()
        raise_ = floor_ if isinstance(action, Floor) else refill_
        chi = next((each.data["chi"] for each in events if "chi" in each.data), None)
        if reading is None:
            return _cut_instead(action, chi, "there is no reading for this step")
        try:
            if not raise_(reading, guard.optimizer, kappa=action.kappa).entries:
                return Proceed(step=action.step)  # chi is no more than that already
        except UsageError as error:
            return _cut_instead(action, reading.chi, str(error))
    if isinstance(action, RepairMoments):
        steps = guard.offered
        if action.how == "restore" and not steps:
            return replace(action, how="reset", reason=f"{action.reason}; there is no snapshot, so they start anew")
        if action.how == "restore":
            guard.snapshots.restore_moments(steps[-1])
        else:
            guard.optimizer.state.clear()
    return action


def restored(guard: Guard, action: Rollback) -> Action:
    """Puts the newest snapshot at or before the step back, and forgets those that may hold the damage."""
    step = max((each for each in guard.offered if each <= action.before), default=None)
    if step is None:
        reason = f"{action.reason}; there is no snapshot at or before step {action.before}, so the step is left out"
        return Skip(data="requeue", step=action.step, reason=reason, cause=action.cause)
    # whoever schedules learning rates behind the guard's back does not go back, and would be out of step with them
    with nullcontext() if guard.along.schedulers else own_options(guard.optimizer):
        guard.snapshots.restore(step)
    guard.snapshots.drop_after(step)
    guard.statistics.keep()
    return replace(action, before=step)


def take(guard: Guard, action: Action) -> None:
    """Takes the optimizer's step, as the action says."""
    optimizer, change = guard.optimizer, changed(guard, action)
    with learning_rate(optimizer, share(guard, action)), after_step(optimizer, change) if change else nullcontext():
        _step(guard)


def plainly(guard: Guard, scaling: Scaling) -> Action:
    """Takes the optimizer's step, and those that follow it, without judging anything."""
    overflow = scaling.overflow()
    _step(guard)
    if not overflow:
        guard.along.step()
    return Proceed(step=guard.monitor.step)


def share(guard: Guard, action: Action) -> float:
    """Returns what the learning rates are multiplied with for this step."""
    if isinstance(action, CutLr):
        return action.factor
    return 1.0 if guard.cut is None else guard.cut[0]


def changed(guard: Guard, action: Action) -> Change | None:
    """Returns what is to be done right after the step; call it right before."""
    if isinstance(action, Scale):
        return scaled(guard.optimizer, action.factor)
    return clipped(guard.optimizer, action.limit) if isinstance(action, ClipUpdate) else None


def _step(guard: Guard) -> None:
    if guard.scaler is not None and guard.scaler.is_enabled():
        guard.scaler.step(guard.optimizer)
        guard.scaler.update()
    else:
        guard.optimizer.step()


def _cut_instead(action: Floor | Refill, chi: float | None, why: str) -> Action:
    """Returns the cut of this step's learning rate that has the same effect on chi."""
    said = f"{action.reason}; {why}"
    if chi is None or not chi > action.kappa:
        return Proceed(step=action.step, reason=said, cause=action.cause)
    return CutLr(factor=action.kappa / chi, step=action.step, reason=f"{said}: cut instead", cause=action.cause)
