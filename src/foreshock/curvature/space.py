"""The flat layout of a list of tensors: solvers work on one vector, users on tensors shaped like parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foreshock.errors import UsageError

# Elements brought to double at a time where an inner product is accumulated in double: small enough for the cache.
_CHUNK = 1 << 13


class Space:
    """Vectors of n numbers that stand for tensors shaped like `params`, in their order.

    Computation is in float64 where a parameter is float64, else in float32, whatever the parameters are stored in, on
    the device of the first parameter.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        if isinstance(params, Tensor):
            params = [params]
        params = tuple(params)
        if not params:
            raise UsageError("params: at least one parameter is needed, got none")
        for i, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise UsageError(f"params[{i}] must be a tensor, got {type(param).__name__}")
            if not param.is_floating_point():
                raise UsageError(f"params[{i}] must be real floating point, got {param.dtype}")
        if len({id(param) for param in params}) < len(params):
            raise UsageError("params: the same tensor is listed twice; a tied weight belongs there once")
        self.params: tuple[Tensor, ...] = params
        self.shapes = [param.shape for param in params]
        self.sizes = [param.numel() for param in params]
        self.n = sum(self.sizes)
        self.device = params[0].device
        self.dtype = torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32
        if self.n == 0:
            raise UsageError("params: all of them are empty")

    def zeros(self) -> Tensor:
        return torch.zeros(self.n, dtype=self.dtype, device=self.device)

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Returns one vector (n,) of `tensors`, which are shaped like the parameters; None counts as zeros.

        Raises:
            UsageError: another number of tensors, or other shapes.
        """
        if len(tensors) != len(self.shapes):
            known = len(self.shapes)
            raise UsageError(f"a vector has one tensor for each of the {known} parameters, got {len(tensors)}")
        flat = torch.empty(self.n, dtype=self.dtype, device=self.device)
        for i, (slot, tensor) in enumerate(zip(torch.split(flat, self.sizes), tensors, strict=True)):
            if tensor is None:
                slot.zero_()
            elif tensor.shape != self.shapes[i]:
                raise UsageError(
                    f"tensor {i} of a vector must be shaped like its parameter, {tuple(self.shapes[i])}, "
                    f"got {tuple(tensor.shape)}"
                )
            else:
                slot.view(self.shapes[i]).copy_(tensor.detach())
        return flat

    def split(self, flat: Tensor) -> list[Tensor]:
        """Returns the vector as tensors shaped and typed like the parameters; views where the type allows."""
        pieces = zip(torch.split(flat, self.sizes), self.params, strict=True)
        return [piece.view(param.shape).to(dtype=param.dtype, device=param.device) for piece, param in pieces]

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Returns the vector as tensors shaped like the parameters, in the type of computation; always views."""
        return [piece.view(shape) for piece, shape in zip(torch.split(flat, self.sizes), self.shapes, strict=True)]

    def take(self, vector: Tensor | Sequence[Tensor]) -> Tensor:
        """Returns a vector, given flat or as tensors, as a flat one.

        Raises:
            UsageError: a wrong length or shape.
        """
        if not isinstance(vector, Tensor):
            return self.flatten(vector)
        if vector.shape != (self.n,):
            if len(self.shapes) == 1 and vector.shape == self.shapes[0]:
                return self.flatten([vector])
            raise UsageError(
                f"a flat vector must have shape ({self.n},), got {tuple(vector.shape)}; give a list of tensors shaped "
                "like the parameters otherwise"
            )
        return vector.detach().to(dtype=self.dtype, device=self.device)

    def normal(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns a vector of independent standard normal numbers; by default of a generator of its own, seeded 0."""
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(
            self.n, dtype=self.dtype, device=generator.device, generator=generator
        ).to(self.device)

    def rademacher(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns a vector of independent signs, +1 or -1 with equal chance."""
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(0)
        signs = torch.randint(0, 2, (self.n,), device=generator.device, generator=generator)
        return (signs.to(self.device, self.dtype) * 2).sub_(1)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields tensors of one shape piece by piece, flat and in float64, small enough to stay in the cache."""
    size = _CHUNK << 2 if tensors[0].is_cpu else _CHUNK << 11
    for pieces in zip(*(torch.split(tensor.reshape(-1), size) for tensor in tensors), strict=True):
        yield tuple(piece.double() for piece in pieces)


def dots(rows: Tensor, vector: Tensor) -> Tensor:
    """Returns rows @ vector, shape (m,), in float64: float32 numbers are multiplied and added up in double.

    Args:
        rows: shape (m, n).
        vector: shape (n,).
    """
    if vector.dtype == torch.float64:
        return rows @ vector
    if vector.device.type == "mps":
        return (rows @ vector).cpu().double()
    chunk = _CHUNK if vector.is_cpu else _CHUNK << 9
    total = torch.zeros(rows.shape[0], dtype=torch.float64, device=vector.device)
    for some, part in zip(torch.split(rows, chunk, 1), torch.split(vector, chunk), strict=True):
        total.addmv_(some.double(), part.double())
    return total


def dot(a: Tensor, b: Tensor) -> float:
    """Returns the inner product of two flat vectors, accumulated in float64."""
    return float(dots(a.unsqueeze(0), b)[0])


def norm(a: Tensor) -> float:
    """Returns the Euclidean norm of a flat vector, accumulated in float64."""
    return float(torch.linalg.vector_norm(a, dtype=None if a.device.type == "mps" else torch.float64))
