"""The edge of stability along a training, from dense Hessians: every number exact, under the library's names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foreshock.papers.adam_exact import Floats, Problem, Trail
from foreshock.run import absent

__all__ = ["READ", "moments", "read"]

Rows = npt.NDArray[np.int64]

BLOCK = 500  # points whose Hessians are held at a time
SWAPPED = 0.5  # overlap of successive top directions below which they are two

READ = (
    "chi", "threshold", "sharpness", "max_stable_lr", "hessian_top", "gradient_top", "chi_gradient", "chi_gradient_sym",
    "chi_step", "chi_change", "chi_alignment", "chi_overlap", "chi_mode_loss", "chi_growth", "chi_growth_momentum",
    "chi_growth_denominator", "chi_growth_preconditioner", "chi_growth_landscape", "chi_denominator",
)  # fmt: skip
"""Signals that `read` gives; `gradient_top` is g'Hg / g'g, the raw curvature along the gradient."""


def read(problem: Problem, trail: Trail, every: int = 1) -> dict[str, Floats]:
    """Returns the signals of curvature at every so many steps of a training, (T,) each, absent at the others.

    `chi_share/TENSOR` are among them.

    chi is the top eigenvalue of A = W^1/2 H W^1/2 with unit eigenvector u, by a dense solver; P = g'W H g / g'g,
    S = (Wg)'H(Wg) / g'Wg and U = d'H d / (-2 g'd) with the step d taken (Bai et al. 2025, arXiv 2506.04805). The growth
    of ln chi from reading to reading is split exactly to first order: d ln chi = sum_i u_i^2 d ln W_i + the part of dH,
    with u^2 averaged over both ends, and the part of the landscape as what remains.

    H is that of all samples, the gradient the one that was consumed. What has no value is absent: growth at the first
    reading and where the top eigenvector changed, U of a step uphill.
    """
    count = len(trail)
    found = {name: absent(count) for name in READ}
    rows = np.arange(0, count, every)
    squares, tops = np.empty((2, len(rows), trail.thetas.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        squares[block], tops[block] = _block(found, problem, trail, rows[block])
    _split(found, trail, rows, squares, tops)
    for name, place in problem.tensors.items():
        share = found[f"chi_share/{name}"] = absent(count)
        share[rows] = squares[:, place].sum(1)
    return found


def _block(found: dict[str, Floats], problem: Problem, trail: Trail, rows: Rows) -> tuple[Floats, Floats]:
    """Fills in what belongs to single steps; returns u^2 and the directions W^1/2 u, (b, n) each."""
    hessians, w, g, delta = (
        problem.hessians(trail.thetas[rows]), trail.weights[rows], trail.grads[rows], trail.moves[rows]
    )
    roots = np.sqrt(w)
    values, vectors = np.linalg.eigh(roots[:, :, None] * hessians * roots[:, None, :])
    chi, u = values[:, -1], vectors[:, :, -1]
    curved, length, preconditioned = np.einsum("bij,bj->bi", hessians, g), (g * g).sum(1), (g * w * g).sum(1)
    slope, along = (g * delta).sum(1), (roots * g * u).sum(1)
    bend = np.einsum("bi,bij,bj->b", delta, hessians, delta)
    found["chi"][rows] = chi
    found["threshold"][rows] = 2 * (1 + trail.hyper.beta1) / (trail.hyper.lr * (1 - trail.hyper.beta1))
    found["sharpness"][rows] = chi * found["threshold"][rows]
    found["max_stable_lr"][rows[chi > 0]] = trail.hyper.lr / chi[chi > 0]
    found["hessian_top"][rows] = np.linalg.eigvalsh(hessians)[:, -1]
    found["gradient_top"][rows] = (g * curved).sum(1) / length
    found["chi_gradient"][rows] = (g * w * curved).sum(1) / length
    found["chi_gradient_sym"][rows] = np.einsum("bi,bij,bj->b", w * g, hessians, w * g) / preconditioned
    found["chi_change"][rows] = slope + bend / 2
    found["chi_alignment"][rows] = np.abs(along) / np.sqrt(preconditioned)
    downhill, positive = slope < 0, chi > 0
    found["chi_step"][rows[downhill]] = bend[downhill] / (-2 * slope[downhill])
    found["chi_mode_loss"][rows[positive]] = (along**2)[positive] / (2 * chi[positive])
    found["chi_denominator"][rows] = np.exp((u * u * np.log(trail.denominators[rows])).sum(1))
    return u * u, roots * u


def _split(found: dict[str, Floats], trail: Trail, rows: Rows, squares: Floats, tops: Floats) -> None:
    """Adds overlap and growth: what of d ln chi came from the denominators, the momentum's gain, the landscape."""
    lengths = np.linalg.norm(tops, axis=1)
    overlap = np.abs((tops[1:] * tops[:-1]).sum(1)) / (lengths[1:] * lengths[:-1])
    found["chi_overlap"][rows[1:]] = overlap
    chi = found["chi"][rows]
    kept = (overlap >= SWAPPED) & (chi[1:] > 0) & (chi[:-1] > 0)
    mean = (squares[1:] + squares[:-1]) / 2
    denominator = -(mean * np.diff(np.log(trail.denominators[rows]), axis=0)).sum(1)
    momentum = -np.diff(np.log(trail.corrections[rows]))
    growth = np.diff(np.log(np.where(chi > 0, chi, 1.0)))
    parts = {
        "chi_growth": growth, "chi_growth_momentum": momentum, "chi_growth_denominator": denominator,
        "chi_growth_preconditioner": denominator + momentum, "chi_growth_landscape": growth - denominator - momentum,
    }  # fmt: skip
    for name, values in parts.items():
        found[name][rows[1:][kept]] = values[kept]


def moments(problem: Problem, trail: Trail) -> dict[str, Floats]:
    """Returns what a monitor measures at every step, from the trail: norms and second moments, whole and per tensor."""
    found = {"loss": trail.losses, "lr": np.full(len(trail), trail.hyper.lr)}
    found["grad_norm"] = np.linalg.norm(trail.grads, axis=1)
    found["update_norm"] = np.linalg.norm(trail.moves, axis=1)
    found["param_norm"] = np.linalg.norm(trail.thetas + trail.moves, axis=1)
    lengths = np.linalg.norm(trail.v, axis=1)
    found["v_ratio"], found["grad_cosine"] = absent(len(trail)), absent(len(trail))
    found["v_ratio"][1:] = lengths[1:] / lengths[:-1]
    found["grad_cosine"][1:] = (trail.grads[1:] * trail.grads[:-1]).sum(1) / (
        found["grad_norm"][1:] * found["grad_norm"][:-1]
    )
    for name, place in problem.tensors.items():
        part = np.linalg.norm(trail.v[:, place], axis=1)
        found[f"v_ratio/{name}"] = absent(len(trail))
        found[f"v_ratio/{name}"][1:] = part[1:] / part[:-1]
        found[f"grad_norm/{name}"] = np.linalg.norm(trail.grads[:, place], axis=1)
        found[f"update_norm/{name}"] = np.linalg.norm(trail.moves[:, place], axis=1)
    return found
