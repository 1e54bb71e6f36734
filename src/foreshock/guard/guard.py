"""The guard: decides before each optimizer step whether and how it is taken, and carries that out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch.optim import Optimizer

from foreshock import attach, distributed
from foreshock.detect.gate import Gate
from foreshock.errors import StoppedError, UsageError
from foreshock.guard.carry import Carried, carry
from foreshock.guard.glance import Glance, all_finite
from foreshock.guard.sentry import Sentry
from foreshock.guard.snapshots import Snapshots
from foreshock.guard.softmax import ExactGradient
from foreshock.mishaps import Mishaps
from foreshock.monitor import Monitor
from foreshock.policies import Policy, Sight, default
from foreshock.run.action import Action, CutLr, ExactSoftmax, Proceed, Rollback, Skip, Stop
from foreshock.run.actions import as_note
from foreshock.run.event import Event

STATE_VERSION = 1
SETTLE = 10  # attempts after something suspicious was let pass in which no snapshot is taken: it might hold the damage


OFTEN, SELDOM = 4, 8  # attempts from one look at the norm of the moments, and of the parameters, to the next


DAMAGING = ("nonfinite", "spike", "precursor")  # events whose step, if it is taken, may leave a state nobody wants back


class Data(Protocol):
    """What hands out batches and takes them back: `foreshock.Requeue`."""

    @property
    def current(self) -> tuple[int, ...]: ...
    def tries(self, ids: Sequence[int]) -> int: ...
    def settle(self, outcome: str) -> None: ...


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
    taken as it is.

    Args:
        monitor: what watches the training; entered before the first step.
        policy: what to do about an event, see `foreshock.policies`; None takes `policies.default()`.
        scheduler: a learning rate scheduler, or several: stepped where, and only where, the optimizer stepped.
        scaler: the `torch.amp.GradScaler` that has scaled the loss; unscaled, stepped and updated here.
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
        if not isinstance(monitor, Monitor):
            raise UsageError(f"Guard(monitor): a foreshock.Monitor is needed, got {type(monitor).__name__}")
        if policy is not None and not callable(policy):
            raise UsageError(
                f"Guard(policy=...): a function of events and actions is needed, got {type(policy).__name__}; the "
                "shipped ones are made by calling them, e.g. policies.ling()"
            )
        self.monitor, self.policy = monitor, policy or default()
        self.optimizer: Optimizer = monitor.optimizer
        self.scaler, self.data = scaler, data
        self._schedulers = _several(scheduler, "scheduler", ("step",))
        self._averages = _several(ema, "ema", ("update_parameters", "update"))
        self.snapshots = snapshots if snapshots is not None else Snapshots()
        self.snapshots.attach(monitor.model, self.optimizer, scheduler=scheduler, scaler=scaler, ema=ema, data=data)
        self.gate, self.sentry, self.glance = Gate(), Sentry(monitor), Glance(self.optimizer)
        self.exact: ExactGradient | None = None
        self.stopped = ""
        self._log: list[Action] = []
        self._cut: tuple[float, int] | None = None  # factor of the learning rates, attempts left
        self._refusing = 0  # attempts left that a rollback refuses
        self._uneasy = -SETTLE  # last attempt that was taken although something stood against it
        self._accepted: tuple[str, str, int] | None = None  # cause of the last acceptance, which is logged once
        self._mishaps = Mishaps(monitor.note)
        self._group: distributed.Group | None = None
        self._grouped = False

    @property
    def actions(self) -> tuple[Action, ...]:
        """The interventions so far, oldest first, each with its step and its reason."""
        return tuple(self._log)

    def step(self) -> Action:
        """Takes the optimizer's step, or what the policy decides instead, and returns that.

        `Action.takes_step` says whether the optimizer moved: what a loop does once a step (such as counting) may ask.

        Raises:
            StoppedError: the attempt before was answered with `Stop`.
            UsageError: the monitor is not attached.
        """
        if self.stopped:
            raise StoppedError(f"this training was stopped by its guard: {self.stopped}")
        if not self.monitor._hooks:
            raise UsageError("guard.step() was called while its monitor is not attached: use `with Monitor(...)`.")
        overflow = self._unscale()
        step = self.monitor.step
        action: Action = Proceed(step=step)
        events: tuple[Event, ...] = ()
        with self._mishaps.said("guarding a step", "; it is taken as it is"):
            action, events = self._decide(step, overflow)
        carried = carry(self, action, events)
        action = carried.action
        with self._mishaps.said("what follows a guarded step"):
            self._follow(step, action, events, carried)
        return action

    def _decide(self, step: int, overflow: bool) -> tuple[Action, tuple[Event, ...]]:
        monitor = self.monitor
        monitor.prepare()
        reading = self.sentry.reading()
        group, loss = self._ranks(), monitor.attempt.loss()
        values, sums = self.glance(
            loss, moments=step % OFTEN == 0, weights=step % SELDOM == 0, group=group, beside=self.sentry.say()
        )
        if overflow:  # the scaler's own business, which it has its own remedy for
            values.pop("grad_norm", None)
        bad = [value for name, value in values.items() if name in ("loss", "grad_norm") and value - value != 0.0]
        if bad:
            values["parameters"] = float(all_finite(self._state_of_the_model()))
        ranks = 1 if group is None else distributed.place(group)[1]
        events = (*self.gate.judge(step, values), *self.sentry.events(step, values, sums, reading, ranks))
        if self._refusing > 0:
            self._refusing -= 1
            return Skip(data="drop", step=step, reason="a rollback skips the batches that follow it"), events
        data = self.data
        tries = data.tries(data.current) if data is not None else 0
        sight = Sight(events, step, values, self.snapshots.steps, tries)
        action = self.policy(sight, self.actions)
        if not isinstance(action, Action):
            raise UsageError(f"the policy answered {action!r}; a policy returns an Action, e.g. policies.Proceed()")
        return replace(action, step=step), events

    def _follow(self, step: int, action: Action, events: Sequence[Event], carried: Carried) -> None:
        """Takes note of what was done, and does what depends on whether the optimizer moved."""
        if self.data is not None:
            outcome = action.data if isinstance(action, Skip) else "accepted" if carried.moved else "drop"
            self.data.settle("scaled" if action.kind == "scale_update" else outcome)
        self._write_down(action)
        if isinstance(action, Rollback):
            self.gate.restored()
        elif carried.moved:
            self.gate.took(_suspect(events))
        else:
            self.gate.refused()
        if isinstance(action, ExactSoftmax) and self.exact is None:
            self._make_exact()
        if isinstance(action, CutLr) and action.steps > 1:
            self._cut = action.factor, action.steps - 1
        elif self._cut is not None and carried.moved:
            self._cut = (self._cut[0], self._cut[1] - 1) if self._cut[1] > 1 else None
        if isinstance(action, Rollback):
            self._refusing = action.skip
        if isinstance(action, Stop):
            self.stopped = action.reason or "its policy said so"
        if not carried.moved:
            return
        for scheduler in self._schedulers:
            scheduler.step()
        for average in self._averages:
            average.update_parameters(self.monitor.model) if hasattr(average, "update_parameters") else average.update()
        if any(event.kind in DAMAGING for event in events):
            self._uneasy = step
        if step - self._uneasy >= SETTLE and self.snapshots.due(step + 1):
            self.snapshots.take(step + 1)

    def _write_down(self, action: Action) -> None:
        accepts = isinstance(action, Proceed)
        if accepts and (not action.reason or action.cause == self._accepted):
            return
        self._accepted = action.cause if accepts else None
        self._log.append(action)
        self.monitor.note("action", **as_note(action))

    def _make_exact(self) -> None:
        self.exact = ExactGradient()
        self.monitor.on_loss.append(self.exact.arm)

    def _unscale(self) -> bool:
        """Returns whether the scaler found an overflow."""
        if self.scaler is None or not self.scaler.is_enabled():
            return False
        try:
            self.scaler.unscale_(self.optimizer)
        except RuntimeError as error:
            if "already been called" not in str(error):
                raise
        found = self.scaler._per_optimizer_states[id(self.optimizer)]["found_inf_per_device"].values()
        return any(float(each) > 0.0 for each in found)

    def _ranks(self) -> distributed.Group | None:
        if not self._grouped:
            model = self.monitor.model
            self._group = None if model is None else distributed.group_of(model.modules())
            self._grouped = True
        return self._group

    def _state_of_the_model(self) -> list[Any]:
        model = self.monitor.model
        if model is not None:
            return [*model.parameters(), *model.buffers()]
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed guard needs to go on as if it had not stopped, snapshots included.

        Save it beside the states of model, optimizer, scheduler, monitor and data; it loads with
        `torch.load(weights_only=True)`.
        """
        return {
            "version": STATE_VERSION, "gate": self.gate.state_dict(), "sentry": self.sentry.state_dict(),
            "actions": [action.to_dict() for action in self._log], "stopped": self.stopped,
            "cut": None if self._cut is None else list(self._cut), "refusing": self._refusing,
            "uneasy": self._uneasy, "accepted": None if self._accepted is None else list(self._accepted),
            "exact": self.exact is not None, "snapshots": self.snapshots.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            UsageError: the state is not a guard's, or of a later version.
        """
        attach.check_state(state, "guard", STATE_VERSION)
        self.gate.load_state_dict(state["gate"])
        self.sentry.load_state_dict(state["sentry"])
        self._log = [Action.from_dict(saved) for saved in state["actions"]]
        self.stopped, self._refusing, self._uneasy = state["stopped"], int(state["refusing"]), int(state["uneasy"])
        self._cut = None if state["cut"] is None else (float(state["cut"][0]), int(state["cut"][1]))
        accepted = state["accepted"]
        self._accepted = None if accepted is None else (str(accepted[0]), str(accepted[1]), int(accepted[2]))
        if state["exact"] and self.exact is None:
            self._make_exact()
        self.snapshots.load_state_dict(state["snapshots"])


def _suspect(events: Sequence[Event]) -> str:
    """Returns the signal of what was let pass, where that may have done harm that shows later."""
    return next((each.signal for each in events if each.kind == "precursor"), "")


def _several(given: Any, name: str, methods: Sequence[str]) -> list[Any]:
    """Returns one object or several as a list.

    Raises:
        UsageError: one of them has none of the methods.
    """
    if given is None:
        return []
    if isinstance(given, Mapping):
        given = list(given.values())
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for each in found:
        if not any(hasattr(each, method) for method in methods):
            wanted = " or ".join(f"{method}()" for method in methods)
            raise UsageError(f"Guard({name}=...): an object with {wanted} is needed, got {type(each).__name__}")
    return found
