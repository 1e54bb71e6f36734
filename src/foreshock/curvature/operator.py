"""What every curvature is: a symmetric linear operator on tensors shaped like the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from foreshock.curvature.space import Space
from foreshock.errors import MissingExtraError, UsageError

DENSE_LIMIT = 8192  # parameters up to which `dense()` builds a matrix (512 MiB in float64)


@runtime_checkable
class Block(Protocol):
    """A symmetric positive semidefinite operator on one parameter, such as a Kronecker product."""

    def power(self, x: Tensor, exponent: float) -> Tensor:
        """Returns the operator's power applied to `x`, a tensor shaped like the parameter."""
        ...


class Operator(ABC):
    """A symmetric operator A on R^n, n the number of elements of `params`.

    `A @ v` takes and returns a list of tensors shaped like the parameters, or a flat tensor of shape (n,). Operators
    add up, scale (`2 * A`, `-A`), are conditioned (`A.conditioned(W)` is W^(1/2) A W^(1/2)) and restricted
    (`A.block(some_params)`).

    Attributes:
        matvecs: products this operator has been asked for so far.
        notes: how the products are obtained and what a reader of their results has to know.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.space = Space(params)
        self.matvecs = 0

    @abstractmethod
    def _product(self, flat: Tensor) -> Tensor:
        """Returns A v for a flat vector; a new tensor."""

    def multiply(self, flat: Tensor) -> Tensor:
        """Returns A v, shape (n,), for v of shape (n,)."""
        self.matvecs += 1
        return self._product(flat)

    @overload
    def __matmul__(self, vector: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, vector: Sequence[Tensor]) -> list[Tensor]: ...
    def __matmul__(self, vector: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        product = self.multiply(self.space.take(vector))
        if not isinstance(vector, Tensor):
            return self.space.pieces(product)
        return product.view(vector.shape)

    @property
    def params(self) -> tuple[Tensor, ...]:
        return self.space.params

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, int]:
        return self.space.n, self.space.n

    @property
    def dtype(self) -> torch.dtype:
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        return self.space.device

    def start(self) -> Tensor | None:
        """Returns a direction that a solver does well to begin with, the gradient's, shape (n,); None without one."""
        return None

    def to_parameters(self, flat: Tensor) -> Tensor:
        """Returns the step in parameters that a vector of this operator's coordinates stands for."""
        return flat

    def from_parameters(self, flat: Tensor) -> Tensor:
        """Returns the vector in this operator's coordinates that stands for a step in parameters."""
        return flat

    def conditioned(self, weights: Any) -> Conditioned:
        """Returns W^(1/2) A W^(1/2).

        Args:
            weights: W: `EdgeWeights`, or a list with, for each parameter, a tensor of non-negative numbers shaped like
                it or a `Block`.
        """
        return Conditioned(self, weights)

    def block(self, params: Sequence[Tensor]) -> Operator:
        """Returns the diagonal block of A that belongs to some of its parameters."""
        return Restricted(self, params)

    def to_scipy(self) -> Any:
        """Returns a `scipy.sparse.linalg.LinearOperator` on numpy vectors of n numbers.

        Raises:
            MissingExtraError: scipy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise MissingExtraError("to_scipy() needs scipy: pip install scipy") from error
        import numpy as np

        kind = np.float64 if self.dtype == torch.float64 else np.float32

        def matvec(vector: Any) -> Any:
            flat = torch.from_numpy(np.array(vector, dtype=kind).reshape(-1)).to(self.device)
            return self.multiply(flat).cpu().numpy()

        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=kind)

    def dense(self) -> Tensor:
        """Returns A as a matrix, shape (n, n), by n products; for small problems and tests.

        Raises:
            UsageError: n is above 8192.
        """
        if self.space.n > DENSE_LIMIT:
            raise UsageError(f"dense(): a matrix of {self.space.n} parameters is too large; the limit is {DENSE_LIMIT}")
        eye = torch.eye(self.space.n, dtype=self.dtype, device=self.device)
        return torch.stack([self.multiply(row) for row in eye])

    def __add__(self, other: Operator) -> Operator:
        return Sum(self, other) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return Sum(self, Scaled(other, -1.0)) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: float) -> Operator:
        return Scaled(self, float(factor)) if isinstance(factor, (int, float)) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.space.n}, dtype={str(self.dtype).removeprefix('torch.')})"


def checked(operator: object, call: str) -> None:
    """Raises for what is no operator.

    Raises:
        UsageError: names the call that it was given to.
    """
    if not isinstance(operator, Operator):
        raise UsageError(
            f"{call}(operator): an operator is needed, such as Hessian(loss, params) or ExplicitOperator(matrix), got "
            f"{type(operator).__name__}"
        )


class ExplicitOperator(Operator):
    """The operator of a symmetric matrix, shape (n, n), on one parameter of n elements or on `params`."""

    def __init__(self, matrix: Tensor, params: Sequence[Tensor] | None = None) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise UsageError(f"matrix: must be square, got shape {tuple(matrix.shape)}")
        super().__init__([matrix[0]] if params is None else params)
        if self.space.n != matrix.shape[0]:
            raise UsageError(f"matrix: of shape {tuple(matrix.shape)} for {self.space.n} parameters")
        self.matrix = matrix

    def _product(self, flat: Tensor) -> Tensor:
        return self.matrix @ flat


class Diagonal(Operator):
    """The operator that multiplies by numbers: one for each parameter tensor, or tensors shaped like them."""

    def __init__(self, params: Sequence[Tensor], values: Sequence[float | Tensor]) -> None:
        super().__init__(params)
        if len(values) != len(self.params):
            raise UsageError(f"values: one for each of the {len(self.params)} parameters, got {len(values)}")
        self._values = self.space.flatten(
            [torch.as_tensor(v, dtype=self.dtype).expand(p.shape) for v, p in zip(values, self.params, strict=True)]
        )

    def _product(self, flat: Tensor) -> Tensor:
        return self._values * flat


class Sum(Operator):
    """A + B, on the same parameters."""

    def __init__(self, left: Operator, right: Operator) -> None:
        super().__init__(left.params)
        if [id(p) for p in left.params] != [id(p) for p in right.params]:
            raise UsageError("A + B: the operators are on different parameters, or on the same in another order")
        self.left, self.right = left, right

    def _product(self, flat: Tensor) -> Tensor:
        return self.left.multiply(flat) + self.right.multiply(flat)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.left.notes, *self.right.notes)))

    def start(self) -> Tensor | None:
        first = self.left.start()
        return first if first is not None else self.right.start()


class _Wrapping(Operator):
    """An operator made of another one."""

    def __init__(self, inner: Operator, params: Sequence[Tensor] | None = None) -> None:
        super().__init__(inner.params if params is None else params)
        self.inner = inner

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes


class Scaled(_Wrapping):
    """A number times A."""

    def __init__(self, inner: Operator, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def _product(self, flat: Tensor) -> Tensor:
        return self.inner.multiply(flat) * self.factor

    def start(self) -> Tensor | None:
        return self.inner.start()


class Restricted(_Wrapping):
    """The diagonal block of A on some of its parameters."""

    def __init__(self, inner: Operator, params: Sequence[Tensor]) -> None:
        super().__init__(inner, params)
        places = {id(param): i for i, param in enumerate(inner.params)}
        if any(id(param) not in places for param in self.params):
            raise UsageError("block(params): a parameter that the operator is not on")
        self._places = [places[id(param)] for param in self.params]

    def _product(self, flat: Tensor) -> Tensor:
        whole: list[Tensor | None] = [None] * len(self.inner.params)
        for place, piece in zip(self._places, self.space.pieces(flat), strict=True):
            whole[place] = piece
        product = self.inner.space.pieces(self.inner.multiply(self.inner.space.flatten(whole)))
        return self.space.flatten([product[place] for place in self._places])

    def start(self) -> Tensor | None:
        whole = self.inner.start()
        if whole is None:
            return None
        pieces = self.inner.space.pieces(whole)
        return self.space.flatten([pieces[place] for place in self._places])


class Conditioned(_Wrapping):
    """W^(1/2) A W^(1/2): the curvature in the coordinates in which a preconditioned optimizer is plain descent.

    With the edge weights of an optimizer as W its top eigenvalue is chi (Cohen et al. 2022, arXiv 2207.14484; the
    normalisation to 1 is this library's). W itself is never inverted where it is 0.
    """

    def __init__(self, inner: Operator, weights: Any) -> None:
        super().__init__(inner)
        entries = list(getattr(weights, "tensors", weights))
        if len(entries) != len(self.params):
            raise UsageError(f"weights: one for each of the {len(self.params)} parameters, got {len(entries)}")
        self._blocks: dict[int, Block] = {}
        plain: list[Tensor] = []
        for i, (entry, param) in enumerate(zip(entries, self.params, strict=True)):
            if isinstance(entry, Block):
                self._blocks[i] = entry
                entry = torch.ones((), dtype=self.dtype, device=param.device)
            plain.append(torch.as_tensor(entry, dtype=self.dtype).expand(param.shape))
        squared = self.space.flatten(plain)
        least = float(squared.min())
        if not least >= 0.0 or not bool(torch.isfinite(squared.max())):
            raise UsageError(f"weights: must be finite and not negative, found {least:g} to {float(squared.max()):g}")
        self._root = squared.sqrt_()

    def root(self, flat: Tensor) -> Tensor:
        """Returns W^(1/2) v."""
        return self._apply(flat * self._root, 0.5)

    def inverse_root(self, flat: Tensor) -> Tensor:
        """Returns W^(-1/2) v, 0 where W is 0."""
        whitened = torch.where(self._root > 0, flat / self._root, torch.zeros((), dtype=self.dtype, device=self.device))
        return self._apply(whitened, -0.5)

    def _apply(self, flat: Tensor, exponent: float) -> Tensor:
        if self._blocks:
            pieces = self.space.pieces(flat)
            for i, block in self._blocks.items():
                pieces[i].copy_(block.power(pieces[i], exponent))
        return flat

    def _product(self, flat: Tensor) -> Tensor:
        return self.root(self.inner.multiply(self.root(flat)))

    def start(self) -> Tensor | None:
        first = self.inner.start()
        return None if first is None else self.root(first)

    def to_parameters(self, flat: Tensor) -> Tensor:
        return self.inner.to_parameters(self.root(flat))

    def from_parameters(self, flat: Tensor) -> Tensor:
        return self.inverse_root(self.inner.from_parameters(flat))
