"""What a probe is: a function from one optimizer step to signals. Probes read, never write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.probes.plan import Plan

Signals = Mapping[str, Tensor | float]
"""Signal name -> value of this step: a number, or a tensor of one element (left on its device)."""

Probe = Callable[["Step"], Signals]
"""A probe. An object may also have `name`, `cost` ("free", the default, or "costly": then it runs every
`Monitor(every=...)` steps and within `max_overhead`), `state_dict()` and `load_state_dict(state)`; or be `Live`, when
what it measures counts as a pass unless its cost is "free"."""


class UnavailableError(Exception):
    """Raised by a probe that cannot measure this training, with the reason: it is left out, with a note in the run."""


@dataclass(slots=True)
class Step:
    """One optimizer step as probes see it: after the update, before gradients are cleared.

    Attributes:
        number: optimizer steps done before this one.
        optimizer: the live optimizer; its state already holds this step's gradient.
        plan: names, sizes and memory layout of the tensors it updates.
        params: the tensors after the step, in the order of `plan.tensors`.
        grads: their gradients as the optimizer consumed them (None where a tensor had none); a fused optimizer under
            a GradScaler has unscaled them by now.
        losses: losses observed for this step, one for each micro-batch; detached.
        batch: whatever was last given to `observe(batch=...)`.
        closure: whatever was last given to `observe(closure=...)`.
        grad_scale: loss scale that a GradScaler left to a fused optimizer; None where there is none.
        found_inf: above 0 where the scaler vetoed the update; None without a scaler in the optimizer.
    """

    number: int
    optimizer: Optimizer
    plan: Plan
    params: list[Tensor]
    grads: list[Tensor | None]
    losses: list[Tensor]
    batch: Any = None
    closure: Callable[..., Any] | None = None
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    cache: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Moment:
    """A step before it is taken, as live probes see it.

    Attributes:
        number: optimizer steps done before this one.
        optimizer: the live optimizer.
        model: the module given to the monitor, if it was one.
        loss: in `observe`, the loss with its graph, before its backward pass; None in `before`.
        place: in `observe`, which of the step's losses it is, from 0.
        weights: of each loss of the step before, what backward multiplied it with: 1 for a plain mean, 1/k in
            gradient accumulation, the scale of a GradScaler; empty at the first step. Left on their device.
        batch, closure: whatever was last given to `observe` for this step.
        every: the monitor's distance between costly readings.
        affordable: whether the passes so far have kept within the monitor's `max_overhead`.
        on_credit: whether they have kept within what may be borrowed from it in danger.
    """

    number: int
    optimizer: Optimizer
    model: Any
    loss: Tensor | None
    place: int
    weights: tuple[Tensor, ...]
    batch: Any
    closure: Callable[..., Any] | None
    every: int
    affordable: bool
    on_credit: bool = False


class Live(Protocol):
    """A probe that looks at a step before it is taken as well. Each method says whether it took a pass of its own.

    It may also have `saw(record)`, told of every finished record, some steps late, and `urgent`, which brings records
    to the detectors at once while it is true. Any probe may have `fits(model)`, which refuses a model that it cannot
    measure with a `UsageError` when the monitor is made.
    """

    def observe(self, moment: Moment) -> bool:
        """Looks at a loss, whose graph it must leave as it is."""
        ...

    def before(self, moment: Moment) -> bool:
        """Looks at the gradients that the optimizer is about to consume, in the parameters' `.grad`."""
        ...

    def heard(self, kind: str, step: int) -> None:
        """Is told of an event that a detector has raised."""
        ...

    def __call__(self, step: Step) -> Signals:
        """Returns what was measured at this step."""
        ...


def name_of(probe: object) -> str:
    """Returns the name that reports and warnings use for a probe."""
    return str(getattr(probe, "name", None) or getattr(probe, "__name__", None) or type(probe).__name__)


class Every:
    """Runs a probe at every n-th step; see `every`."""

    def __init__(self, n: int, probe: Any) -> None:
        self.n, self.probe = n, probe
        self.name = f"every({n}, {name_of(probe)})"
        self.cost = str(getattr(probe, "cost", "free"))

    def due(self, number: int) -> bool:
        """Returns whether the probe measures at this step."""
        return number % self.n == 0

    def __call__(self, step: Step) -> Signals:
        return self.probe(step) if self.due(step.number) else {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.probe.state_dict()) if hasattr(self.probe, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if hasattr(self.probe, "load_state_dict"):
            self.probe.load_state_dict(state)


def every(n: int, probe: Any) -> Every:
    """Returns a probe that measures at steps 0, n, 2n, ... and nothing in between.

    Args:
        n: steps from one measurement to the next.
        probe: a function from `Step` to signals, or one of the probes of `foreshock.probes`.

    Raises:
        UsageError: n is not a positive integer, or `probe` is not a probe.

    >>> every(10, lambda step: {"mine": 1.0}).name
    'every(10, <lambda>)'
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UsageError(f"every(n, probe): n must be a positive integer, got {n!r}")
    if isinstance(probe, type):
        probe = probe()
    if hasattr(probe, "observe"):
        kind = type(probe).__name__
        raise UsageError(f"every(n, probe): a {kind} keeps a schedule of its own; give it {kind}(every=n)")
    if not callable(probe) and not hasattr(probe, "visit"):
        raise UsageError(f"every(n, probe): probe must be a function of a Step, got {type(probe).__name__}")
    return Every(n, probe)
