"""The ends of a symmetric operator's spectrum, by Lanczos, stopped by its own error estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.convergence import Convergence, Hidden
from foreshock.curvature.krylov import Krylov, Ritz
from foreshock.curvature.operator import Operator, checked
from foreshock.curvature.space import norm
from foreshock.errors import UsageError

_ENDS = {
    "LA": "LA", "largest": "LA", "SA": "SA", "smallest": "SA", "BE": "BE", "both": "BE", "LM": "LM", "magnitude": "LM",
}
# Share of a random direction in a start, and of the gradient in a warm one. Without the first a tracker locks on the
# second eigenvalue of small nets, without the second on that of large ones, where noise has next to nothing of each.
NOISE = 0.1
# A basis that is restarted no longer tells what it may have missed, so it is kept long where that takes little memory.
_LONG, _SHORT = 200, 30
_BASIS_BYTES, _MOST_BYTES = 1 << 28, 1 << 31
# How far a warm start has to be amplified beyond the value found. Measured on readings every 25 steps of trainings at
# the edge: at 30, 90 % of them are within 2 %, at 300, 98 %, at 1000 nearly all.
_AMPLIFIED = 1000.0
_IN_A_ROW = 3  # judgements that have to agree where several values are wanted: one may yet come in between
_SMALL = 1e-4  # of the largest value: what is smaller is wanted within `tol` of this
_COPIES_SOUGHT = 4096  # dimension up to which copies of an eigenvalue are looked for at any tolerance


@dataclass(frozen=True, slots=True)
class EigResult:
    """Eigenpairs of an operator, with what is known of their error.

    Attributes:
        values: eigenvalues, shape (k,), float64: "LA" and "LM" from the largest down, "SA" from the smallest up, "BE"
            the upper half from the largest down, then the lower half from the smallest up; NaN at the end (and vectors
            of zeros) where `max_matvecs` was below k.
        vectors: unit eigenvectors in the operator's coordinates, k lists of tensors shaped like the parameters.
        directions: the steps in parameters that they stand for: W^(1/2) u for a conditioned operator, else the vectors.
        residuals: |A u - value u|, shape (k,): some eigenvalue lies within that distance of the value.
        errors: estimated error of each value, shape (k,): residual^2 / distance to its neighbours where that is less.
        converged: whether the estimated error is within `tol`, shape (k,).
        matvecs: products used.
        extent: the lowest and the largest value that the same products saw: the spectrum reaches at least that far.
        notes: how the products were obtained, and what a reader has to know.
    """

    values: np.ndarray
    vectors: tuple[list[Tensor], ...]
    directions: tuple[list[Tensor], ...]
    residuals: np.ndarray
    errors: np.ndarray
    converged: np.ndarray
    matvecs: int
    extent: tuple[float, float] = (float("nan"), float("nan"))
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        pairs = ", ".join(
            f"{value:.6g}{'' if done else ' (not converged)'}"
            for value, done in zip(self.values, self.converged, strict=True)
        )
        return f"EigResult({pairs}; {self.matvecs} products)"


def eigsh(
    operator: Operator,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-2,
    warm_start: EigResult | Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]] | None = None,
    generator: torch.Generator | None = None,
    max_matvecs: int = 300,
    block: int = 1,
) -> EigResult:
    """Returns k eigenpairs from the ends of the spectrum, each within about `tol` of its value.

    Lanczos with full reorthogonalisation, inner products in float64, and thick restarts. It begins from the gradient,
    where the operator knows it, with some noise: gradients lie in the top of the spectrum, which saves a third of the
    products. It stops by the residuals, not by a count of steps.

    Copies of an eigenvalue that agree to rounding are looked for where n is at most 4096 or `tol` below 1e-3; else one
    direction sees one of them, and `block` sees as many as it is wide.

    Args:
        operator: symmetric, n x n; may be indefinite.
        k: eigenpairs wanted, at most n.
        which: "LA" (or "largest"), "SA" ("smallest"), "BE" ("both": half from each end, the odd one from the top), or
            "LM" (largest magnitude).
        tol: relative error wanted of each value (of 1e-4 of the largest where a value is smaller than that); what could
            not be had within `max_matvecs` says so in `converged`.
        warm_start: an earlier result, whose directions in parameters are taken over, whatever W was then; or a vector
            or several in the operator's coordinates.
        generator: source of the random directions; by default one of its own with a fixed seed, so that equal calls
            give equal results.
        max_matvecs: products after which the best so far is returned.
        block: directions to begin with; more than 1 where eigenvalues are known to coincide.

    Raises:
        UsageError: a senseless argument, or a product that holds NaN or infinity.

    >>> import torch
    >>> from foreshock.curvature import ExplicitOperator
    >>> eigsh(ExplicitOperator(torch.diag(torch.tensor([3.0, 1.0, -7.0], dtype=torch.float64)))).values
    array([3.])
    """
    checked(operator, "eigsh")
    n = operator.space.n
    end = _ENDS.get(which)
    if end is None:
        raise UsageError(f"eigsh(which=...): one of {', '.join(_ENDS)}, got {which!r}")
    for name, value in (("k", k), ("max_matvecs", max_matvecs), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"eigsh({name}=...): a positive integer is needed, got {value!r}")
    if k > n:
        raise UsageError(f"eigsh(k={k}): the operator has only {n} eigenvalues")
    if not 0.0 < tol < 1.0:
        raise UsageError(f"eigsh(tol=...): a relative error between 0 and 1 is needed, got {tol!r}")
    if generator is None:
        generator = torch.Generator(operator.device).manual_seed(0)
    return solve(
        operator, k, end, tol=tol, warm=_warm(operator, warm_start), generator=generator, max_matvecs=max_matvecs,
        block=block,
    )


def solve(
    operator: Operator, k: int, end: str, *, tol: float, warm: Sequence[Tensor], generator: torch.Generator,
    max_matvecs: int, block: int = 1, amplified: float = _AMPLIFIED,
) -> EigResult:
    """Returns what `eigsh` does, of arguments that are known to be sound.

    Args:
        warm: start vectors in the operator's coordinates, shape (n,) each.
        amplified: how far a warm start has to be amplified beyond the value found; see `Hidden`.
    """
    n = operator.space.n
    affordable = _BASIS_BYTES // (n * operator.dtype.itemsize)
    extra = _LONG if affordable >= _LONG + 2 * k + 2 * block else _SHORT
    room = max(2 * k + 4 * block, min(2 * k + extra + 2 * block, _MOST_BYTES // (n * operator.dtype.itemsize)))
    krylov = Krylov(operator, room)
    origin = _begin(krylov, warm, block, generator)
    search = _Search(krylov, k, end, tol, Hidden(krylov, origin, amplified), generator)
    search.run(max_matvecs)
    if k > 1 and block == 1 and (n <= _COPIES_SOUGHT or tol < 1e-3):
        search.look_for_copies(max_matvecs)
    return search.result()


def _warm(operator: Operator, given: object) -> list[Tensor]:
    """Returns start vectors in the operator's coordinates, shape (n,) each."""
    if given is None:
        return []
    if isinstance(given, EigResult):
        return [operator.from_parameters(operator.space.take(direction)) for direction in given.directions]
    if isinstance(given, Tensor):
        return [operator.space.take(row) for row in given] if given.dim() == 2 and given.shape[1] == operator.space.n \
            else [operator.space.take(given)]
    vectors = list(given)  # type: ignore[call-overload]
    if vectors and all(isinstance(tensor, Tensor) for tensor in vectors):
        return [operator.space.take(vectors)]
    return [operator.space.take(vector) for vector in vectors]


