"""Readings of the edge beside a monitor that records all the rest: every step near the edge, now and then before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.curvature import Edge, EdgeTracker, EigResult, Hessian, Split, eigsh, mode_denominator, split
from foreshock.curvature.split import Mark
from foreshock.monitor import Monitor
from foreshock.probes import FREE, Step
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["Reader"]


class Reader:
    """Follows chi and, less often, the raw top eigenvalue of H; a probe that hands on what was last read.

    Args:
        optimizer, loss: as for `EdgeTracker`; the loss is of the batch that chi is about.
        names: parameter -> name, for `chi_share/NAME`.
        every: steps between readings where chi is below `near`; every step is read above.
        near: chi from which on the edge is near.
        raw: readings from one raw eigenvalue to the next.
        tol: relative error wanted of eigenvalues.
    """

    def __init__(
        self, optimizer: Optimizer, loss: Callable[[], Tensor], names: Mapping[str, Tensor], *, every: int = 10,
        near: float = 0.8, raw: int = 5, tol: float = 1e-3,
    ) -> None:
        self.tracker = EdgeTracker(optimizer, loss, every=every, tol=tol, forms=True)
        self.every, self.near, self.raw, self.tol = every, near, raw, tol
        self.products = 0
        self._names = {id(param): name for name, param in names.items()}
        self._optimizer, self._loss, self._params = optimizer, loss, list(names.values())
        self._top: EigResult | None = None
        self._last: Edge | None = None
        self._mark: Mark | None = None
        self._readings = 0
        self._found: dict[str, float] = {}

    def watch(self, model: nn.Module, steps: int, live: Callable[[int, float], None], **notes: str) -> Run:
        """Returns the run of so many steps of the optimizer on the loss, which a monitor watches, on one thread.

        Args:
            model: names the tensors.
            steps: of the optimizer.
            live: told of each step's loss.
            notes: for the run's metadata.
        """
        with one_thread(), Monitor(model, self._optimizer, probes=[*FREE, self]) as monitor:
            monitor.annotate(paper="adam-spikes", **notes)
            for step in range(steps):
                self.look(step)
                self._optimizer.zero_grad()
                loss = self._loss()
                monitor.observe(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                live(step, loss.item())
        return monitor.run

    def look(self, step: int) -> Edge | None:
        """Takes a reading before an optimizer step, where one is due; returns it.

        The first step is left out: a second moment of one gradient puts chi far above 1.
        """
        self.tracker.every = 1 if self._last is not None and self._last.chi > self.near else self.every
        edge = self.tracker.step() if step else None
        if edge is None:
            return None
        found = {
            "chi": edge.chi, "chi_min": edge.lowest, "sharpness": edge.sharpness, "threshold": edge.threshold,
            "max_stable_lr": edge.max_stable_lr, "chi_residual": edge.residual, "chi_matvecs": float(edge.matvecs),
            "chi_converged": float(edge.converged), "chi_floored": edge.floored, "probe_batch": 1.0,
            "chi_gradient": edge.chi_gradient, "chi_gradient_sym": edge.chi_gradient_sym, "chi_step": edge.chi_step,
            "chi_change": edge.change, "chi_alignment": edge.alignment,
        }  # fmt: skip
        for param, share in zip(edge.params, edge.shares, strict=True):
            found[f"chi_share/{self._names[id(param)]}"] = share
        mark = Mark.of(edge)
        found["chi_denominator"] = mode_denominator(mark)
        if self._mark is not None:
            found |= _growth(split(self._mark, mark))
        if self._readings % self.raw == 0:
            found |= self._uncut()
        self._found = {name: value for name, value in found.items() if math.isfinite(value)}
        self._last, self._mark = edge, mark
        self._readings += 1
        self.products += edge.matvecs
        return edge

    def _uncut(self) -> dict[str, float]:
        """Returns the top eigenvalue of H itself, and its quotient at the gradient."""
        hessian = Hessian(self._loss, self._params, deterministic="trust")
        with hessian:
            self._top = eigsh(hessian, tol=self.tol, warm_start=self._top)
            gradient = hessian.gradient()
            along = hessian @ gradient
        return {
            "hessian_top": float(self._top.values[0]),
            "gradient_top": _dot(gradient, along) / _dot(gradient, gradient),
        }

    def __call__(self, step: Step) -> dict[str, Tensor | float]:
        """Returns what was read before this step."""
        found, self._found = self._found, {}
        return dict(found)


def _growth(found: Split) -> dict[str, float]:
    """Returns the signals of the growth of ln chi since the reading before."""
    return {
        "chi_overlap": found.overlap, "chi_growth": found.growth, "chi_growth_lr": found.lr,
        "chi_growth_momentum": found.momentum, "chi_growth_denominator": found.denominator,
        "chi_growth_preconditioner": found.preconditioner, "chi_growth_landscape": found.landscape,
    }  # fmt: skip


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    pairs = zip(left, right, strict=True)
    return float(torch.stack([(a.double() * b.double()).sum() for a, b in pairs]).sum())

