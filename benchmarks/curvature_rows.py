"""The rows of the benchmark of curvature: what is measured on a net, by whom, and what the truth is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import curvature_peers as peers
from curvature_nets import Bench
from curvature_peers import Answer, Contender
from foreshock.curvature import Hessian, eigsh
from foreshock.curvature.density import spectral_density
from foreshock.curvature.directional import directional
from foreshock.stability import edge_weights

OURS = "foreshock"
STEPS = 50  # of the density
# What a row may cost, in gradients.
BARS = {
    ("product", "A"): 1.9, ("product", "B"): 2.3, ("product", "C"): 3.0,
    ("difference", "Ag"): 1.1, ("difference", "B"): 1.1,
    ("top", "A"): 10.0, ("top", "B"): 14.0, ("top", "C"): 24.0,
    ("five", "A"): 28.0, ("five", "B"): 36.0,
    ("conditioned", "A"): 13.0, ("conditioned", "B"): 17.0, ("conditioned", "C"): 13.0,
    ("density", "A"): 100.0, ("density", "B"): 121.0,
    ("step", "A"): 0.4, ("step", "Ag"): 0.4, ("step", "B"): 0.4, ("step", "C"): 0.4,
    ("tracker", "B"): 10.0, ("tracked differences", "B"): 5.5,
    ("memory", "B"): 3.5, ("memory", "C"): 3.5, ("memory of differences", "B"): 1.1,
}  # fmt: skip
TITLES = {
    "product": "one product", "difference": "one product, by differences", "top": "top eigenvalue, 1 %",
    "top by differences": "the same, by differences", "five": "top five", "conditioned": "preconditioned top",
    "directional": "forms P, S, U", "density": f"density, {STEPS} steps", "step": "curvature along a step",
    "tracker": "tracker, a reading", "tracked differences": "the same, by differences",
    "memory": "memory of a product", "memory of differences": "the same, by differences",
}
# Left out unless asked for with `--all`: what is dear and has no bar.
LEFT_OUT = {
    ("density", "B"), ("density", "C"), ("five", "C"), ("tracker", "C"), ("memory", "A"), ("memory", "C"),
    ("product", "Ag"), ("top", "Ag"), ("five", "Ag"), ("conditioned", "Ag"), ("density", "Ag"), ("directional", "Ag"),
    ("memory", "Ag"), ("memory of differences", "Ag"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured on one net; `truth` is a vector, or eigenvalues from the largest down."""

    key: str
    contenders: Sequence[Contender]
    truth: Tensor | Sequence[float]
    repeats: int = 1

    def error(self, answer: Answer) -> float:
        """Returns the relative error; of several values the largest, NaN where there is nothing to compare."""
        found, truth = (torch.as_tensor(each, dtype=torch.float64) for each in (answer.values, self.truth))
        if not found.numel() or not truth.numel():
            return float("nan")
        if isinstance(answer.values, Tensor):
            return float((found - truth).norm() / truth.norm())
        return float(((found - truth) / truth).abs().max())


