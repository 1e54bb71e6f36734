"""Plain gradient descent on the tanh network, with lambda_max, chi along the gradient and alignment read on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from foreshock.papers.landscape_anatomy import Spike, anatomy
from foreshock.papers.landscape_net import TanhProblem
from foreshock.papers.landscape_study import recorded
from foreshock.papers.studies import Live, silent
from foreshock.run import Run

__all__ = ["REFERENCE_LR", "Trace", "descend", "quietly"]

Floats = npt.NDArray[np.float64]
REFERENCE_LR = 0.05
CALM = 0.9  # of the edge, below which eigenvalues are taken at every tenth step only
SELDOM = 10
CHUNK = 500  # steps between looks at what has happened so far


_WILD = np.errstate(over="ignore", invalid="ignore")  # a training that diverges ends, and says so by its length


@dataclass(slots=True)
class Trace:
    """One training; entry t of every array belongs to theta after t updates, before the next.

    Attributes:
        problem, lr: what was trained.
        losses, chi_gradient: (n,).
        sharpness, alignment, overlap: lambda_max(H), |cos(g, u1)|, |cos| of u1 with that of the reading before: (n,),
            NaN where they were not taken.
        thetas: (n, p).
        seconds: it took.
    """

    problem: TanhProblem
    lr: float
    losses: Floats
    sharpness: Floats
    chi_gradient: Floats
    alignment: Floats
    overlap: Floats
    thetas: Floats
    seconds: float
    spikes: list[Spike] = field(default_factory=list)

    @property
    def edge(self) -> float:
        """Returns 2/lr."""
        return 2.0 / self.lr

    def top(self, t: int, k: int = 1) -> tuple[Floats, Floats]:
        """Returns the k largest eigenvalues and their eigenvectors, (k,) and (p, k), after t updates."""
        values, vectors = np.linalg.eigh(self.problem.curvature(self.thetas[t]).hessian)
        return values[::-1][:k], vectors[:, ::-1][:, :k]

    def to_run(self, name: str, **meta: object) -> Run:
        """Returns the training as a run, under the library's names of signals."""
        return recorded(self, name, **meta)


@_WILD
def descend(
    problem: TanhProblem, lr: float, *, least: int, most: int | None = None, live: Live = silent
) -> Trace:
    """Returns a training of at least `least` updates, and then as many as it takes to see a second spike over.

    Args:
        problem: network, data and start.
        lr: of full-batch gradient descent; float64, no momentum, no decay.
        least: updates.
        most: updates at most; by default `least`.
        live: told how far it is.
    """
    started, most = time.perf_counter(), least if most is None else most
    edge, theta = 2.0 / lr, problem.theta
    rows: list[tuple[float, float, float, float, float]] = []
    thetas, before = [], None
    sharp = np.inf
    for t in range(most + 1):
        loss, gradient, hessian = problem.curvature(theta)
        if not np.isfinite(loss):
            break
        size = float(gradient @ gradient)
        along = lr / 2 * float(gradient @ hessian @ gradient) / size
        aligned = overlap = value = np.nan
        if t % SELDOM == 0 or sharp > CALM * edge:
            values, vectors = np.linalg.eigh(hessian)
            sharp, u = float(values[-1]), vectors[:, -1]
            value, aligned = sharp, abs(float(gradient @ u)) / size**0.5
            if before is not None:
                overlap = abs(float(u @ before))
            before = u
        rows.append((loss, value, along, aligned, overlap))
        thetas.append(theta)
        if t % CHUNK == 0:
            live(t / most, f"step {t:,}: loss {loss:.3g}, chi {sharp / edge:.2f}")
            if t >= least and most > least:
                table = np.array(rows).T
                spikes = anatomy(table[0], table[1], table[2], edge)
                if sum(spike.back is not None for spike in spikes) > 1:
                    break
        theta = theta - lr * gradient
    table = np.array(rows).T
    losses, sharpness, chi_gradient, alignment, overlap = table
    return Trace(
        problem, lr, losses, sharpness, chi_gradient, alignment, overlap, np.array(thetas),
        time.perf_counter() - started, anatomy(losses, sharpness, chi_gradient, edge),
    )


@_WILD
def quietly(problem: TanhProblem, theta: Floats, lr: float, steps: int, *, until: float = 0.0) -> tuple[Floats, Floats]:
    """Returns the losses (n,) and the parameters (n, p) of a training without readings, ended by a loss below `until`.

    It ends early where the loss is no longer finite.
    """
    losses, thetas = [], []
    for _ in range(steps + 1):
        loss, gradient = problem.gradient(theta)
        if not np.isfinite(loss):
            break
        losses.append(loss)
        thetas.append(theta)
        if loss < until:
            break
        theta = theta - lr * gradient
    return np.array(losses), np.array(thetas)
