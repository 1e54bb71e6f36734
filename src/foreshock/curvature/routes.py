"""The ways to a product with the Hessian, and which one is taken.

| route | cost in gradients (MLP / GPT / conv) | memory | for |
|---|---|---|---|
| kept graph | 1.8 / 2.2 / 2.8 | 3.5 x | one batch: the default |
| fresh graph | 2.9 / 3.2 / 3.9 | 2.6 x, one batch at a time | data of many batches |
| differences | 1.05 | 1.05 x | smooth losses that cannot be differentiated twice |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from foreshock.curvature.anatomy import Anatomy, anatomy
from foreshock.curvature.differences import Differences, KinkedError
from foreshock.curvature.graph import KeptGraph, NotTwiceError, moved
from foreshock.curvature.objective import Live, Repeatable
from foreshock.curvature.space import Space
from foreshock.errors import UsageError

ROUTES = ("auto", "kept", "fresh", "differences", "central")


class Graph(Protocol):
    """Products with a second derivative of one loss, on its graph; tensors like the parameters, None for zeros."""

    gradient: list[Tensor | None]
    facts: Anatomy

    def multiply(self, vector: Sequence[Tensor], *, last: bool = False) -> list[Tensor | None]: ...
    def restricted(self, places: Sequence[int]) -> Graph: ...


Build = Callable[[Tensor, Sequence[Tensor], Anatomy], Graph]


class Route(Protocol):
    """One way to products with the Hessian of one loss at one point.

    Attributes:
        name: what it is called in notes and results.
        objective: whose loss it is.
        loss: its value.
        gradient: its gradient, shape (n,).
        facts: what the graph of the last batch is made of.
    """

    name: str
    objective: Live | Repeatable
    loss: float
    gradient: Tensor
    facts: Anatomy

    def multiply(self, flat: Tensor) -> Tensor: ...
    def release(self) -> None: ...


class Kept:
    """Products on the graphs of one evaluation, which are kept."""

    name = "double backward on a kept graph"

    def __init__(self, objective: Live | Repeatable, space: Space, build: Build) -> None:
        self.objective = objective
        self._space = space
        self._graphs: list[tuple[Graph, float]] = []
        mean = Mean(space)

        def visit(loss: Tensor, weight: float) -> None:
            facts = anatomy(loss, space.params)
            if isinstance(objective, Live):
                _no_static_wrapper(objective, facts)
            graph = build(loss, space.params, facts)
            self._graphs.append((graph, weight))
            mean.add(loss.detach(), graph.gradient, weight)

        self._total = objective.sweep(visit)
        self.loss, self.gradient = mean.taken(self._total)
        self.facts = self._graphs[-1][0].facts

    def multiply(self, flat: Tensor) -> Tensor:
        if not self._graphs:
            raise UsageError("the operator was released: its graph is gone; refresh() it or make a new one")
        vector = self._space.split(flat)
        with self.objective.passing():
            if len(self._graphs) == 1:
                return self._space.flatten(self._graphs[0][0].multiply(vector))
            product = self._space.zeros()
            for graph, weight in self._graphs:
                product.add_(self._space.flatten(graph.multiply(vector)), alpha=weight / self._total)
            return product

    def restricted(self, space: Space, places: Sequence[int]) -> Kept:
        """Returns the route to the block of some parameters, on the same graphs."""
        block = object.__new__(Kept)
        block.objective, block._space, block._total = self.objective, space, self._total
        block.loss, block.facts = self.loss, self.facts
        block._graphs = [(graph.restricted(places), weight) for graph, weight in self._graphs]
        pieces = self._space.pieces(self.gradient)
        block.gradient = space.flatten([pieces[place] for place in places])
        return block

    def release(self) -> None:
        self._graphs.clear()


class Fresh:
    """Products for each of which the loss is evaluated anew, batch by batch; nothing is kept between them."""

    name = "double backward, the graph built for each product"

    def __init__(self, objective: Repeatable, space: Space, build: Build) -> None:
        self.objective: Live | Repeatable = objective
        self._space, self._build = space, build
        self._versions = [param._version for param in space.params]
        mean = Mean(space)
        facts: list[Anatomy] = []

        def visit(loss: Tensor, weight: float) -> None:
            # a graph that cannot be differentiated twice is noticed here, before any product
            graph = build(loss, space.params, anatomy(loss, space.params))
            facts[:] = [graph.facts]
            mean.add(loss.detach(), graph.gradient, weight)

        self._total = objective.sweep(visit)
        self.loss, self.gradient = mean.taken(self._total)
        self.facts = facts[0]

    def multiply(self, flat: Tensor) -> Tensor:
        if any(param._version != seen for param, seen in zip(self._space.params, self._versions, strict=True)):
            raise UsageError(moved("the first product or gradient was taken"))
        vector = self._space.split(flat)
        product = self._space.zeros()

        def visit(loss: Tensor, weight: float) -> None:
            graph = self._build(loss, self._space.params, anatomy(loss, self._space.params))
            product.add_(self._space.flatten(graph.multiply(vector, last=True)), alpha=weight)

        return product.div_(self.objective.sweep(visit))

    def release(self) -> None:
        """Does nothing: there is nothing kept."""


class Mean:
    """The mean of losses and of gradients over batches, in the order in which they come."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._losses: list[Tensor] = []
        self._weights: list[float] = []
        self._sum: Tensor | None = None

    def add(self, loss: Tensor, gradient: Sequence[Tensor | None], weight: float) -> None:
        flat = self._space.flatten(gradient)
        self._losses.append(loss)
        self._weights.append(weight)
        self._sum = flat.mul_(weight) if self._sum is None else self._sum.add_(flat, alpha=weight)

    def taken(self, total: float) -> tuple[float, Tensor]:
        """Returns the mean loss, and the mean gradient of shape (n,)."""
        assert self._sum is not None
        losses = torch.stack(self._losses).to(torch.float64 if self._losses[0].device.type != "mps" else torch.float32)
        weights = torch.tensor(self._weights, dtype=losses.dtype, device=losses.device)
        return float((losses * weights).sum() / total), self._sum.div_(total)


