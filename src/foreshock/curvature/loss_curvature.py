"""What the Hessian and the Gauss-Newton matrix have in common: a loss, a route to products, ranks, notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from foreshock import distributed
from foreshock.curvature.anatomy import LOW
from foreshock.curvature.checks import verify_custom
from foreshock.curvature.determinism import live_notes, prepare, verify
from foreshock.curvature.differences import Differences
from foreshock.curvature.gathered import Gathered, Slot, WholeSpace, slots_of
from foreshock.curvature.graph import KeptGraph, NotTwiceError
from foreshock.curvature.loader import Batches
from foreshock.curvature.objective import Live, Repeatable, differentiable
from foreshock.curvature.operator import Operator
from foreshock.curvature.routes import Build, Dispatcher, Kept, Route
from foreshock.curvature.space import Space
from foreshock.errors import UsageError

Closure = Callable[..., Tensor]


class LossCurvature(Operator):
    """A second derivative of a loss at the parameters as they are at the first product.

    Args:
        params: what the loss is differentiated by.
        sources: the loss that was computed already, and the one that a closure computes; one may be None.
        build: makes products of the graph of one loss.
        wanted: the route asked for.
        mode: what is done about closures that differ from call to call.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        sources: tuple[Live | None, Repeatable | None],
        build: Build,
        *,
        wanted: str = "auto",
        mode: str = "check",
    ) -> None:
        super().__init__(params)
        differentiable(self.params)
        self._live, self._closure = sources
        self._build, self._wanted, self._mode = build, wanted, mode
        if self._closure is not None:
            prepare(self._closure, mode)
        self._split_up()
        self._dispatcher = Dispatcher(self._objectives(), self.space, wanted, build)
        self._source: Route | None = None
        self._verdict: list[str] | None = None
        self._trusted: list[str] | None = None

    def _split_up(self) -> None:
        """Notes whether the parameters are sharded over ranks."""
        self._sharded = any(distributed.sharded(param) for param in self.params)
        if self._sharded:
            self.space = WholeSpace(self.params)
            if self._closure is None:
                raise UsageError(
                    "params: they are sharded (FSDP2, tensor parallel), and the graph of a loss is on other tensors; "
                    "give a closure that computes the loss"
                )
            self._live = None
            self._slots = slots_of(self.params, self._closure.modules)
        self._narrow: bool | None = None if any(param.dtype in LOW for param in self.params) else True
        self._group: distributed.Group | None = None
        self._share = 1.0

    def _objectives(self) -> list[Live | Repeatable]:
        return [objective for objective in (self._live, self._closure) if objective is not None]

    @property
    def source(self) -> Route:
        """The route that products take, opened on first use."""
        if self._source is None:
            self._source = self._open()
        return self._source

    def _open(self) -> Route:
        objective = self._closure if self._closure is not None else self._live
        assert objective is not None
        self._group = distributed.group_of(module for root in objective.roots for module in root.modules())
        if self._sharded:
            self._put_in_place(self._slots)
        if self._group is None:
            return self._widened() or self._opened()
        source, problem = None, None
        try:
            source = self._widened() or self._opened()
        except Exception as error:
            problem = error
        distributed.agreed(problem, self._group, self.device)
        assert source is not None
        weight = source.objective.seen if isinstance(source.objective, Repeatable) else 1.0
        self._share = distributed.share(weight, self._group, self.device)
        source.gradient = distributed.sum_(source.gradient * self._share, self._group)
        loss = torch.tensor(source.loss * self._share, dtype=self.dtype, device=self.device)
        source.loss = float(distributed.sum_(loss, self._group))
        return source

    def _put_in_place(self, slots: Sequence[Slot], *, wide: bool = False) -> None:
        assert self._closure is not None
        self._closure.gathered = Gathered(self.params, slots, self._closure.modules, wide=wide)
        self._dispatcher.space = Space(self._closure.gathered.leaves)

    def _widened(self) -> Route | None:
        """Returns the route on float32 copies of 16-bit parameters; None where the closure does not run on them."""
        if self._narrow or self._closure is None or self._live is not None:
            return None
        try:
            self._put_in_place(slots_of(self.params, self._closure.modules), wide=True)
            source = self._opened()
            self._narrow = False
            return source
        except (UsageError, RuntimeError) as error:
            if self._narrow is False:  # it was possible before
                raise
            self._narrow = True
            self._closure.gathered = None
            self._dispatcher.space = self.space
            if self._sharded:
                self._put_in_place(self._slots)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None

    def _opened(self) -> Route:
        before = None if self._closure is None or self._verdict is not None else prepare(self._closure, self._mode)
        source = self._dispatcher.open()
        self._finite(source)
        if self._trusted is None and source.facts.custom and self._build is KeptGraph:
            try:
                self._trusted = [] if isinstance(source, Differences) else verify_custom(source, self._dispatcher.space)
            except NotTwiceError as error:
                self._dispatcher.closed(error)
                return self._opened()
        if before is not None and source.objective is self._closure:
            assert self._closure is not None
            self._verdict = verify(self._closure, before, source.loss, source.gradient, source.facts, self._mode)
        return source

    def _product(self, flat: Tensor) -> Tensor:
        source = self.source
        if self._closure is not None and self._closure.gathered is not None:
            self._closure.gathered.check()
        try:
            product = source.multiply(flat)
        except (NotTwiceError, torch.OutOfMemoryError) as error:
            self._dispatcher.closed(error)
            self._source = None
            return self._product(flat)
        if self._group is not None:
            product = distributed.sum_(product.mul_(self._share), self._group)
        if not bool(torch.isfinite(product.sum())):
            self._complain(product, flat)
        return product

    @property
    def loss(self) -> float:
        """The loss that the operator belongs to."""
        return self.source.loss

    @property
    def route(self) -> str:
        """How products are obtained, in words."""
        return self.source.name

    @property
    def batch(self) -> str:
        """What the numbers belong to, in words."""
        return self.source.objective.batch

    @property
    def batch_size(self) -> float | None:
        """Samples (or the sum of the weights) that a product goes through; None where that cannot be known."""
        objective = self.source.objective
        return objective.seen if isinstance(objective, Repeatable) and objective.data is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """The route, the batch, and what a reader of the numbers has to know."""
        source = self.source
        notes = [source.name, f"belongs to {source.objective.batch}"]
        if self._group is not None:
            notes.append("averaged over the ranks" + (", on gathered parameters" if self._sharded else ""))
        elif distributed.running():
            notes.append(
                "one rank's own: no wrapper of the parameters is known; pass model= for the mean over the ranks"
            )
        notes += self._trusted or []
        notes += [f"not taken: {detour}" for detour in self._dispatcher.detours]
        if isinstance(source.objective, Live):
            notes += live_notes(source.objective, source.facts)
        else:
            notes += self._verdict or []
        low = {param.dtype for param in self.params if param.dtype in LOW}
        if self._narrow is False:
            notes.append("computed in float32, on copies of the 16-bit parameters")
            low.clear()
        if source.facts.low_precision is not None:
            low.add(source.facts.low_precision)
        if low:
            kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in low))
            notes.append(f"computed in {kinds}: products are good to about 1 to 5 %")
        return tuple(notes)

    def gradient(self) -> list[Tensor]:
        """Returns the gradient of the loss, tensors shaped like the parameters."""
        return self.space.pieces(self.source.gradient)

    def start(self) -> Tensor | None:
        return self.source.gradient

    def block(self, params: Sequence[Tensor]) -> Self:
        """Returns the curvature with respect to some of the parameters; its products differentiate by these alone.

        It shares the graph when there is one already.
        """
        places = {id(param): i for i, param in enumerate(self.params)}
        block = object.__new__(type(self))
        Operator.__init__(block, params)
        if any(id(param) not in places for param in block.params):
            raise UsageError("block(params): a parameter that the operator is not on")
        live = None if self._live is None else self._live.on(block.params)
        closure = None if self._closure is None else self._closure.on(block.params)
        LossCurvature.__init__(block, block.params, (live, closure), self._build, wanted=self._wanted, mode=self._mode)
        block._verdict, block._trusted = self._verdict, self._trusted
        if isinstance(self._source, Kept):
            block._group, block._share = self._group, self._share
            block._source = self._source.restricted(block.space, [places[id(param)] for param in block.params])
        return block

    def refresh(self, loss: Tensor | None = None) -> None:
        """Moves the operator to the parameters as they are now; what was learned of the loss is kept.

        Args:
            loss: the live loss at the new parameters, where the operator was made of one without a closure.
        """
        self._source = None
        if loss is not None:
            if self._live is None:
                raise UsageError("refresh(loss): the operator was made of a closure; call refresh()")
            self._live.loss = loss
        elif self._live is not None and self._closure is None:
            raise UsageError("refresh(): the operator was made of a loss; pass the new one")

    def release(self) -> None:
        """Lets go of the graph and the memory it holds; values that were read stay."""
        if self._source is not None:
            self._source.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _finite(self, source: Route) -> None:
        if source.loss != source.loss or source.loss in (float("inf"), float("-inf")):
            raise UsageError(f"the loss is {source.loss}; there is no curvature at such a point")
        if not bool(torch.isfinite(source.gradient.sum())):
            self._name_first(source.gradient, "the gradient", f"although the loss is finite ({source.loss:.6g})")

    def _complain(self, product: Tensor, flat: Tensor) -> None:
        if not bool(torch.isfinite(flat).all()):
            raise UsageError("vector: it contains NaN or infinite numbers")
        self._name_first(product, "the product H v", "although loss and gradient are finite")

    def _name_first(self, flat: Tensor, what: str, although: str) -> None:
        for i, piece in enumerate(self.space.pieces(flat)):
            if not bool(torch.isfinite(piece).all()):
                raise UsageError(
                    f"{what} is NaN or infinite {although}, first in params[{i}], of shape {tuple(piece.shape)}; look "
                    "for sqrt, norm, log or a power at 0, and for overflow"
                )


def repeatable(
    closure: Closure, params: Sequence[Tensor], data: Iterable[Any] | None, model: nn.Module | None
) -> Repeatable:
    """Returns the loss that a closure computes, over data when there is some."""
    return Repeatable(
        closure, tuple(params), data if isinstance(data, Batches) or data is None else Batches(data), model
    )


def listed(params: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns the parameters, which may be a generator such as `model.parameters()`, as a tuple."""
    return (params,) if isinstance(params, Tensor) else tuple(params)
