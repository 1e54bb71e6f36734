"""What a guard can do with an optimizer step: frozen values that say what and why, and hold no way of doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from foreshock.errors import UsageError

Cause = tuple[str, str, int]
"""The `Event.key` of what an action answers to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An answer to one attempt of an optimizer step.

    Attributes:
        step: the attempt's number; filled in by the guard, -1 before.
        reason: why, in one sentence with its numbers.
        cause: key of the event that it answers to.
        kind: name of the action, which `what_if` arms share.
        takes_step: whether the optimizer moves at this attempt.
    """

    kind: ClassVar[str] = ""
    takes_step: ClassVar[bool] = True

    step: int = -1
    reason: str = ""
    cause: Cause | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values, for JSON, with the kind."""
        cause = None if self.cause is None else list(self.cause)
        return {"kind": self.kind} | {each.name: getattr(self, each.name) for each in fields(self)} | {"cause": cause}

    @staticmethod
    def from_dict(saved: Mapping[str, Any]) -> Action:
        """Returns the action that `to_dict` described; fields of later versions are ignored.

        Raises:
            UsageError: its kind is none of `KINDS`.

        >>> Action.from_dict(Skip(data="drop", step=7, reason="why not").to_dict())
        Skip(step=7, reason='why not', cause=None, data='drop')
        """
        kind = KINDS.get(str(saved.get("kind")))
        if kind is None:
            raise UsageError(f"no action is called {saved.get('kind')!r}; there are {', '.join(KINDS)}")
        known = {each.name: saved[each.name] for each in fields(kind) if each.name in saved}
        if known.get("cause") is not None:
            name, signal, raised = known["cause"]
            known["cause"] = (str(name), str(signal), int(raised))
        return kind(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proceed(Action):
    """Takes the step as the optimizer would; with a reason it is an acceptance, which is logged."""

    kind: ClassVar[str] = "proceed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip(Action):
    """Does not take the step: parameters, moments, scheduler and averages stay as they are, bit for bit.

    Attributes:
        data: what becomes of the batch where a `Requeue` hands them out: it comes again at a random later place
            ("requeue") or at once ("retry"), or never ("quarantine", which is remembered, and "drop").
    """

    kind: ClassVar[str] = "skip"
    takes_step: ClassVar[bool] = False

    data: Literal["requeue", "retry", "quarantine", "drop"] = "requeue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Action):
    """Takes the step, and only `factor` of the way: the update is scaled, not the gradient."""

    kind: ClassVar[str] = "scale_update"

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipUpdate(Action):
    """Takes the step, and scales the update of each tensor whose root mean square is above `limit` learning rates."""

    kind: ClassVar[str] = "clip_update"

    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor(Action):
    """Takes the step with denominators raised to the floor that brings chi to `kappa`."""

    kind: ClassVar[str] = "floor"

    kappa: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill(Action):
    """Takes the step with second moments refilled along the unstable direction, as a spike would, to chi = `kappa`."""

    kind: ClassVar[str] = "refill"

    kappa: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLr(Action):
    """Takes this and the next `steps - 1` steps with learning rates multiplied by `factor`, then returns to theirs."""

    kind: ClassVar[str] = "cut_lr"

    factor: float
    steps: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairMoments(Action):
    """Takes the step with the optimizer's state put right before it: that of the last snapshot, or none at all."""

    kind: ClassVar[str] = "repair_moments"

    how: Literal["restore", "reset"] = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback(Action):
    """Goes back to the newest snapshot taken at or before step `before`; the batches since then are not seen again.

    Attributes:
        before: the step at which the cause may have begun to act.
        skip: further attempts that are refused afterwards, whatever they are.
    """

    kind: ClassVar[str] = "rollback"
    takes_step: ClassVar[bool] = False

    before: int
    skip: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactSoftmax(Action):
    """Takes the step, and repairs the gradient of the loss's softmax from the next one on."""

    kind: ClassVar[str] = "exact_softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Action):
    """Does not take the step, and says that the training should end; the attempt after it raises `StoppedError`."""

    kind: ClassVar[str] = "stop"
    takes_step: ClassVar[bool] = False


KINDS: Mapping[str, type[Action]] = {
    each.kind: each
    for each in (
        Proceed, Skip, Scale, ClipUpdate, Floor, Refill, CutLr, RepairMoments, Rollback, ExactSoftmax, Stop,
    )
}  # fmt: skip
"""The actions by their names."""
