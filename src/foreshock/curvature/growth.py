"""The growth of ln chi over a whole approach, added up part by part."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from foreshock.curvature.edge import Edge
from foreshock.curvature.split import Mark, Split, split


class Growth:
    """Adds up the splits from reading to reading; begins anew where the top eigenvector swaps.

    It keeps of the last reading what a split needs, two tensors as long as each parameter.

    Attributes:
        growth: ln chi now less ln chi at the first reading of the sum.
        lr, momentum, denominator: the preconditioner's parts of it.
        denominators: the last of them by tensor, {place among the optimizer's parameters: part}.
        readings: in the sum.
        restarts: sums begun anew.

    >>> import torch
    >>> from foreshock.curvature import edge
    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer, growth = torch.optim.SGD([w], lr=0.1), Growth()
    >>> for sharp in (1.0, 2.0, 8.0):
    ...     optimizer.param_groups[0]["lr"] *= 2
    ...     _ = growth.add(edge(lambda: sharp * w[0] ** 2, optimizer))
    >>> round(math.exp(growth.growth), 3), round(math.exp(growth.landscape), 3), round(growth.share, 3)
    (32.0, 8.0, 0.4)
    """

    def __init__(self) -> None:
        self.restarts = 0
        self._mark: Mark | None = None
        self._stored: dict[str, Any] | None = None
        self._begin()

    def _begin(self) -> None:
        self.growth = self.lr = self.momentum = self.denominator = 0.0
        self.denominators: dict[int, float] = {}
        self.readings = 1

    @property
    def preconditioner(self) -> float:
        """Returns the preconditioner's part of the growth."""
        return self.lr + self.momentum + self.denominator

    @property
    def landscape(self) -> float:
        """Returns the landscape's part of the growth."""
        return self.growth - self.preconditioner

    @property
    def share(self) -> float:
        """Returns the preconditioner's share of the growth, 1 for all of it; NaN where nothing has grown."""
        return self.preconditioner / self.growth if self.growth else math.nan

    def add(self, reading: Edge) -> Split | None:
        """Takes a reading and returns its split from the last one, None at the first."""
        before = self._mark if self._stored is None else _restored(self._stored, reading.weights.params)
        self._mark, self._stored = Mark.of(reading), None
        if before is None:
            self._begin()
            return None
        part = split(before, self._mark)
        if part.restarted:
            self._begin()
            self.restarts += 1
            return part
        self.readings += 1
        self.growth += part.growth
        self.lr += part.lr
        self.momentum += part.momentum
        self.denominator += part.denominator
        place = {id(param): i for i, param in enumerate(reading.weights.params)}
        for param, value in zip(part.params, part.denominators, strict=True):
            at = place[id(param)]
            self.denominators[at] = self.denominators.get(at, 0.0) + value
        return part

    def state_dict(self, params: tuple[Tensor, ...] = ()) -> dict[str, Any]:
        """Returns the sums and what is kept of the last reading.

        Args:
            params: all parameters of the optimizer, `reading.weights.params`; without them, and where a weight is no
                tensor (Shampoo, SOAP), the reading is not stored and the sum begins anew after a resume.
        """
        stored, mark = self._stored, self._mark
        place = {id(param): i for i, param in enumerate(params)}
        plain = mark is not None and all(isinstance(weight, Tensor) for weight in mark.tensors)
        if mark is not None and plain and all(id(param) in place for param in mark.params):
            stored = {name: getattr(mark, name) for name in _KEPT} | {"places": [place[id(p)] for p in mark.params]}
        return {name: getattr(self, name) for name in _SUMS} | {"last": stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        for name in _SUMS:
            setattr(self, name, state[name])
        self.denominators = dict(self.denominators)
        self._mark, self._stored = None, state["last"]


_SUMS = ("growth", "lr", "momentum", "denominator", "denominators", "readings", "restarts")
_KEPT = ("chi", "vector", "tensors", "factors", "gains", "corrections", "l2", "maximize")


def _restored(stored: dict[str, Any], params: tuple[Tensor, ...]) -> Mark:
    return Mark(params=tuple(params[i] for i in stored["places"]), **{name: stored[name] for name in _KEPT})
