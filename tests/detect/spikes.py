"""Trainings with a closed-form Hessian, recorded with exact curvature: QUAD, TL and TL-GD of the two spike papers.

QUAD is theta^2 / 2. TL is sum_j a_j tanh(w_j x + b_j) + c fitted to sin x + sin 4x on 20 points (Bai et al. 2025, arXiv
2506.04805; Li, Xu and Zhang 2023, arXiv 2305.12133). Record t holds what was measured before optimizer step t + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foreshock.probes.cadence import Cadence
from foreshock.run import ABSENT, Run, absent

Floats = NDArray[np.float64]
Readings = Callable[[int], bool]


class Problem(NamedTuple):
    """A loss with its derivatives: theta -> (loss, gradient), theta -> Hessian; `parts` are the tensors' slices."""

    start: Floats
    value: Callable[[Floats], tuple[float, Floats]]
    hessian: Callable[[Floats], Floats]
    parts: dict[str, slice]


class Settings(NamedTuple):
    """Adam with these settings; `beta2` None is gradient descent."""

    lr: float
    beta1: float = 0.9
    beta2: float | None = 0.999
    eps: float = 1e-8

    def meta(self) -> dict[str, object]:
        if self.beta2 is None:
            return {"optimizers": [{"class": "SGD", "groups": [{"lr": self.lr, "momentum": 0}]}]}
        group = {"lr": self.lr, "betas": [self.beta1, self.beta2], "eps": self.eps}
        return {"optimizers": [{"class": "Adam", "groups": [group]}]}


def quad() -> Problem:
    """Returns L = theta^2 / 2 from theta = 1."""
    return Problem(
        np.ones(1), lambda t: (0.5 * float(t[0]) ** 2, t.copy()), lambda t: np.ones((1, 1)), {"theta": slice(0, 1)}
    )


def tanh_line(seed: int = 0, points: int = 20, width: int = 20) -> Problem:
    """Returns the TL problem: all parameters N(0, 1), drawn in the order w, b, a, c."""
    x = np.linspace(-np.pi, np.pi, points)
    y = np.sin(x) + np.sin(4 * x)
    start = np.random.default_rng(seed).standard_normal(3 * width + 1)
    m, n = width, points

    def forward(theta: Floats) -> tuple[Floats, Floats, Floats]:
        w, b, a, c = theta[:m], theta[m : 2 * m], theta[2 * m : 3 * m], theta[-1]
        s = np.tanh(np.outer(x, w) + b)
        slope = 1 - s**2
        jacobian = np.concatenate((a * slope * x[:, None], a * slope, s, np.ones((n, 1))), axis=1)
        return s @ a + c - y, jacobian, s

    def value(theta: Floats) -> tuple[float, Floats]:
        rest, jacobian, _ = forward(theta)
        return float(np.mean(rest**2)), (2 / n) * jacobian.T @ rest

    def hessian(theta: Floats) -> Floats:
        rest, jacobian, s = forward(theta)
        a, slope = theta[2 * m : 3 * m], 1 - s**2
        bend = -2 * s * slope * a
        result = jacobian.T @ jacobian
        w, b, out = np.arange(m), m + np.arange(m), 2 * m + np.arange(m)
        for rows, columns, values in (
            (w, w, bend * x[:, None] ** 2), (w, b, bend * x[:, None]), (b, b, bend),
            (w, out, slope * x[:, None]), (b, out, slope),
        ):  # fmt: skip
            result[rows, columns] += rest @ values
            if rows is not columns:
                result[columns, rows] += rest @ values
        return (2 / n) * result

    parts = {"w": slice(0, m), "b": slice(m, 2 * m), "a": slice(2 * m, 3 * m), "c": slice(3 * m, 3 * m + 1)}
    return Problem(start, value, hessian, parts)


