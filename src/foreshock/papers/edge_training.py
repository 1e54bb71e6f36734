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

from foreshock.curvature import EigResult, Hessian, eigsh
from foreshock.papers.digits import SAMPLES, Digits, digits, one_thread
from foreshock.run import Run, absent
from foreshock.stability import edge_weights

__all__ = ["Configuration", "Reading", "Trace", "train"]

EVERY = 25  # steps between readings
RAW_EVERY = 4  # readings between those that take lambda_max(H) besides
TOL = 1e-5  # of eigenvalues: at the edge they crowd, and a loose reading may end on a neighbour a few percent below
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
    tracker = _Tracker(problem, optimizer)
    rows = _batches(configuration.batch, seed)
    with one_thread():
        for step in range(configuration.steps if steps is None else steps):
            loss = problem.loss(next(rows))
            trace.losses.append(loss.item())
            if not math.isfinite(trace.losses[-1]):
                trace.diverged = step
                break
            if step % every == 0:
                trace.readings.append(tracker.read(step, raw=step % (RAW_EVERY * every) == 0))
                if live is not None:
                    live(step, trace.losses[-1], trace.readings[-1].chi)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    trace.seconds = time.perf_counter() - started
    return trace


class _Tracker:
    """Reads the edge on all samples, each time from the eigenvector of the last."""

    def __init__(self, problem: Digits, optimizer: Optimizer) -> None:
        self._problem, self._optimizer = problem, optimizer
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._last: EigResult | None = None
        self._last_raw: EigResult | None = None

    def read(self, step: int, *, raw: bool) -> Reading:
        loss = self._problem.loss()
        grads = torch.autograd.grad(loss, self._params, retain_graph=True)
        weights = edge_weights(self._optimizer, grads)
        hessian = Hessian(loss, self._params)
        self._last = found = eigsh(hessian.conditioned(weights), tol=TOL, warm_start=self._last)
        sharpness, products, converged = math.nan, found.matvecs, bool(found.converged[0])
        if raw:
            self._last_raw = plain = eigsh(hessian, tol=TOL, warm_start=self._last_raw)
            sharpness, products = float(plain.values[0]), products + plain.matvecs
        return Reading(step, float(found.values[0]), weights.thresholds[0], sharpness, products, converged)


def _batches(size: int | None, seed: int) -> Iterator[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        if size is None:
            yield None
        else:
            order = torch.randperm(SAMPLES, generator=generator)
            for start in range(0, SAMPLES - size + 1, size):
                yield order[start : start + size]
