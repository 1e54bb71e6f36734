"""One training of the edge-of-stability experiments: steps an optimizer and reads its edge every so often."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature import Edge, EdgeTracker, EigResult, Hessian, eigsh
from foreshock.papers.digits import SAMPLES, digits
from foreshock.run import Run, absent
from foreshock.threads import one_thread

__all__ = ["Configuration", "Reading", "Trace", "train"]

EVERY = 25  # steps between readings
RAW_EVERY = 4  # readings between those that take lambda_max(H) besides
# Of eigenvalues, relative. Measured against 1e-5 on four trainings, seeds 0 to 3: readings within .2 %, settled values
# the same to four digits, for three quarters of the products. The tracker's own 2e-2 takes two fifths, but of crowded
# values it takes a lower one: single readings are up to 5 % low, and what settles up to .9 %.
TOL = 1e-3
NEAR = 0.95  # chi from which on a training counts as arrived at the edge

Build = Callable[[Iterable[Tensor]], Optimizer]
Live = Callable[[int, float, float], None]
"""Called at each reading as (step, loss, chi)."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is trained, and for how long.

    Attributes:
        name: for --only and the run's directory.
        title: for tables and figures.
        build: parameters -> optimizer.
        steps: optimizer steps.
        batch: samples per step, drawn without replacement, epoch by epoch; None for all 500.
        zero_buffers: start SGD's momentum buffers at zero, where torch starts them at the first gradient.
    """

    name: str
    title: str
    build: Build
    steps: int = 1500
    batch: int | None = None
    zero_buffers: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The edge at one step, for the step about to be taken, of the loss over all samples.

    Attributes:
        step: steps taken before.
        chi: lambda_max(W^1/2 H W^1/2).
        threshold: on S; S itself is chi * threshold.
        raw: lambda_max(H), NaN where it was not taken.
        products: Hessian products used.
        converged: whether the solver is content with them.
    """

    step: int
    chi: float
    threshold: float
    raw: float
    products: int
    converged: bool

    @property
    def sharpness(self) -> float:
        """Returns S = lambda_max(P^-1 H)."""
        return self.chi * self.threshold


@dataclass(slots=True)
class Trace:
    """What one training gave: the loss of every step, the readings, and the step whose loss was not finite, if any."""

    configuration: Configuration
    seed: int
    losses: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    diverged: int | None = None
    seconds: float = 0.0

    def settled(self, value: Callable[[Reading], float] = lambda reading: reading.chi) -> float:
        """Returns the median of a value over the readings of the second half, NaN after a divergence."""
        tail = [value(each) for each in self.readings if 2 * each.step >= len(self.losses)]
        known = [each for each in tail if not math.isnan(each)]
        return math.nan if self.diverged is not None or not known else float(np.median(known))

    @property
    def arrival(self) -> int | None:
        """Returns the first step with chi > .95 after the start, where second moments are unsettled (steps 0 to 24)."""
        return next((each.step for each in self.readings if each.chi > NEAR and each.step >= EVERY), None)

    def to_run(self) -> Run:
        """Returns the training as a run: the loss at every step, the rest where it was read."""
        columns: dict[str, np.ndarray] = {"loss": np.array(self.losses)}
        at = [each.step for each in self.readings]
        for name in ("chi", "sharpness", "threshold", "raw"):
            columns[name] = absent(len(self.losses))
            columns[name][at] = [getattr(each, name) for each in self.readings]
        return Run.from_arrays(
            columns, name=f"{self.configuration.title}, seed {self.seed}", paper="edge-of-stability",
            configuration=self.configuration.name, seed=self.seed,
        )


def train(
    configuration: Configuration, seed: int, *, steps: int | None = None, every: int = EVERY, live: Live | None = None
) -> Trace:
    """Returns the trace of one training on the digits, in float32 on one thread.

    Args:
        configuration: what to train.
        seed: of the initialisation, and of the order of the batches.
        steps: in place of the configuration's own number.
        every: steps between readings.
        live: told of each reading.
    """
    problem = digits(seed)
    optimizer = configuration.build(problem.model.parameters())
    if configuration.zero_buffers:
        for param in problem.model.parameters():
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    trace, started = Trace(configuration, seed), time.perf_counter()
    tracker = EdgeTracker(optimizer, problem.loss, every=every, tol=TOL)
    plain: EigResult | None = None
    rows = _batches(configuration.batch, seed)
    with one_thread():
        for step in range(configuration.steps if steps is None else steps):
            loss = problem.loss(next(rows))
            trace.losses.append(loss.item())
            if not math.isfinite(trace.losses[-1]):
                trace.diverged = step
                break
            found = tracker.step()
            if found is not None:
                raw = len(trace.readings) % RAW_EVERY == 0
                if raw:
                    plain = eigsh(Hessian(problem.loss(), list(problem.model.parameters())), tol=TOL, warm_start=plain)
                trace.readings.append(_reading(step, found, plain if raw else None))
                if live is not None:
                    live(step, trace.losses[-1], trace.readings[-1].chi)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    trace.seconds = time.perf_counter() - started
    return trace


def _reading(step: int, found: Edge, plain: EigResult | None) -> Reading:
    """Returns a reading of the edge, with lambda_max(H) where it was taken."""
    raw, products = (math.nan, 0) if plain is None else (float(plain.values[0]), plain.matvecs)
    return Reading(step, found.chi, found.threshold, raw, found.matvecs + products, found.converged)


def _batches(size: int | None, seed: int) -> Iterator[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        if size is None:
            yield None
        else:
            order = torch.randperm(SAMPLES, generator=generator)
            for start in range(0, SAMPLES - size + 1, size):
                yield order[start : start + size]
