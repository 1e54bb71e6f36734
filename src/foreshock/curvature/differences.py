"""Products from differences of gradients: for smooth losses that cannot be differentiated twice, at half the price.

    H v  =  (g(theta + e v/|v|) - g(theta)) |v| / e

in the precision of the parameters, e an absolute length. Measured in float32 (one-sided, e = 1e-4 .. 2e-4): 1.05
gradients a product at the memory of one gradient; top eigenvalues of a GPT and of a GELU network within 0.4 %. Where
the loss has kinks (ReLU, max pooling) the same quotient is off by factors, so it is refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from foreshock.curvature.anatomy import Anatomy, anatomy
from foreshock.curvature.graph import moved
from foreshock.curvature.harmless import muted
from foreshock.curvature.objective import Live, Repeatable
from foreshock.curvature.space import Space, norm
from foreshock.errors import UsageError

# Length of the move. One-sided float32: the best of 1e-5 .. 1e-2 on a GPT's and a GELU network's stiff directions,
# where truncation and rounding balance; float64 scaled by the square root of the ratio of the machine epsilons.
# Central: the best of the same range, and the cube root.
_STEP = {
    (torch.float32, False): 2e-4,
    (torch.float64, False): 1e-8,
    (torch.float32, True): 1e-3,
    (torch.float64, True): 1e-5,
}

# Two steps, a factor of 4 apart, have to agree to this on the first direction, plus what rounding alone does: gradients
# repeat to about _ROUNDING times their length. Along the gradient smooth nets agree to 4e-4 (a GPT, a GELU network),
# ReLU networks to 0.04 and 0.05; along random directions the smooth ones are within the rounding, the others twice
# beyond it.
_AGREE = 0.02
# Coordinates that are compared, evenly spread: more would cost another vector of memory.
_COMPARED = 1 << 16
_ROUNDING = {torch.float32: 2e-6, torch.float64: 4e-15}


class KinkedError(UsageError):
    """A loss whose gradient jumps, so that its differences say nothing about the second derivative."""


class Differences:
    """Products from gradients at shifted parameters; the parameters are put back bit for bit.

    Args:
        objective: the loss.
        space: the layout of the parameters.
        central: takes the gradient on both sides: twice the price, the error of second order in the step.
        smooth: the loss is known to be smooth from before.

    Attributes:
        agreement: relative difference of the products with steps e and e/4 along the first direction; None when
            unchecked.

    Raises:
        UsageError: 16-bit parameters or operations, whose gradients are too coarse.
        KinkedError: the loss has kinks.
    """

    def __init__(self, objective: Repeatable, space: Space, *, central: bool = False, smooth: bool = False) -> None:
        self.objective: Live | Repeatable = objective
        self.name = "central differences of gradients" if central else "one-sided differences of gradients"
        self._space = space
        self._central = central
        self._smooth = smooth
        self._facts: Anatomy | None = None
        self.on_smooth: Callable[[], None] = _nothing
        self.agreement: float | None = None
        for i, param in enumerate(space.params):
            if param.dtype not in (torch.float32, torch.float64):
                raise UsageError(
                    f"params[{i}] is {param.dtype}: differences of 16-bit gradients are noise; use route='kept', or "
                    "float32 weights"
                )
            if not param.is_leaf:
                raise UsageError(
                    f"params[{i}] is computed from something else, so it cannot be moved; use route='kept'"
                )
        self._kind = min((param.dtype for param in space.params), key=lambda dtype: torch.finfo(dtype).bits)
        self._versions = [param._version for param in space.params]
        self.loss, self.gradient = self._gradient()
        assert self._facts is not None
        self.facts = self._facts
        if self.facts.low_precision is not None:
            raise UsageError(
                f"the loss is computed in {self.facts.low_precision}: differences of such gradients are noise; "
                "switch autocast off in the closure, or use route='kept'"
            )
        if self.facts.kinks and not smooth:
            raise KinkedError(
                f"differences of gradients need a smooth loss, but this one has kinks: {', '.join(self.facts.kinks)}; "
                "they can be off by a factor of 20 there; use route='kept' or 'fresh'"
            )

    @property
    def step(self) -> float:
        """Length of the move in parameters."""
        return _STEP[self._kind, self._central]

    @property
    def noise(self) -> float:
        """Length of what rounding adds to the product with a unit vector."""
        return _ROUNDING[self._kind] * norm(self.gradient) / self.step

    def multiply(self, flat: Tensor) -> Tensor:
        if any(param._version != seen for param, seen in zip(self._space.params, self._versions, strict=True)):
            raise UsageError(moved("the first gradient was taken"))
        length = norm(flat)
        if length == 0.0 or length != length or length == float("inf"):
            return flat * 0.0
        if self._smooth:
            return self._quotient(flat, length, self.step)
        every = -(-flat.shape[0] // _COMPARED)
        finer = self._quotient(flat, length, self.step / 4)[::every].clone()
        product = self._quotient(flat, length, self.step)
        self._compare(finer, product[::every], length / every**0.5)
        return product

    def _quotient(self, flat: Tensor, length: float, step: float) -> Tensor:
        ahead = self._shifted(flat, step / length)
        if self._central:
            behind, reach = self._shifted(flat, -step / length), 2 * step
        else:
            behind, reach = self.gradient, step
        return ahead.sub_(behind).mul_(length / reach)

    def _shifted(self, flat: Tensor, factor: float) -> Tensor:
        """Returns the gradient at theta + factor * v, shape (n,)."""
        params = self._space.params
        saved = [param.detach().clone() for param in params]
        try:
            for param, old, piece in zip(params, saved, self._space.split(flat), strict=True):
                torch.add(old, piece, alpha=factor, out=param.data)  # .data: no version counter moves
            return self._gradient()[1]
        finally:
            for param, old in zip(params, saved, strict=True):
                param.data.copy_(old)

    def _gradient(self) -> tuple[float, Tensor]:
        total: list[Tensor] = []
        losses: list[tuple[Tensor, float]] = []

        def visit(loss: Tensor, weight: float) -> None:
            facts = self._facts
            if facts is None or facts.hooks:
                facts = self._facts = anatomy(loss, self._space.params)
            with muted(facts.hooks) if facts.hooks else nullcontext():
                found = torch.autograd.grad(loss, self._space.params, allow_unused=True)
            if all(grad is None for grad in found):
                raise UsageError("the loss does not depend on any of the parameters")
            flat = self._space.flatten(found)
            losses.append((loss.detach(), weight))
            if total:
                total[0].add_(flat, alpha=weight)
            else:
                total.append(flat if weight == 1.0 else flat.mul_(weight))

        weight = self.objective.sweep(visit)
        mean = sum(float(loss) * share for loss, share in losses) / weight
        return mean, total[0] if weight == 1.0 else total[0].div_(weight)

    def _compare(self, finer: Tensor, coarser: Tensor, length: float) -> None:
        apart, size = norm(finer - coarser), max(norm(finer), norm(coarser))
        noise = 4 * self.noise * length
        self.agreement = apart / size if size > 0 else 0.0
        if not apart <= _AGREE * size + noise:
            raise KinkedError(
                f"differences of gradients with steps {self.step:g} and {self.step / 4:g} disagree by "
                f"{self.agreement:.0%}: "
                "the loss has kinks, or is not the same each time it is computed; use route='kept' or 'fresh'"
            )
        self._smooth = True
        self.on_smooth()

    def release(self) -> None:
        """Does nothing: there is no graph."""


def _nothing() -> None:
    return None
