"""The guard: decides before each optimizer step whether and how it is taken, and carries that out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from foreshock import attach, distributed
from foreshock.curvature import Edge
from foreshock.detect.gate import Gate
from foreshock.errors import StoppedError, UsageError
from foreshock.guard.agreement import anywhere, common, mark, same
from foreshock.guard.along import Along
from foreshock.guard.arguments import Data, checked
from foreshock.guard.carry import Carried, carry, plainly
from foreshock.guard.glance import Glance, all_finite
from foreshock.guard.hooked import Hooked
from foreshock.guard.scaling import Scaling
from foreshock.guard.sentry import Sentry
from foreshock.guard.snapshots import Snapshots
from foreshock.guard.softmax import ExactGradient
from foreshock.guard.statistics import Statistics
from foreshock.mishaps import Mishaps
from foreshock.monitor import Monitor
from foreshock.policies import Policy, Sight, default
from foreshock.run.action import Action, ClipUpdate, CutLr, ExactSoftmax, Floor, Proceed, Rollback, Skip, Stop
from foreshock.run.actions import as_note
from foreshock.run.event import Event

STATE_VERSION = 1
SETTLE = 10  # attempts after something suspicious was let pass in which no snapshot is taken: it might hold the damage


OFTEN, SELDOM = 4, 8  # attempts from one look at the norm of the moments, and of the parameters, to the next


DAMAGING = ("nonfinite", "spike", "precursor")  # events whose step, if it is taken, may leave a state nobody wants back


class Guard:
    """Takes the optimizer's steps in its place, and does otherwise where that would spoil the training::

        with fs.Monitor(model, optimizer, run="runs/a") as monitor:
            guard = fs.Guard(monitor, scheduler=scheduler)
            for x, y in loader:
                loss = loss_fn(model(x), y)
                monitor.observe(loss)
                loss.backward()
                guard.step()               # in place of optimizer.step() and scheduler.step()
                optimizer.zero_grad()

    While nothing stands against a step it is bit for bit what it would have been. A step costs one transfer of a few
    numbers from the device. A failure inside the guard or the policy is a single `ForeshockWarning`, and the step is
    taken as it is. Loops that call `optimizer.step()` themselves and cannot be changed are guarded by `attach()`.

    Args:
        monitor: what watches the training; entered before the first step.
        policy: what to do about an event, see `foreshock.policies`; None takes `policies.default()`.
        scheduler: a learning rate scheduler, or several: stepped where, and only where, the optimizer stepped, and put
            back by a rollback. One whose step needs a metric (`ReduceLROnPlateau`) is put back, and stepped by the
            loop, which knows the metric. Without one, a rollback leaves learning rates as they are.
        scaler: the `torch.amp.GradScaler` that has scaled the loss; unscaled, stepped and updated here. The loop may
            have called `scaler.unscale_(optimizer)` to clip gradients.
        ema: averaged weights, with `update_parameters(model)` (as `torch.optim.swa_utils.AveragedModel`) or
            `update()`; updated where the optimizer stepped.
        data: the `Requeue` that hands out the batches, for those that are to come again or never.
        snapshots: states to go back to; None keeps up to six in host memory. Snapshots(...) sets distance and bounds.

    Attributes:
        stopped: why the policy has stopped the training; empty if it has not.

    Raises:
        UsageError: an argument that cannot work.
    """

    def __init__(
        self,
        monitor: Monitor,
        policy: Policy | None = None,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        data: Data | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        checked(monitor, policy, data, snapshots)
        self.monitor, self.policy = monitor, policy or default()
        self.optimizer: Optimizer = monitor.optimizer
        self.scaler, self.data = scaler, data
        self.along = Along(scheduler, ema, monitor.model, self.optimizer)
        self.snapshots = snapshots if snapshots is not None else Snapshots()
        self.snapshots.attach(monitor.model, self.optimizer, scheduler=scheduler, scaler=scaler, ema=ema, data=data)
        self.gate, self.sentry, self.glance = Gate(), Sentry(monitor), Glance(self.optimizer)
        self.statistics = Statistics(monitor.model)
        self.statistics.keep(early=True)
        self.exact: ExactGradient | None = None
        self.stopped = ""
        self._log: tuple[Action, ...] = ()  # shown to the policy at every step, added to seldom
        self.cut: tuple[float, int] | None = None  # factor of the learning rates, attempts left
        self._refusing = 0  # attempts left that a rollback refuses
        self._uneasy = -SETTLE  # last attempt that was taken although something stood against it
        self._accepted: tuple[str, str, int] | None = None  # cause of the last acceptance, which is logged once
        self._mishaps = Mishaps(monitor.note)
        self._group: distributed.Group | None = None
        self._grouped = False
        self.offered: tuple[int, ...] = ()  # steps of the snapshots that there are on every rank
        self.hooked: Hooked | None = None
        self._going = False  # whether steps were guarded since the guard was made or its state was loaded
        self.optimizer.register_load_state_dict_post_hook(self._loaded)

    @property
    def actions(self) -> tuple[Action, ...]:
        """The interventions so far, oldest first, each with its step and its reason."""
        return self._log

    def step(self) -> Action:
        """Takes the optimizer's step, or what the policy decides instead, and returns that.

        `Action.takes_step` says whether the optimizer moved: what a loop does once a step (such as counting) may ask.

        Raises:
            StoppedError: the attempt before was answered with `Stop`.
            UsageError: the monitor is not attached.
        """
        if self.hooked is not None:
            raise UsageError("guard.step() was called while the guard is attached: call optimizer.step(), or remove it")
        if self.monitor._process == attach.ASLEEP:  # the loop's own step is taken again, by a replay
            return plainly(self, self._unscale())
        self._must_go_on("guard.step()")
        scaling = self._unscale()
        step = self.monitor.step
        action, events, overflow = self._judged(step, scaling)
        carried = carry(self, action, events, overflow)
        self._follow(step, carried, events, overflow)
        if overflow and carried.action.takes_step:
            return Skip(data="drop", step=step, reason="the scaler found an overflow and skips the step")
        return carried.action

    def attach(self) -> Hooked:
        """Guards the steps that others take: in loops that call `optimizer.step()` themselves and cannot be changed.

        ::

            with fs.Monitor(model, optimizer) as monitor, fs.Guard(monitor).attach():
                trainer.train()

        Each call of `optimizer.step()` is judged in its hooks then, instead of by `guard.step()`. The whole batch is
        observed as ever, with `monitor.observe(loss)` before backward. What is different:

        * A step is refused by hiding the gradients from the optimizer while it is called. An optimizer that moves all
          the same is refused here.
        * Schedulers, averaged weights and the scaler are the loop's own, which steps them as it always does. Those
          that were given to the guard are put back by a rollback, and left alone otherwise.
        * A `GradScaler` skips what is not finite before the guard hears of it, and lowers its scale.
        * Of an optimizer that is given a closure, as Lightning does, the step is judged when the closure has run.

        Returns:
            Detaches at the end of a `with`, or by `remove()`.

        Raises:
            UsageError: it is attached already, or the optimizer's step cannot be skipped by dropping gradients.
        """
        if self.hooked is not None:
            raise UsageError("guard.attach() was called on a guard that is attached")
        self.hooked = Hooked(self)
        return self.hooked

    def _must_go_on(self, call: str) -> None:
        if self.stopped:
            raise StoppedError(f"this training was stopped by its guard: {self.stopped}")
        if not self.monitor._hooks:
            raise UsageError(f"{call} was called while its monitor is not attached: use `with Monitor(...)`.")

    def _judged(self, step: int, scaling: Scaling) -> tuple[Action, tuple[Event, ...], bool]:
        """Returns what is to be done, what it was decided by, and whether the scaler refuses the step of itself."""
        with self._mishaps.said("guarding a step", "; it is taken as it is"):
            return self._decide(step, scaling)
        return Proceed(step=step), (), scaling.overflow()

    def _decide(self, step: int, scaling: Scaling) -> tuple[Action, tuple[Event, ...], bool]:
        self.monitor.prepare()
        values, sums, reading, ranks, tries = self._look(step)
        scaling.unscale(values)
        overflow = values.get("grad_norm", 0.0) - values.get("grad_norm", 0.0) != 0.0 and scaling.overflow()
        if overflow:  # the scaler's own business, which it has its own remedy for
            values.pop("grad_norm")
        bad = [value for name, value in values.items() if name in ("loss", "grad_norm") and value - value != 0.0]
        if bad:
            values["parameters"] = float(self._sound())
        values |= self.monitor.attempt.marks
        if self.along.meant():
            values["lr_meant"] = 1.0
        self._going = True
        events = (*self.gate.judge(step, values), *self.sentry.events(step, values, sums, reading, ranks))
        if not (self.snapshots.steps or bad or events) and self.snapshots.due(step):
            self.snapshots.take(step)  # the first one: so that there is a state to go back to from the first update on
        if self._refusing > 0:
            self._refusing -= 1
            reason = "a rollback skips the batches that follow it"
            return Skip(data="drop", step=step, reason=reason), events, overflow
        action = self.policy(Sight(events, step, values, self.offered, tries), self.actions)
        if not isinstance(action, Action):
            raise UsageError(f"the policy answered {action!r}; a policy returns an Action, e.g. policies.Proceed()")
        return replace(action, step=step), events, overflow

    def _look(self, step: int) -> tuple[dict[str, float], tuple[float, ...], Edge | None, int, int]:
        """Returns what is known of the attempt, the same on every rank."""
        group, reading, say = self._ranks(), self.sentry.reading(), self.sentry.say()
        steps, data = self.snapshots.steps, self.data
        tries = data.tries(data.current) if data is not None else 0
        beside: tuple[float, ...] = say
        if group is not None:
            beside = (*say, float(tries), *mark(steps), *mark(reading and (reading.chi, reading.mode_loss)))
        values, sums = self.glance(
            self.monitor.attempt.loss(), moments=step % OFTEN == 0, weights=step % SELDOM == 0, group=group,
            beside=beside,
        )  # fmt: skip
        self.offered = steps
        if group is None:
            return values, sums, reading, 1, tries
        ranks = distributed.place(group)[1]
        tried, *marks = sums[len(say) :]
        if not same(marks[0], marks[1], ranks):
            self.offered = common(steps, group, self._device())
        if not same(marks[2], marks[3], ranks):  # each rank's own, by which they would part
            reading = None
        return values, sums, reading, ranks, math.ceil(tried / ranks)

    def _sound(self) -> bool:
        """Returns whether what a refusal of this attempt would leave is finite, on every rank."""
        model, group = self.monitor.model, self._ranks()
        groups = self.optimizer.param_groups
        params = [param for each in groups for param in each["params"]] if model is None else [*model.parameters()]
        sound = all_finite([*params, *self.statistics.sound()])
        return sound if group is None else not anywhere(not sound, group, self._device())

    def _device(self) -> torch.device:
        device: torch.device = self.optimizer.param_groups[0]["params"][0].device
        return device

    def _follow(self, step: int, carried: Carried, events: Sequence[Event], overflow: bool) -> None:
        """Takes note of what was done, and does what depends on whether the optimizer moved."""
        overflow = overflow and carried.action.takes_step  # what the guard refuses is not the scaler's any more
        if not (carried.moved or overflow):
            with self._mishaps.said("putting statistics back"):
                self.statistics.put_back()
        with self._mishaps.said("taking note of a guarded step"):
            self._remember(carried.action, events, carried.moved, overflow)
        if carried.moved and self.hooked is None:
            with self._mishaps.said("stepping what follows the optimizer"):
                self.along.step()
        with self._mishaps.said("keeping the state of a training"):
            self._keep(step, carried.moved, overflow, events)

    def _remember(self, action: Action, events: Sequence[Event], moved: bool, overflow: bool) -> None:
        if self.data is not None:
            outcome = action.data if isinstance(action, Skip) else "accepted" if moved else "drop"
            self.data.settle("scaled" if action.kind == "scale_update" else outcome)
        self._write_down(action)
        if isinstance(action, Rollback):
            self.gate.restored()
        elif moved:
            self.gate.took(_suspect(events))
        elif not overflow:
            self.gate.refused()
        if isinstance(action, ExactSoftmax) and self.exact is None:
            self._make_exact()
        if isinstance(action, CutLr) and action.steps > 1:
            self.cut = action.factor, action.steps - 1
        elif self.cut is not None and moved:
            self.cut = (self.cut[0], self.cut[1] - 1) if self.cut[1] > 1 else None
        if isinstance(action, Rollback):
            self._refusing = action.skip
        if isinstance(action, Stop):
            self.stopped = action.reason or "its policy said so"

    def _keep(self, step: int, moved: bool, overflow: bool, events: Sequence[Event]) -> None:
        if moved or overflow:
            self.statistics.keep()
        if not moved:
            return
        if any(event.kind in DAMAGING for event in events):
            self._uneasy = step
        if step - self._uneasy >= SETTLE and self.snapshots.due(step + 1):
            self.snapshots.take(step + 1)

    def _write_down(self, action: Action) -> None:
        accepts = isinstance(action, Proceed)
        if accepts and (not action.reason or (action.cause is not None and action.cause == self._accepted)):
            return
        standing = isinstance(action, (ClipUpdate, Floor)) and action.cause is None  # a bound, held at every step
        if standing and self._log and replace(self._log[-1], step=action.step) == action:
            return
        self._accepted = action.cause if accepts else None
        self._log = (*self._log, action)
        self.monitor.note("action", **as_note(action))

    def _loaded(self, _: Optimizer) -> None:
        """Takes note that the loop has loaded a state of its own, whose moments are no fault."""
        if self._going:
            self.gate.forget()

    def _make_exact(self) -> None:
        self.exact = ExactGradient()
        self.monitor.on_loss.append(self.exact.arm)

    def _unscale(self) -> Scaling:
        """Takes the loss scale out of the gradients, unless the loop has done so."""
        scaler = self.scaler
        if scaler is None or not scaler.is_enabled():
            return Scaling(self.optimizer)
        try:
            scaler.unscale_(self.optimizer)
        except RuntimeError as error:
            if "already been called" not in str(error):
                raise
        return Scaling(self.optimizer, scaler._per_optimizer_states[id(self.optimizer)]["found_inf_per_device"])

    def _ranks(self) -> distributed.Group | None:
        if not self._grouped:
            model = self.monitor.model
            self._group = None if model is None else distributed.group_of(model.modules())
            self._grouped = True
            if self._group is None and distributed.running():
                self._mishaps.say("ranks", "there are several ranks, and the monitor was given a model that is neither "
                                  "a DistributedDataParallel nor sharded, so each rank's guard decides for itself. If "
                                  "they train one model together, give the wrapped one to the Monitor.")
        return self._group

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed guard needs to go on as if it had not stopped, snapshots included.

        Save it beside the states of model, optimizer, scheduler, monitor and data; it loads with
        `torch.load(weights_only=True)`.
        """
        return {
            "version": STATE_VERSION, "gate": self.gate.state_dict(), "sentry": self.sentry.state_dict(),
            "actions": [action.to_dict() for action in self._log], "stopped": self.stopped,
            "cut": None if self.cut is None else list(self.cut), "refusing": self._refusing,
            "uneasy": self._uneasy, "accepted": None if self._accepted is None else list(self._accepted),
            "exact": self.exact is not None, "snapshots": self.snapshots.state_dict(),
            "statistics": self.statistics.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            UsageError: the state is not a guard's, or of a later version.
        """
        attach.check_state(state, "guard", STATE_VERSION)
        self._going = False
        self.gate.load_state_dict(state["gate"])
        self.sentry.load_state_dict(state["sentry"])
        self._log = tuple(Action.from_dict(saved) for saved in state["actions"])
        self.stopped, self._refusing, self._uneasy = state["stopped"], int(state["refusing"]), int(state["uneasy"])
        self.cut = None if state["cut"] is None else (float(state["cut"][0]), int(state["cut"][1]))
        accepted = state["accepted"]
        self._accepted = None if accepted is None else (str(accepted[0]), str(accepted[1]), int(accepted[2]))
        if state["exact"] and self.exact is None:
            self._make_exact()
        self.snapshots.load_state_dict(state["snapshots"])
        self.statistics.load_state_dict(state["statistics"])


def _suspect(events: Sequence[Event]) -> str:
    """Returns the signal of what was let pass, where that may have done harm that shows later."""
    return next((each.signal for each in events if each.kind == "precursor"), "")
