"""Other tensors in the place of parameters, for the length of a block: one point, or many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def standing_at(params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Lets parameters stand at other values: their storage is exchanged, never written to.

    Numbers, version counters and graphs that were built before are afterwards what they were.
    """
    held = [param.data for param in params]
    try:
        for param, value in zip(params, values, strict=True):
            param.data = value
        yield
    finally:
        for param, at in zip(params, held, strict=True):
            param.data = at


class Stand(TorchFunctionMode):
    """Every torch function is given other tensors where a caller names some of `params`.

    That reaches parameters of any module and plain tensors alike, with no knowledge of who holds them, and lets
    `torch.func.vmap` run a closure at many points in one pass. What reads parameters by other ways (scripted modules,
    custom autograd functions) does not see the exchange: its results have to be checked.
    """

    def __init__(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self._table = {id(param): value for param, value in zip(params, values, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: self._exchanged(value) for name, value in (kwargs or {}).items()}
        return func(*[self._exchanged(value) for value in args], **named)

    def _exchanged(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._table.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._exchanged(inner) for inner in value)
        return value