class Dispatcher:
    """Chooses a route, and the next one where one turns out to be closed.

    Args:
        objectives: where the loss comes from: what was computed already, or a closure, or both in this order.
        space: the layout of the parameters.
        wanted: one of `ROUTES`.
        build: makes products of the graph of one loss; differences are of gradients, so for Hessians only.

    Attributes:
        detours: why routes were not taken, in words.
    """

    def __init__(self, objectives: Sequence[Live | Repeatable], space: Space, wanted: str, build: Build) -> None:
        if wanted not in ROUTES:
            raise UsageError(f"route: one of {', '.join(ROUTES)}, got {wanted!r}")
        self.space = space
        self._wanted, self._build = wanted, build
        self._smooth = False
        self.detours: list[str] = []
        # each is given the dispatcher: one that held it would keep the graph of a loss until the garbage collector runs
        self._ways: list[Callable[[Dispatcher], Route]] = []
        for objective in objectives:
            self._ways += self._ways_of(objective)
        if not self._ways:
            raise UsageError(
                f"route: {wanted!r} evaluates the loss again, for which a closure is needed; a loss alone allows "
                "'kept' only"
            )

    def _ways_of(self, objective: Live | Repeatable) -> list[Callable[[Dispatcher], Route]]:
        build = self._build

        def kept(own: Dispatcher) -> Route:
            return Kept(objective, own.space, build)

        if isinstance(objective, Live):
            return [kept] if self._wanted in ("auto", "kept") else []
        repeatable = objective

        def fresh(own: Dispatcher) -> Route:
            repeatable.exact = True
            return Fresh(repeatable, own.space, build)

        def exact(own: Dispatcher) -> Route:
            repeatable.exact = True
            return Kept(repeatable, own.space, build)

        def differences(own: Dispatcher) -> Route:
            repeatable.exact = False
            found = Differences(repeatable, own.space, central=own._wanted == "central", smooth=own._smooth)
            found.on_smooth = own._remember
            return found

        if self._wanted == "auto":
            first = exact if one_batch(repeatable) else fresh
            return [first, differences] if build is KeptGraph else [first]
        return [{"kept": exact, "fresh": fresh}.get(self._wanted, differences)]

    def _remember(self) -> None:
        self._smooth = True

    def open(self) -> Route:
        """Returns the first route that is open; those that were found closed are not tried again.

        Raises:
            UsageError: none is.
        """
        while True:
            try:
                return self._ways[0](self)
            except (NotTwiceError, torch.OutOfMemoryError) as error:
                self.closed(error)
            except KinkedError as error:
                raise UsageError("; before that: ".join([str(error), *self.detours])) from error

    def closed(self, error: Exception) -> None:
        """Takes a route off the list, or raises the error when it was the last one."""
        if len(self._ways) == 1:
            raise error
        self._ways.pop(0)
        if isinstance(error, torch.OutOfMemoryError):
            self.detours.append("exact products did not fit into memory")
        else:
            self.detours.append(str(error).partition(";")[0])


def one_batch(objective: Repeatable) -> bool:
    """Returns whether the data is known to be a single batch, so that its graph can be kept."""
    if objective.data is None:
        return True
    try:
        return len(objective.data) == 1
    except TypeError:
        return False


def _no_static_wrapper(objective: Live, facts: Anatomy) -> None:
    """Refuses a live graph whose differentiation would spoil the wrapper's next gradients, by 90 % and in silence."""
    wrappers = [m for root in objective.roots for m in root.modules() if isinstance(m, DistributedDataParallel)]
    if any(wrapper.static_graph for wrapper in wrappers) or (facts.wrapped and not wrappers):
        known = "with static_graph=True" if wrappers else "(pass model= if it has no static_graph=True)"
        raise NotTwiceError(
            f"the loss was computed through a DistributedDataParallel {known}, whose next gradients would be wrong; "
            "give a closure, which is then run on the module inside"
        )