@dataclass
class Work:
    """A net with what all rows on it need: W, and eigenvalues within 1e-6, computed when they are first asked for."""

    bench: Bench
    here: Sequence[str]
    _found: dict[str, list[float]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return sum(param.numel() for param in self.bench.params)

    def weights(self) -> list[Tensor]:
        """Returns W of the step that the optimizer would take with the gradient of the held batch."""
        grads = torch.autograd.grad(self.bench.loss(), self.bench.params)
        found = edge_weights(self.bench.optimizer, grads).tensors
        return [weight for weight in found if isinstance(weight, Tensor)]

    def truth(self, key: str) -> list[float]:
        """Returns the "five" largest of H, or the "conditioned" one, by our own solver at a tolerance of 1e-6."""
        if key not in self._found:
            operator = Hessian(self.bench.loss(), self.bench.params)
            if key == "five":
                found = eigsh(operator, 5, tol=1e-6)
            else:
                found = eigsh(operator.conditioned(self.weights()), tol=1e-6)
            assert found.converged.all()
            self._found[key] = found.values.tolist()
        return self._found[key]


def rows(work: Work, wanted: Sequence[str], repeats: int) -> Iterator[Row]:
    """Yields the rows that compare operators and solvers."""
    makers = {
        "product": _product, "difference": _difference, "top": _top, "top by differences": _top_by_differences,
        "five": _five, "conditioned": _conditioned, "density": _density, "directional": _directional,
    }
    for key, make in makers.items():
        if key in wanted:
            if "differen" in key and not work.bench.smooth:
                continue  # refused where the loss has kinks
            yield make(work, repeats)


def _product(work: Work, repeats: int) -> Row:
    bench = work.bench
    vector = torch.randn(work.n, generator=torch.Generator().manual_seed(0))
    operator = Hessian(bench.loss(), bench.params)
    operator @ vector  # the graph is there afterwards, as it is for the solvers
    exact = bench.copy(torch.float64)
    truth = Hessian(exact.loss(), exact.params) @ vector.double()
    ours = Contender(OURS, lambda seed: Answer(operator @ vector, 1))
    return Row("product", [ours, *peers.products(bench, vector, work.here)], truth, 2 * repeats + 1)


def _difference(work: Work, repeats: int) -> Row:
    bench = work.bench
    top = eigsh(Hessian(bench.loss(), bench.params), tol=1e-3).vectors[0]
    vector = torch.cat([piece.reshape(-1) for piece in top])
    operator = Hessian(bench.loss, bench.params, route="differences")
    operator @ vector  # which checks that the loss repeats and that two steps agree
    exact = bench.copy(torch.float64)
    truth = Hessian(exact.loss(), exact.params) @ vector.double()
    ours = Contender(OURS, lambda seed: Answer(operator @ vector, 1, "along the top eigenvector"))
    return Row("difference", [ours, *peers.differences(bench.copy(), vector, work.here)], truth, 2 * repeats + 1)


def _top(work: Work, repeats: int) -> Row:
    bench = work.bench

    def ours(seed: int) -> Answer:
        found = eigsh(Hessian(bench.loss(), bench.params), generator=torch.Generator().manual_seed(seed))
        return Answer(found.values.tolist(), found.matvecs, _status(found.converged))

    return Row("top", [Contender(OURS, ours), *peers.eigenvalues(bench, 1, work.here)], work.truth("five")[:1], repeats)


def _top_by_differences(work: Work, repeats: int) -> Row:
    bench = work.bench

    def ours(seed: int) -> Answer:
        operator = Hessian(bench.loss, bench.params, route="differences")
        found = eigsh(operator, generator=torch.Generator().manual_seed(seed))
        return Answer(found.values.tolist(), found.matvecs, _status(found.converged))

    return Row("top by differences", [Contender(OURS, ours)], work.truth("five")[:1], repeats)


def _five(work: Work, repeats: int) -> Row:
    bench = work.bench

    def ours(seed: int) -> Answer:
        found = eigsh(Hessian(bench.loss(), bench.params), 5, generator=torch.Generator().manual_seed(seed))
        return Answer(found.values.tolist(), found.matvecs, _status(found.converged))

    others = [each for each in peers.eigenvalues(bench, 5, work.here) if bench.name != "B" or "scipy" in each.who]
    return Row("five", [Contender(OURS, ours), *others], work.truth("five"), repeats)


def _conditioned(work: Work, repeats: int) -> Row:
    bench, weights = work.bench, work.weights()
    root = torch.cat([weight.reshape(-1) for weight in weights]).sqrt()

    def ours(seed: int) -> Answer:
        operator = Hessian(bench.loss(), bench.params).conditioned(weights)
        found = eigsh(operator, generator=torch.Generator().manual_seed(seed))
        return Answer(found.values.tolist(), found.matvecs, _status(found.converged))

    others = peers.eigenvalues(bench, 1, work.here, root)
    return Row("conditioned", [Contender(OURS, ours), *others], work.truth("conditioned"), repeats)


def _density(work: Work, repeats: int) -> Row:
    bench = work.bench

    def ours(seed: int) -> Answer:
        operator = Hessian(bench.loss(), bench.params)
        found = spectral_density(operator, steps=STEPS, generator=torch.Generator().manual_seed(seed))
        return Answer([found.highest], found.matvecs, "error: of the highest node")

    return Row(
        "density", [Contender(OURS, ours), *peers.densities(bench, STEPS, work.here)], work.truth("five")[:1], repeats
    )


def _directional(work: Work, repeats: int) -> Row:
    """P, S and the step's d'Hd from a gradient that was taken with its graph, the step with momentum: two products."""
    bench, weights = work.bench, work.weights()
    operator = Hessian(bench.loss(), bench.params)
    step = _planned(bench, operator)

    def ours(seed: int) -> Answer:
        found = directional(operator, weights, step=step)
        return Answer([found.chi_gradient, found.chi_gradient_sym, found.bend], found.matvecs)

    exact = bench.copy(torch.float64)
    wide = [weight.double() for weight in weights]
    truth = directional(Hessian(exact.loss(), exact.params), wide, step=[move.double() for move in step])
    return Row(
        "directional", [Contender(OURS, ours)], [truth.chi_gradient, truth.chi_gradient_sym, truth.bend], repeats
    )


def _planned(bench: Bench, operator: Hessian) -> list[Tensor]:
    from foreshock.stability import planned_step

    return planned_step(bench.optimizer, operator.gradient())


def _status(converged: np.ndarray) -> str:
    return "" if converged.all() else "says: not converged"


def checked(work: Work) -> list[str]:
    """Returns how far the references are from scipy's ARPACK on the same net in float64, tolerance 1e-6."""
    exact = work.bench.copy(torch.float64)
    product = peers.kept_graph(exact)
    root = torch.cat([weight.reshape(-1) for weight in work.weights()]).sqrt().double()
    lines = []
    for key, root_ in (("five", None), ("conditioned", root)):
        counted = peers.Counted(product if root_ is None else lambda flat: root * product(root * flat))
        found = peers.arpack(counted, 5 if root_ is None else 1, n=work.n, tol=1e-6, dtype=np.float64)
        pairs = zip(found.values, work.truth(key), strict=True)
        worst = max(abs(ours / theirs - 1) for theirs, ours in pairs)
        values = ", ".join(f"{value:.6g}" for value in found.values)
        lines.append(
            f"{work.bench.name} {key}: float64 ARPACK {values} ({found.products} products), ours off by {worst:.1e}"
        )
    return lines


__all__ = ["BARS", "OURS", "TITLES", "Row", "Work", "checked", "rows"]