def _begin(krylov: Krylov, warm: Sequence[Tensor], block: int, generator: torch.Generator) -> str:
    """Admits the start vectors; returns where they come from: "warm", "gradient" or "random"."""
    operator, space = krylov.operator, krylov.operator.space
    gradient = operator.start()
    size = 0.0 if gradient is None else norm(gradient)
    known, origin = [(vector, length) for vector in warm if 0.0 < (length := norm(vector)) < math.inf], "warm"
    if not known and gradient is not None and 0.0 < size < math.inf:
        known, origin = [(gradient, size)], "gradient"
    for vector, length in known:
        start = space.normal(generator).mul_(NOISE / math.sqrt(space.n)).add_(vector, alpha=1.0 / length)
        if origin == "warm" and gradient is not None and 0.0 < size < math.inf:
            start.add_(gradient, alpha=NOISE / size)
        krylov.admit(start)
    origin = origin if krylov.held else "random"
    while krylov.held < min(block, space.n):
        krylov.admit(space.normal(generator))
    return origin


class _Search:
    """One call of `eigsh`."""

    def __init__(
        self, krylov: Krylov, k: int, end: str, tol: float, hidden: Hidden, generator: torch.Generator
    ) -> None:
        self.krylov, self.k, self.end, self.tol, self._hidden = krylov, k, end, tol, hidden
        self.generator = generator
        self.convergence = Convergence(tol)
        self.width = max(krylov.held, 1)
        self._agreed = 0
        self._found: tuple[Ritz, np.ndarray, np.ndarray, np.ndarray] | None = None

    def run(self, max_matvecs: int, at_least: int = 0) -> None:
        """Multiplies until everything wanted has converged, `max_matvecs` products in all at most."""
        krylov, n = self.krylov, self.krylov.operator.space.n
        begun = krylov.matvecs
        while krylov.matvecs < max_matvecs:
            if krylov.exhausted:
                self._go_on()
            elif krylov.full:
                self._restart()
            krylov.step()
            if krylov.processed >= n:
                self._judge(final=True)
                return
            if krylov.processed < self.k:
                continue
            if krylov.exhausted:  # an invariant space: what it holds is exact
                self._judge(final=True)
                return
            done = self._judge()
            if done and krylov.matvecs - begun >= at_least:
                return

    def look_for_copies(self, max_matvecs: int) -> None:
        """Goes on from random directions until one of them brings nothing new to the values wanted."""
        while self._found is not None and self.krylov.processed < self.krylov.operator.space.n:
            ritz, chosen, _, done = self._found
            if not done.all() or self.krylov.matvecs >= max_matvecs:
                return
            before = ritz.values[chosen].copy()
            if self.krylov.held + 8 >= self.krylov.capacity:
                self._restart()
            if not self.krylov.admit(self.krylov.operator.space.normal(self.generator)):
                self._judge(final=True)
                return
            self.convergence, self._agreed = Convergence(self.tol), 0
            self.run(max_matvecs, at_least=2 * (4 + self.width))
            ritz, chosen, _, _ = self._found
            after = ritz.values[chosen]
            size = np.maximum(np.abs(before), self._scale(ritz))
            if np.all(np.abs(after - before) <= 2.0 * self.tol * size):
                return
            self.width += 1

    def result(self) -> EigResult:
        if self._found is None:
            self._judge(final=True)
        assert self._found is not None
        ritz, chosen, errors, done = self._found
        operator = self.krylov.operator
        rows = self.krylov.vectors(ritz.coefficients[:, chosen])
        missing = self.k - len(chosen)  # where the products did not suffice for so many values
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        vectors = tuple(operator.space.pieces(row) for row in rows)
        stands = [operator.to_parameters(row.clone()) for row in rows]
        return EigResult(
            _padded(ritz.values[chosen], missing, math.nan), vectors,
            tuple(operator.space.pieces(row) for row in stands), _padded(ritz.residuals[chosen], missing, math.inf),
            _padded(errors, missing, math.inf), _padded(done, missing, False), self.krylov.matvecs,
            (float(ritz.values[-1]), float(ritz.values[0])), operator.notes,
        )

    def _judge(self, final: bool = False) -> bool:
        ritz = self.krylov.ritz()
        chosen = self._choose(ritz)
        scale = self._scale(ritz)
        errors, done = self.convergence.judge(ritz, chosen, self.krylov.matvecs, scale)
        if len(chosen) < self.k:
            done = np.zeros(len(chosen), dtype=bool)
        if final and self.krylov.exhausted:
            done = np.ones(len(chosen), dtype=bool)
        elif done.all() and not all(
            self._hidden.excluded(ritz, outermost, self.tol) for outermost in self._outermost(chosen)
        ):
            done = np.zeros_like(done)
        self._found = ritz, chosen, errors, done
        self._agreed = self._agreed + 1 if done.all() else 0
        return self._agreed >= (_IN_A_ROW if self.k > 1 else 1)

    def _scale(self, ritz: Ritz) -> float:
        return _SMALL * float(np.max(np.abs(ritz.values), initial=0.0))

    def _outermost(self, chosen: np.ndarray) -> list[int]:
        """Returns which of the chosen pairs have none wanted beyond them."""
        if self.end in ("LA", "SA"):
            return [int(chosen[0])]
        return sorted({int(chosen.min()), int(chosen.max())})

    def _choose(self, ritz: Ritz) -> np.ndarray:
        m = len(ritz.values)
        k = min(self.k, m)
        if self.end == "LA":
            return np.arange(k)
        if self.end == "SA":
            return np.arange(m - 1, m - 1 - k, -1)
        if self.end == "LM":
            return np.argsort(-np.abs(ritz.values), kind="stable")[:k]
        upper = math.ceil(k / 2)
        return np.concatenate([np.arange(upper), np.arange(m - 1, m - 1 - (k - upper), -1)])

    def _go_on(self) -> None:
        """Adds a random direction where the basis spans an invariant space with too few values in it."""
        if self.krylov.full:
            self._restart()
        while not self.krylov.admit(self.krylov.operator.space.normal(self.generator)):
            pass  # one in the span has probability 0 below dimension n

    def _restart(self) -> None:
        """Keeps what is wanted and as much again around it; widens the search where wanted values crowd."""
        krylov = self.krylov
        ritz = krylov.ritz()
        chosen = self._choose(ritz)
        room = krylov.capacity - krylov.waiting
        extra = max(1, min(self.k + 4, room // 2 - len(chosen)))
        rest = [i for i in _next(ritz, self.end, chosen) if i not in set(chosen.tolist())][:extra]
        kept = np.concatenate([chosen, np.array(rest, dtype=int)])[: max(1, room - 4)]
        values, residuals = ritz.values[chosen], ritz.residuals[chosen]
        crowded = len(values) > 1 and bool(np.any(np.abs(np.diff(values)) <= residuals[1:] + residuals[:-1]))
        krylov.restart(ritz.coefficients[:, kept])
        self._hidden.forget()
        if crowded and self.width < 4 and krylov.admit(krylov.operator.space.normal(self.generator)):
            self.width += 1


def _padded(found: np.ndarray, missing: int, value: float | bool) -> np.ndarray:
    return np.concatenate([found, np.full(missing, value, dtype=found.dtype)])


def _next(ritz: Ritz, end: str, chosen: np.ndarray) -> list[int]:
    """Returns the indices of the Ritz values in the order in which they are worth keeping."""
    m = len(ritz.values)
    if end == "LA":
        return list(range(m))
    if end == "SA":
        return list(range(m - 1, -1, -1))
    if end == "LM":
        return [int(i) for i in np.argsort(-np.abs(ritz.values), kind="stable")]
    return [i for pair in zip(range(m), range(m - 1, -1, -1), strict=True) for i in pair]