def train(
    problem: Problem, settings: Settings, steps: int, *, readings: Readings = lambda step: True,
    batch: Callable[[int, Floats], Floats] | None = None, later: tuple[int, Settings] | None = None,
) -> Run:
    """Returns the recorded training.

    Args:
        problem: what to minimise.
        settings: of Adam or gradient descent.
        steps: how many.
        readings: step -> whether curvature is read there.
        later: step from which on other settings hold.
        batch: (step, theta) -> the gradient that the optimizer gets, of a mini-batch; None for that of the whole loss.
    """
    theta, parts = problem.start.copy(), problem.parts
    m, v, last = np.zeros_like(theta), np.zeros_like(theta), None
    rows: list[dict[str, float]] = []
    before: tuple[float, Floats, Floats] | None = None
    for step in range(steps):
        loss, g = problem.value(theta)
        settings = later[1] if later is not None and step >= later[0] else settings
        if batch is not None:
            g = batch(step, theta)
        row = {"loss": loss, "grad_norm": float(np.linalg.norm(g)), "lr": settings.lr}
        row |= {f"grad_norm/{name}": float(np.linalg.norm(g[part])) for name, part in parts.items()}
        if last is not None:
            row["grad_cosine"] = float(g @ last / max(np.linalg.norm(g) * np.linalg.norm(last), 1e-300))
        weights, delta, old_v = np.full_like(theta, settings.lr / 2), -settings.lr * g, v
        if settings.beta2 is not None:
            b1, b2, t = settings.beta1, settings.beta2, step + 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            root = np.sqrt(v / (1 - b2**t)) + settings.eps
            weights = settings.lr / 2 * (1 - b1) / ((1 + b1) * (1 - b1**t)) / root
            delta = -settings.lr * m / (1 - b1**t) / root
            for name, part in {"": slice(None), **{f"/{name}": part for name, part in parts.items()}}.items():
                if step:
                    row[f"v_ratio{name}"] = float(np.linalg.norm(v[part]) / np.linalg.norm(old_v[part]))
                    row[f"grad_sq_over_v_mean{name}"] = float(
                        np.mean(g[part] ** 2 / np.maximum(old_v[part] / (1 - b2**step), 1e-300))
                    )
                row[f"effective_step{name}"] = settings.lr / (
                    float(np.sqrt(np.mean(v[part]) / (1 - b2**t))) + settings.eps
                )
        if readings(step):
            found, before = reading(problem, theta, g, weights, before)
            row |= found
            row["threshold"], row["sharpness"] = 1.0, row["chi"]
        rows.append(row)
        theta, last = theta + delta, g
    return as_run(rows, name="spikes", **settings.meta())


def reading(
    problem: Problem, theta: Floats, g: Floats, weights: Floats, before: tuple[float, Floats, Floats] | None
) -> tuple[dict[str, float], tuple[float, Floats, Floats]]:
    """Returns what one exact reading says, and what the next one compares with: chi, the direction, the weights."""
    h, root = problem.hessian(theta), np.sqrt(weights)
    values, vectors = np.linalg.eigh(root[:, None] * h * root)
    chi, u = float(values[-1]), vectors[:, -1]
    hg, scaled = h @ g, weights * g
    found = {
        "chi": chi,
        "chi_gradient": float(g @ (weights * hg) / (g @ g)),
        "chi_gradient_sym": float(scaled @ h @ scaled / (g @ scaled)),
        "chi_alignment": abs(float(u @ (root * g))) / float(np.linalg.norm(root * g)),
        "hessian_top": float(np.linalg.eigvalsh(h)[-1]),
    }
    found |= {f"chi_share/{name}": float(np.sum(u[part] ** 2)) for name, part in problem.parts.items()}
    if before is not None and before[0] > 0 < chi:
        old_chi, old_u, old_weights = before
        overlap = abs(float(u @ old_u))
        found["chi_overlap"] = overlap
        if overlap >= 0.5:
            moved = (u**2 + old_u**2) / 2 * np.log(weights / old_weights)
            found["chi_growth"] = float(np.log(chi / old_chi))
            found["chi_growth_preconditioner"] = found["chi_growth_denominator"] = float(np.sum(moved))
            found["chi_growth_lr"] = found["chi_growth_momentum"] = 0.0
            found["chi_growth_landscape"] = found["chi_growth"] - float(np.sum(moved))
            found |= {f"chi_growth_denominator/{n}": float(np.sum(moved[p])) for n, p in problem.parts.items()}
    return found, (chi, u, weights)


def as_run(rows: Iterable[dict[str, float]], **meta: object) -> Run:
    """Returns rows of signals as a run; what a row lacks was not measured."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: absent(len(rows)) for name in names}
    for i, row in enumerate(rows):
        for name, value in row.items():
            columns[name][i] = value
    return Run.from_arrays(columns, **meta)


def thinned(run: Run, every: int, *, without: tuple[str, ...] = (), until: int | None = None) -> Run:
    """Returns the run as the monitor would have read it: chi seldom when calm, each step in alarm.

    Args:
        run: with curvature at every step.
        every: steps from one reading to the next when calm.
        without: signals to leave out.
        until: last step; None for all.
    """
    run = run if until is None else run.window(0, until + 1)
    cadence, chi = Cadence(every), run["chi"]
    read, alarm = np.zeros(len(run), bool), np.zeros(len(run), bool)
    for i, step in enumerate(run.steps.tolist()):
        if np.isfinite(chi[i]) and cadence.due(step):
            read[i], alarm[i] = True, cadence.state == "alarm"
            cadence.took(step, float(chi[i]))
    columns: dict[str, Floats] = {"step": run.steps}
    for name in run.columns:
        base = name.partition("/")[0]
        if base in without:
            continue
        steps, values = run.measured(name)
        column = absent(len(run))
        column[np.searchsorted(run.steps, steps)] = values
        if base in ("chi_gradient", "chi_gradient_sym", "chi_alignment", "hessian_top"):
            column[~alarm] = ABSENT
        elif base.startswith("chi") or base in ("sharpness", "threshold"):
            column[~read] = ABSENT
        columns[name] = column
    return Run.from_arrays(columns, **run.meta)
