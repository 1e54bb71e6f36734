"""Measures how long a step takes at each batch size, on the training as it stands, and leaves no trace in it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.batch_size.times import MEDIAN, StepTimes, step_times
from foreshock.batch_size.unchanged import unchanged
from foreshock.errors import UsageError
from foreshock.stats import MAD_TO_SIGMA

__all__ = ["measure_step_times", "training_step"]

ROUNDS, WARM = 7, 2  # timings of each size, of which the median counts, after as many steps that do not
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")


def training_step(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], optimizer: Optimizer
) -> Callable[[Any], None]:
    """Returns a plain step on a batch: loss(model, batch), backward, optimizer step, gradients cleared."""

    def step(batch: Any) -> None:
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_step_times(
    step: Callable[[Any], object],
    batches: Mapping[int, Any] | Iterable[int],
    *,
    models: nn.Module | Iterable[nn.Module] = (),
    optimizers: Optimizer | Iterable[Optimizer] = (),
    others: Iterable[Any] = (),
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> StepTimes:
    """Returns the median seconds of a step at each batch size.

    Sizes take turns, so that what else the machine does meets all of them alike; two steps of each warm up. A size
    that runs out of memory is infeasible, and so is every larger one, which is not tried. Afterwards everything is
    put back bit for bit, random streams included (see `unchanged`): a training that was measured in between is the
    one that was not.

    Args:
        step: takes one optimizer step on what `batches` holds for a size; or on a size, where those are only numbers.
            `training_step` makes one of a model, a loss and an optimizer.
        batches: batch size -> batch; or sizes.
        models, optimizers, others: what steps change: modules, optimizers, and whatever else has a `state_dict`.
        rounds: timings of each size.
        clock: returns seconds.

    Raises:
        UsageError: no size, or none that fits into memory. What `step` raises beside memory errors is passed on,
            after everything was put back.
    """
    given = dict(batches) if isinstance(batches, Mapping) else {size: size for size in batches}
    if not given or rounds < 1:
        raise UsageError(
            f"measure_step_times: at least one batch size and one round are needed, got {list(given)} and {rounds}"
        )
    sizes, seconds = sorted(given), dict[int, list[float]]()
    held = [models] if isinstance(models, nn.Module) else list(models)
    owners = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    devices = {param.device for owner in owners for group in owner.param_groups for param in group["params"]}
    devices |= {param.device for model in held for param in model.parameters()}
    too_large: int | None = None
    with unchanged(held, owners, others):
        for turn in range(-WARM, rounds):
            for size in sizes:
                if too_large is not None and size >= too_large:
                    break
                took = _timed(step, given[size], devices, clock)
                if took is None:
                    too_large = size
                    for owner in owners:
                        owner.zero_grad()
                elif turn >= 0:
                    seconds.setdefault(size, []).append(took)
    table: dict[int, float | None] = {
        size: statistics.median(seconds[size]) if size in seconds and (too_large is None or size < too_large) else None
        for size in sizes
    }
    if all(value is None for value in table.values()):
        raise UsageError(f"measure_step_times: none of the sizes fits into memory; the least tried was {sizes[0]}")
    spread = {size: _spread(seconds[size]) for size, value in table.items() if value is not None}
    return step_times(table, spread=spread)


def _timed(
    step: Callable[[Any], object], batch: Any, devices: set[torch.device], clock: Callable[[], float]
) -> float | None:
    """Returns the seconds of a step, None where memory ran out."""
    try:
        _wait(devices)
        begun = clock()
        step(batch)
        _wait(devices)
        return clock() - begun
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in OUT_OF_MEMORY):
            raise
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return None


def _wait(devices: set[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _spread(times: list[float]) -> float:
    middle = statistics.median(times)
    off = statistics.median(abs(value - middle) for value in times)
    return MEDIAN * MAD_TO_SIGMA * off / middle / len(times) ** 0.5 if middle > 0 else 0.0
