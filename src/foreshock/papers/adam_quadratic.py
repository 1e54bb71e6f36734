"""Adam on a parabola, where the curvature never changes: closed forms, torch's own Adam, and plain gradient descent."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from foreshock.papers.adam_exact import Floats, Hyper, Trail, descend
from foreshock.papers.adam_problems import Parabola
from foreshock.papers.adam_sines import recorded
from foreshock.papers.adam_study import Found, Live
from foreshock.papers.calm_spikes import runs_above

__all__ = ["chi", "critical_eps", "crossing", "gradient_descent", "parabola", "quadratic", "torch_chi", "uncorrected"]

LENGTHS = {0.99: 1200, 0.999: 9200, 0.95: 400, 0.9: 4000}  # beta2 -> steps until its second crossing
SAFE = 20  # steps after which momentum's correction is gone: chi is far above 1 at the first few of every run


def parabola(beta2: float, steps: int, *, eps: float = 1e-8, corrected: bool = True) -> Trail:
    """Returns Adam on theta^2/2 from theta = 1 at lr .1, beta1 .9."""
    return descend(Parabola(), np.ones(1), Hyper(0.1, 0.9, beta2, eps, corrected), steps)


def chi(trail: Trail, k: float = 1.0) -> Floats:
    """Returns chi = W k at each step of a training on the parabola, (T,)."""
    result: Floats = trail.weights[:, 0] * k
    return result


def crossing(trail: Trail, begun: int, k: float = 1.0) -> int:
    """Returns the step at which chi is to pass 1 if v decays freely from step `begun` on, counted as the trail's rows.

    While v decouples from the gradient, v_t = v_b beta2^(t-b), so that chi passes 1 at the first t with

        v_b beta2^(t-b) / (1 - beta2^t) < (d - eps)^2,   d = lr k (1 - beta1) / (2 (1 + beta1)),

    t counted from 1 (Bai et al. 2025, arXiv 2506.04805, one-dimensional case).
    """
    hyper, count = trail.hyper, begun
    least = hyper.lr * k * (1 - hyper.beta1) / (2 * (1 + hyper.beta1)) - hyper.eps
    if least <= 0:
        return np.iinfo(np.int64).max
    while not trail.v[begun, 0] * hyper.beta2 ** (count - begun) / (1 - hyper.beta2 ** (count + 1)) < least**2:
        count += 1
    return count


def critical_eps(low: float = 2e-3, high: float = 4e-3, *, steps: int = 6000, rounds: int = 8) -> tuple[float, float]:
    """Returns an eps with which chi passes 1 within `steps` steps at beta2 .99, and one with which it does not.

    By bisection; they differ by (high - low) / 2^rounds.
    """
    for _ in range(rounds):
        middle = (low + high) / 2
        crosses = bool((chi(parabola(0.99, steps, eps=middle))[SAFE:] > 1).any())
        low, high = (middle, high) if crosses else (low, middle)
    return low, high


def torch_chi(dtype: torch.dtype, steps: int, beta2: float = 0.99) -> Floats:
    """Returns chi at each step of `torch.optim.Adam` on the parabola, from its own state, (steps,)."""
    theta = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    optimizer = torch.optim.Adam([theta], lr=0.1, betas=(0.9, beta2), eps=1e-8)
    found = np.empty(steps)
    for step in range(steps):
        theta.grad = theta.detach().clone()
        optimizer.step()
        v = float(optimizer.state[theta]["exp_avg_sq"])
        denominator = math.sqrt(v / (1 - beta2 ** (step + 1))) + 1e-8
        found[step] = 0.05 * 0.1 / 1.9 / (1 - 0.9 ** (step + 1)) / denominator
    return found


def gradient_descent(steps: int, lr: float = 0.1) -> Floats:
    """Returns the losses of gradient descent on the parabola from theta = 1, (steps,)."""
    result: Floats = (1 - lr) ** (2 * np.arange(steps)) / 2
    return result


def uncorrected(lr: float, beta2: float, steps: int) -> tuple[Floats, Floats]:
    """Returns |theta_t| and sqrt(v_t) without momentum and bias correction, t from 0: (steps,) each.

    theta_{t+1} = (1 - lr / sqrt(v_t)) theta_t with v_0 = theta_0^2 = 1, and v_t updated after the step. |theta| shrinks
    until sqrt(v) = lr/2, where its lowest value is, then grows until v is full again.
    """
    thetas, roots = np.empty(steps), np.empty(steps)
    theta, v = 1.0, 1.0
    for step in range(steps):
        thetas[step], roots[step] = abs(theta), math.sqrt(v)
        theta, v = (1 - lr / math.sqrt(v)) * theta, beta2 * v + (1 - beta2) * theta * theta
    return thetas, roots


def quadratic(seed: int, live: Live = lambda share, text: None, steps: int = 0) -> Found:
    """Returns what the parabola shows, steps counted from 1; no seed and no number of steps enters."""
    started = time.perf_counter()
    numbers: dict[str, float] = {}
    runs, rows, waits = {}, [], []
    for place, (beta2, length) in enumerate(LENGTHS.items()):
        live(place / 6, f"parabola, beta2 {beta2:g}")
        trail = parabola(beta2, length)
        run = recorded(Parabola(), trail, 0, name=f"Parabola, beta2 {beta2:g}")
        crossings = [each for each in runs_above(chi(trail), 1) if each[0] >= SAFE]
        numbers[f"max chi at {beta2:g}"] = float(chi(trail)[SAFE:].max())
        if crossings:
            up, last = crossings[0]
            numbers |= {f"up at {beta2:g}": up + 1.0, f"down at {beta2:g}": last + 2.0}
            predicted = [crossing(trail, up - ahead) for ahead in (5, 20, 40)]
            waits.append(max(abs(each - up) for each in predicted))
            if beta2 == 0.99:
                corrected = 1 - beta2 ** (up + 1)
                numbers["lr / sqrt(v) at the crossing"] = 0.1 / math.sqrt(trail.v[up, 0] / corrected)
                numbers["preconditioner share"] = float(
                    np.nansum(run["chi_growth_preconditioner"][up - 100 : up + 1])
                    / np.nansum(run["chi_growth"][up - 100 : up + 1])
                )
        runs[f"parabola-beta2-{beta2:g}"] = run
        rows.append(
            (
                f"Parabola, beta2 {beta2:g}", "-", f"{length:,}", "-", str(len(crossings)),
                f"{numbers[f'max chi at {beta2:g}']:.3f}", "-", f"{trail.losses[-1]:.2g}",
                f"{time.perf_counter() - started:.1f}",
            )
        )
        started = time.perf_counter()
    numbers["closed form misses by"] = float(max(waits))
    live(0.7, "parabola: torch's Adam, eps, gradient descent")
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        up, last = next(each for each in runs_above(torch_chi(dtype, 1000), 1) if each[0] >= SAFE)
        numbers |= {f"torch {name} up": up + 1.0, f"torch {name} down": last + 2.0}
    crosses, never = critical_eps()
    numbers |= {"eps that crosses": crosses, "eps that never does": never}
    for eps in (2.63e-3, 2.64e-3):
        count = len(runs_above(chi(parabola(0.99, 6000, eps=eps))[SAFE:], 1))
        numbers[f"crossings at eps {eps:g}"] = float(count)
    numbers["rises of gradient descent"] = float((np.diff(gradient_descent(2000)) > 0).sum())
    thetas, roots = uncorrected(0.1, 0.9, 140)
    numbers |= {
        "plain crossing": float(np.argmax(roots < 0.05)), "plain minimum": float(np.argmin(thetas[:90])),
        "plain peak": float(1 + np.argmax(thetas[1:])), "plain height": float(thetas[1:].max()),
    }  # fmt: skip
    return Found(numbers, runs, rows, {"plain": (thetas, roots)})
