"""Shares of a step along directions of one's choice: mu_G and the class-common one of a head, a top eigenvector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError

__all__ = ["Projection", "project"]


@dataclass(frozen=True, slots=True)
class Projection:
    """What the part of a step along a direction did.

    Attributes:
        of: the name of the tensor that was projected, "" for all.
        value: <e, part>, in units of the loss.
        share: of <e, delta> of what was projected.
        energy: |part|^2 of |delta|^2 of what was projected.
    """

    of: str
    value: float
    share: float
    energy: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def project(
    directions: Mapping[str, Any],
    names: Sequence[str],
    gradient: Sequence[Tensor | None],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> dict[str, Projection]:
    """Returns the part of a step along each direction.

    Args:
        directions: {"mu_G": ("head.weight", mu)} for one tensor, or {"u1": [one tensor for each parameter, or None]}
            for all. For one tensor a vector of shape (d,) takes the part of every row of a (K, d) weight along it,
            one of shape (K, 1) the part of every column; a tensor of the weight's own shape is a single direction.
            Its length does not matter.
        names: of the tensors.
        gradient: e, the path gradient.
        before, after: the values.

    Raises:
        UsageError: a name that is none, or shapes that do not go together.
    """
    result = {}
    for label, given in directions.items():
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
            name, vector = given
            if name not in names:
                raise UsageError(f"attribute(directions): {label!r} is of {name!r}; the tensors are {', '.join(names)}")
            at = list(names).index(name)
            result[label] = _of_tensor(label, name, vector, gradient[at], before[at], after[at])
        elif isinstance(given, Sequence) and len(given) == len(names) and not isinstance(given, str):
            result[label] = _of_all(label, given, gradient, before, after)
        else:
            raise UsageError(
                f"attribute(directions): {label!r} must be (name of a tensor, vector) or a list of {len(names)} "
                "tensors, one for each parameter"
            )
    return result


def _of_tensor(
    label: str, name: str, vector: Any, e: Tensor | None, before: Tensor, after: Tensor
) -> Projection:  # fmt: skip
    delta = after.double() - before.double()
    direction = torch.as_tensor(vector).detach().to(delta)
    try:
        shape = torch.Size((direction + delta).shape)
    except RuntimeError:
        shape = torch.Size()
    if shape != delta.shape or not bool(direction.any()):
        raise UsageError(
            f"attribute(directions): {label!r} has shape {tuple(direction.shape)}, {name} {tuple(delta.shape)}; a "
            "vector along the last dimension, one with 1 for what is projected each by itself, or the same shape, and "
            "not all zeros"
        )
    direction = direction.reshape((1,) * (delta.dim() - direction.dim()) + tuple(direction.shape))
    over = [i for i, size in enumerate(direction.shape) if size > 1] or list(range(delta.dim()))
    amount = (delta * direction).sum(dim=over, keepdim=True) / direction.square().sum()
    part = amount * direction
    gradient = torch.zeros_like(delta) if e is None else e.to(delta)
    return _shares(
        name, (gradient * part).sum(), (gradient * delta).sum(), part.square().sum(), delta.square().sum()
    )  # fmt: skip


def _of_all(
    label: str,
    vectors: Sequence[Tensor | None],
    gradient: Sequence[Tensor | None],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> Projection:
    along = slope = total = length = size = 0.0
    for vector, e, start, end in zip(vectors, gradient, before, after, strict=True):
        delta = end.double() - start.double()
        size += float(delta.square().sum())
        if e is not None:
            total += float((e.to(delta) * delta).sum())
        if vector is None:
            continue
        if vector.shape != delta.shape:
            raise UsageError(
                f"attribute(directions): {label!r} has a tensor of shape {tuple(vector.shape)} for a parameter of "
                f"shape {tuple(delta.shape)}"
            )
        u = vector.detach().to(delta)
        along += float((u * delta).sum())
        length += float(u.square().sum())
        slope += 0.0 if e is None else float((e.to(delta) * u).sum())
    if not length:
        raise UsageError(f"attribute(directions): {label!r} is all zeros")
    return _shares("", slope * along / length, total, along * along / length, size)


def _shares(of: str, value: Any, total: Any, energy: Any, size: Any) -> Projection:
    value, total, energy, size = float(value), float(total), float(energy), float(size)
    return Projection(of, value, value / total if total else 0.0, energy / size if size else 0.0)
