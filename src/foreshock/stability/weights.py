"""Edge weights of a live optimizer: what it multiplies a gradient by, in units of its edge of stability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability.blocks import Block
from foreshock.stability.filters import Filter
from foreshock.stability.group import host, lifted
from foreshock.stability.parts import Parts
from foreshock.stability.reading import readings
from foreshock.stability.registry import Reading, factor
from foreshock.stability.twins import members, parameters, split

__all__ = ["EdgeWeights", "edge_weights"]

Weight = Tensor | Block
CAP = 1e30  # of a weight, so that its root times zero is zero and twice its product with a curvature is finite
FORMAL = (
    "the step is bounded whatever the gradient, so this chi is a formality and no alarm: look at the sharpness in the "
    "method's own norm (generalized_sharpness) over the gradient's dual norm, against 2/lr"
)
APPROXIMATE = "the second moment forgets fast (1 - beta2 > .05): it follows the oscillation, and the edge lies above 1"


@dataclass(frozen=True, slots=True, eq=False)
class EdgeWeights:
    """W = lr q/((2 - lr omega) P) for each parameter: the edge is at chi = lambda_max(W^1/2 (H + l2 I) W^1/2) = 1.

    Every sequence follows the optimizer's parameters, group after group. A parameter that the step leaves alone (no
    gradient, frozen) has W = 0.

    Attributes:
        params: the parameters themselves.
        tensors: W, a tensor of the parameter's shape in float32 or better (do not write to it), or a `Block`.
        gains: q, the gain of the momentum filter for an oscillation of period 2.
        lrs: step size that multiplies the filtered gradient over P, after the optimizer's own adjustments.
        l2: coupled decay, to be added to H (after its sign is turned, where `maximize`).
        omega: decoupled decay per unit of `lrs`: the step shrinks the parameter by 1 - lr omega.
        factors: W P, that is lr q/(2 - lr omega) times the factor of clipping.
        floors: the least value of P (from eps), 0 where unknown.
        maximize: the optimizer climbs, so that -H takes the place of H.
        formals: whether the threshold is a formality, for each parameter.
        approximate: P is not slow against the oscillation.
        notes: what to know about these numbers.
        stalled: P of the parameters whose step size is 0 just now (the first step of a warm-up), by position.
        corrections: the factor of P that corrects the momentum for its bias, 1 where there is none.
        parts: how eps enters P and how P decays without gradients; None where it has another form.
    """

    params: tuple[Tensor, ...]
    tensors: list[Weight]
    gains: tuple[float, ...]
    lrs: tuple[float, ...]
    l2: tuple[float, ...]
    omega: tuple[float, ...]
    factors: tuple[float, ...]
    floors: tuple[float, ...]
    maximize: bool
    formals: tuple[bool, ...]
    approximate: bool
    notes: tuple[str, ...]
    stalled: Mapping[int, Weight]
    corrections: tuple[float, ...]
    parts: tuple[Parts | None, ...]

    @property
    def formal(self) -> bool:
        """Returns whether any parameter's threshold is a formality."""
        return any(self.formals)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Returns the threshold on S = lambda_max(P^-1 (H + l2 I)) for each parameter: (2 - lr omega)/(lr q)."""
        return tuple(1 / each if each else float("inf") for each in self.factors)

    @property
    def denominators(self) -> list[Weight]:
        """Returns P for each parameter, infinite where the step leaves an entry alone."""
        found: list[Weight] = []
        for place, (each, number) in enumerate(zip(self.tensors, self.factors, strict=True)):
            if place in self.stalled:
                found.append(self.stalled[place])
            elif isinstance(each, Tensor):
                found.append((number / each).masked_fill(each == 0, float("inf")))
            else:
                found.append(each.reciprocal(number))
        return found

    @property
    def floored(self) -> list[Tensor]:
        """Returns masks of the entries whose denominator is within twice its floor: dead or nearly dead coordinates."""
        masks = []
        for P, param, floor in zip(self.denominators, self.params, self.floors, strict=True):
            if isinstance(P, Tensor) and floor:
                masks.append(2 * floor >= P)
            else:
                masks.append(torch.zeros_like(param, dtype=torch.bool))
        return masks

    def linear(self) -> EdgeWeights:
        """Returns the weights with W = 0 where the threshold is a formality: chi of the rest while that stands still.

        With Muon on the matrices and AdamW on everything else this leaves AdamW's own edge.
        """
        tensors = [
            _constant(param, 0.0) if formal else weight
            for param, weight, formal in zip(self.params, self.tensors, self.formals, strict=True)
        ]
        factors = tuple(0.0 if formal else each for each, formal in zip(self.factors, self.formals, strict=True))
        notes = tuple(note for note in self.notes if note != FORMAL)
        return replace(self, tensors=tensors, factors=factors, formals=(False,) * len(factors), notes=notes)

    def apply(self, vector: Sequence[Tensor], power: float = 1.0) -> list[Tensor]:
        """Returns W^power v for v shaped like the parameters; where W is 0 the result is 0, for any power.

        Errors: UsageError where the vector does not have one tensor for each parameter.
        """
        if len(vector) != len(self.tensors):
            raise UsageError(f"vector has {len(vector)} tensors for {len(self.tensors)} parameters")
        result: list[Tensor] = [torch.empty(0)] * len(vector)
        plain = [place for place, weight in enumerate(self.tensors) if isinstance(weight, Tensor)]
        if plain:
            weights = _powers([cast(Tensor, self.tensors[place]) for place in plain], power)
            scaled = torch._foreach_mul(weights, [vector[place] for place in plain])
            for place, each in zip(plain, scaled, strict=True):
                result[place] = each
        for place, weight in enumerate(self.tensors):
            if not isinstance(weight, Tensor):
                result[place] = weight.power(vector[place], power)
        return result


def edge_weights(
    optimizer: Optimizer | Sequence[Optimizer],
    grads: Sequence[Tensor | None] | None = None,
    *,
    max_norm: float | None = None,
) -> EdgeWeights:
    """Returns the edge weights of an optimizer, or of several over disjoint parameters, as they are set now.

    Denominators, bias corrections, schedules and time-varying momentum follow torch's code; third-party classes are
    read by name, by a rule of your own (`register`), or, when unknown, by a Nyquist probe on a copy. Nothing of the
    optimizer is touched.

    Args:
        optimizer: one or several torch optimizers.
        grads: gradients of the step about to be taken, in the order of the groups, None where a parameter has none:
            moments are then those that have seen them. True ones: divide by the loss scale of a GradScaler before.
            Without, the state is read as stored after the last step.
        max_norm: the gradients are going to be clipped together to this norm: W shrinks by min(1, max_norm/|g|).

    Errors: UsageError before the first step without gradients, for optimizers without a step size (LBFGS), for
    complex parameters, and for unknown optimizers that no probe can read; the message says what to do.

    Source: Cohen et al. 2022, arXiv 2207.14484; W is derived from it for mixed optimizers and decoupled decay.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> round(edge_weights(torch.optim.SGD([weight], lr=0.5, momentum=0.9)).thresholds[0], 6)
    7.6
    """
    optimizers = members(optimizer)
    if max_norm is not None and (grads is None or not max_norm > 0):
        raise UsageError(f"max_norm={max_norm} needs the gradients that it clips: pass grads, and a norm above 0")
    shares = split(optimizers, grads)
    params = tuple(param for each in optimizers for param in parameters(each))
    clip = 1.0 if max_norm is None else _clipped(grads or (), max_norm)
    if clip < 1:  # the moments see the clipped gradients
        clipped = [None if grad is None else grad.detach() * clip for grad in grads or ()]
        shares = split(optimizers, clipped)
    read: list[Reading | None] = [each for one, share in shares for each in readings(one, share)]
    climbing = {bool(group.get("maximize")) for each in optimizers for group in each.param_groups}
    if len(climbing) > 1:
        raise UsageError("some groups maximize and others minimize: such a game has no chi; read them one by one")
    factors = tuple(factor(each) * clip if each else 0.0 for each in read)
    notes = dict.fromkeys(note for each in read if each for note in each.notes)
    formals = tuple(bool(each and each.formal) for each in read)
    approximate = any(each.approximate for each in read if each)
    notes |= {FORMAL: None} if any(formals) else {}
    notes |= {APPROXIMATE: None} if approximate else {}
    tensors, stalled = _weights(params, read, factors)
    return EdgeWeights(
        params=params,
        tensors=tensors,
        gains=tuple(_gain(each) for each in read),
        lrs=tuple(each.lr if each else 0.0 for each in read),
        l2=tuple(each.l2 if each else 0.0 for each in read),
        omega=tuple(each.decay / each.lr if each and each.lr else 0.0 for each in read),
        factors=factors,
        floors=tuple(each.floor if each else 0.0 for each in read),
        maximize=True in climbing,
        formals=formals,
        approximate=approximate,
        notes=tuple(notes),
        stalled=stalled,
        corrections=tuple(each.correction if each else 1.0 for each in read),
        parts=tuple(each.parts if each else None for each in read),
    )


def _weights(
    params: Sequence[Tensor], read: Sequence[Reading | None], factors: Sequence[float]
) -> tuple[list[Weight], dict[int, Weight]]:
    """Turns denominators into weights, tensors in their own memory; those of a step of size 0 come beside."""
    result: list[Weight] = []
    stalled: dict[int, Weight] = {}
    owned: list[Tensor] = []
    numbers: list[float] = []
    dead: list[tuple[Tensor, Tensor]] = []
    for param, reading, number in zip(params, read, factors, strict=True):
        P = float("inf") if reading is None else reading.denominator
        if not isinstance(P, (int, float)) and P.shape != param.shape:
            raise UsageError(
                f"a rule gave a denominator of shape {tuple(P.shape)} for a parameter of {tuple(param.shape)}"
            )
        if reading is not None and number == 0:
            stalled[len(result)] = _constant(param, P) if isinstance(P, (int, float)) else P
            P = float("inf")
        if isinstance(P, Tensor):
            if reading is None or not reading.floor:  # 0/0 in the optimizer itself: counted as not moving
                dead.append((P, P == 0))
            owned.append(P)
            numbers.append(number)
            result.append(P)
        elif isinstance(P, (int, float)):
            result.append(_constant(param, min(number / P, CAP) if P else 0.0))
        else:
            result.append(P.reciprocal(number))
    if owned:
        torch._foreach_div_(owned, numbers)
        torch._foreach_reciprocal_(owned)
        torch._foreach_clamp_max_(owned, CAP)
    for each, mask in dead:
        each.masked_fill_(mask, 0.0)
    return result, stalled


def _constant(param: Tensor, value: float) -> Tensor:
    """Returns a tensor of one value in the parameter's shape; a plain one takes the memory of a single number."""
    working = torch.promote_types(param.dtype, torch.float32)
    if hasattr(param, "to_local"):
        return torch.full_like(param.detach(), value, dtype=working)
    return torch.full((), value, dtype=working, device=param.device).expand(param.shape)


def _powers(weights: list[Tensor], power: float) -> list[Tensor]:
    if power == 1.0:
        return weights
    if power == 0.5:
        return list(torch._foreach_sqrt(weights))
    raised = list(torch._foreach_pow(weights, power))
    if power > 0:
        return raised
    return [each.masked_fill(weight == 0, 0.0) for each, weight in zip(raised, weights, strict=True)]


def _gain(reading: Reading | None) -> float:
    """Returns q; for a filter, what takes its place where stability is lost first."""
    if reading is None or not reading.lr:
        return 0.0
    if not isinstance(reading.gain, Filter):
        return reading.gain
    return factor(reading) * (2.0 - reading.decay) / reading.lr


def _clipped(grads: Sequence[Tensor | None], most: float) -> float:
    values = [grad.detach() for grad in grads if grad is not None]
    if any(hasattr(each, "to_local") for each in values):
        raise UsageError("max_norm needs the norm of all gradients, and these are shards: give grads as clipped")
    plain = [each.coalesce().values() if each.is_sparse else each for each in values]
    total = math.hypot(*host(torch.linalg.vector_norm(lifted(each, each)) for each in plain))
    return min(1.0, most / total) if total > 0 else 1.0
