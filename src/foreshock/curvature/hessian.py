"""The Hessian of a loss as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from foreshock.curvature.graph import KeptGraph
from foreshock.curvature.operator import Operator


class Hessian(Operator):
    """The Hessian of a loss at the current parameters.

    Args:
        loss: a scalar loss with its graph, or a function that computes it.
        params: what it is differentiated by.
    """

    def __init__(self, loss: Tensor | Callable[[], Tensor], params: Sequence[Tensor]) -> None:
        super().__init__(params)
        self._loss = loss
        self._source: KeptGraph | None = None

    @property
    def source(self) -> KeptGraph:
        if self._source is None:
            loss = self._loss if isinstance(self._loss, Tensor) else self._loss()
            self._source = KeptGraph(loss, self.params)
        return self._source

    def _product(self, flat: Tensor) -> Tensor:
        return self.space.flatten(self.source.multiply(self.space.split(flat)))

    def gradient(self) -> list[Tensor]:
        return self.space.pieces(self.space.flatten(self.source.gradient))

    def start(self) -> Tensor | None:
        return self.space.flatten(self.source.gradient)
