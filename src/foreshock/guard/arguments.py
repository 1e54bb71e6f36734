"""What a guard is made of, held against what it can work with before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from foreshock.errors import UsageError
from foreshock.guard.snapshots import Snapshots
from foreshock.monitor import Monitor
from foreshock.policies import Policy, Sight
from foreshock.run.action import Action


@runtime_checkable
class Data(Protocol):
    """What hands out batches and takes them back: `foreshock.Requeue`."""

    @property
    def current(self) -> tuple[int, ...]: ...
    def tries(self, ids: Sequence[int]) -> int: ...
    def settle(self, outcome: str) -> None: ...


CALM = MappingProxyType(dict.fromkeys(("loss", "grad_norm", "lr", "moments", "weights", "steps", "tensors"), 1.0))
"""What is known of a step that a policy may be asked about before there is one."""


def checked(monitor: Any, policy: Any, data: Any, snapshots: Any) -> None:
    """Raises a UsageError that names the argument of a guard that cannot work; policies are asked about a calm step."""
    if not isinstance(monitor, Monitor):
        raise UsageError(f"Guard(monitor): a foreshock.Monitor is needed, got {type(monitor).__name__}")
    if policy is not None and not callable(policy):
        raise UsageError(
            f"Guard(policy=...): a function of events and actions is needed, got {type(policy).__name__}; the "
            "shipped ones are made by calling them, e.g. policies.ling()"
        )
    for name, given, kinds in (("snapshots", snapshots, Snapshots), ("data", data, Data)):
        if given is not None and not isinstance(given, kinds):
            wanted = "foreshock.Snapshots" if name == "snapshots" else "foreshock.Requeue"
            raise UsageError(f"Guard({name}=...): a {wanted} is needed, got {type(given).__name__}")
    if policy is not None:
        _ask(policy)


def _ask(policy: Policy) -> None:
    """Refuses a policy that is wrong from its first call: it is asked about a calm step."""
    try:
        answer: Any = policy(Sight((), 0, CALM), ())
    except Exception as error:
        raise UsageError(
            f"Guard(policy=...): it was asked about a step with nothing against it and raised {type(error).__name__}: "
            f"{error}. A policy takes (events, actions); the shipped ones are made by calling "
            "them, e.g. policies.ling()"
        ) from error
    if not isinstance(answer, Action):
        raise UsageError(
            f"Guard(policy=...): it answered {answer!r} to a step with nothing against it; a policy returns an Action, "
            "e.g. policies.Proceed()"
        )
