"""What moves where, and only where, the optimizer moves: schedulers of learning rates, averages of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import attach
from foreshock.errors import UsageError


class Along:
    """The schedulers and averages of a training.

    Args:
        scheduler: one, or several.
        ema: one, or several.
        model: whose weights are averaged.
        optimizer: whose learning rates are scheduled.

    Raises:
        UsageError: one of them is something else, or there is no model to average.
    """

    def __init__(self, scheduler: Any, ema: Any, model: nn.Module | None, optimizer: Optimizer) -> None:
        self.schedulers = _several(scheduler, "scheduler", ("step",))
        for each in self.schedulers:
            other = each if isinstance(each, Optimizer) else getattr(each, "optimizer", optimizer)
            if isinstance(each, Optimizer) or attach.innermost(other) is not optimizer:
                what = f"the optimizer {type(each).__name__}" if other is each else "the scheduler of another optimizer"
                raise UsageError(f"Guard(scheduler=...): a scheduler of the monitor's optimizer is needed, got {what}")
        self._optimizer = optimizer
        self._stepped = [each for each in self.schedulers if not _needs_metric(each)]
        self._averages = _several(ema, "ema", ("update_parameters", "update"))
        self._model = model
        if model is None and any(hasattr(each, "update_parameters") for each in self._averages):
            raise UsageError("Guard(ema=...): update_parameters(model) needs the model: give it to the Monitor")

    def meant(self) -> bool:
        """Returns whether the learning rates are those that a scheduler has set."""
        rates = [group.get("lr", 0.0) for group in self._optimizer.param_groups] if self.schedulers else []
        if not rates or any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
            return False  # what is on a device is not worth waiting for
        rates = [float(rate) for rate in rates]
        set_by = (getattr(each, "_last_lr", None) for each in self.schedulers)
        return any(known is not None and [float(rate) for rate in known] == rates for known in set_by)

    def step(self) -> None:
        """Steps the schedulers, but those that need a metric, and updates the averages."""
        for scheduler in self._stepped:
            scheduler.step()
        for average in self._averages:
            average.update_parameters(self._model) if hasattr(average, "update_parameters") else average.update()


def _needs_metric(scheduler: Any) -> bool:
    """Returns whether a scheduler's step asks for something that only the loop knows, as ReduceLROnPlateau's does."""
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.kind in kinds and each.default is inspect.Parameter.empty for each in parameters)


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
