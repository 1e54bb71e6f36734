"""One question for rows, put to the methods in turn until one can answer it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foreshock import distributed
from foreshock.attribution.catching import CoupledError
from foreshock.attribution.ghost import Known, ghost_rows
from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.unseen import unseen
from foreshock.attribution.whole import double_rows, each_rows, forward_rows
from foreshock.curvature.gathered import Gathered, slots_of
from foreshock.curvature.harmless import harmless, muted
from foreshock.curvature.surroundings import surroundings
from foreshock.errors import UsageError

METHODS = ("auto", "ghost", "forward", "double", "each")
# Forward mode is as fast as ghost products, but its first use in a process loads seconds' worth of torch, it has no
# fused attention, and under 16 bits its tangents are rounded.
_ORDER = ("ghost", "forward", "double", "each")
_REST = ("double", "forward", "each")  # for a few parameters
_COUPLED = (
    "examples are coupled by what they share (statistics of the batch, for one): a row is the gradient of an example's "
    "loss through it; model.eval() freezes statistics"
)


def inner(a: Tensor, b: Tensor) -> float:
    """Returns <a, b>, added up in float64 where the device has it."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    return float((a.to(wide) * b.to(wide)).sum())


def largest(tensor: Tensor) -> float:
    """Returns the largest magnitude in a tensor, NaN where there is one, 0 without entries; one pass over it."""
    return float(torch.stack(torch.aminmax(tensor)).abs().amax()) if tensor.numel() else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows, shape (n,), how they were found, and the places of parameters left out of them, or left to others."""

    values: Tensor
    method: str
    missing: frozenset[int] = frozenset()
    rest: frozenset[int] = frozenset()
    note: str = ""


class Asked:
    """Losses, parameters and a direction.

    Args:
        closure: returns the losses, shape (n,).
        params: the parameters.
        moves: U by place in `params`, without zeros, float32 or wider.
        model: the module that is run, if it was given.
        looked: functions whose code names the modules; by default the closure.
        known: what other batches of the same losses taught.
    """

    def __init__(
        self,
        closure: Callable[[], Tensor],
        params: Sequence[Tensor],
        moves: dict[int, Tensor],
        model: nn.Module | None,
        looked: Sequence[Callable[..., Tensor]] = (),
        known: Known | None = None,
    ) -> None:
        self._closure, self._params = closure, list(params)
        self._known = Known() if known is None else known
        roots, self._names = modules_and_names(model, params, looked or [closure])
        self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        most = max(map(largest, moves.values()), default=1.0)
        # the largest entry near 1: small ones survive a cast to 16 bits, and so do their products with gradients
        self._unit = 2.0 ** -math.floor(math.log2(most))
        self._moves = {place: u * self._unit for place, u in moves.items()}
        self._sharded = any(distributed.sharded(param) for param in params)
        self._slots = slots_of(params, self._modules) if self._sharded else []

    def names(self, places: frozenset[int]) -> tuple[str, ...]:
        """Returns the names of parameters, in their order."""
        return tuple(self._names[place] for place in sorted(places))

    def answer(self, method: str) -> Answer:
        """Returns the rows by a method, or by the first that works.

        Raises:
            UsageError: the method that was asked for does not work here; or none does, for what the closure is.
        """
        if not self._moves:
            return Answer(self._wide(self._losses().detach()) * 0.0, "forward")
        places = frozenset(self._moves)
        if method == "auto":
            found = self._first(_ORDER[1:] if self._known.coupled else _ORDER, places)
        else:
            try:
                found = self._by(method, places)
            except (RuntimeError, CoupledError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                said = f"row_products(method={method!r}): {reason}; method='auto' looks for another"
                raise UsageError(said) from error
        return Answer(found.values / self._unit, found.method, found.missing, found.rest, found.note)

    def _first(self, methods: Sequence[str], places: frozenset[int]) -> Answer:
        note = ""
        for method in methods:
            try:
                found = self._by(method, places)
            except CoupledError:
                note = _COUPLED
                continue
            except RuntimeError:  # also those without a forward mode, a second derivative, or the memory
                if method == methods[-1]:
                    raise
                continue
            return self._completed(found, note)
        raise AssertionError("the last method raises")

    def _completed(self, found: Answer, note: str) -> Answer:
        """Returns an answer with what it leaves out from another method."""
        if not found.missing:
            return Answer(found.values, found.method, note=found.note or note)
        more = self._first(_REST, found.missing)
        method = f"{found.method}, {more.method}"
        return Answer(found.values + more.values, method, rest=found.missing, note=more.note or found.note or note)

    def _by(self, method: str, places: frozenset[int]) -> Answer:
        """Returns the rows of some parameters by one method."""
        ours = sorted(places)
        moves = [self._moves[place] for place in ours]
        if method == "ghost":
            return self._ghost(ours, ())[0]
        with self._evaluating(ours, exact=True) as some:
            if method == "forward":
                values, moved, coupled = forward_rows(self._checked, some, moves)
                if not moved:
                    self._linked()
                return Answer(self._wide(values), "forward", note=_COUPLED if coupled else "")
            values = (double_rows if method == "double" else each_rows)(self._graphed, some, moves)
            return Answer(self._wide(values.detach()), method, note=self._note())

    def _ghost(self, ours: Sequence[int], wanted: Sequence[int]) -> tuple[Answer, list[Tensor | None]]:
        """Returns the rows by ghost products, and the gradient of the sum of the losses by some parameters."""
        if self._sharded:
            raise RuntimeError("sharded parameters are gathered for each pass")
        tangents = {id(self._params[place]): self._moves[place] for place in ours}
        try:
            found = ghost_rows(
                self._graphed, tangents, self._all(self._params),
                lambda: self._evaluating([*ours, *wanted], exact=False), known=self._known,
                wanted=[self._params[place] for place in wanted],
            )  # fmt: skip
        except (CoupledError, RuntimeError):
            self._known.coupled = True
            raise
        missing = frozenset(place for place in ours if id(self._params[place]) in found.rest)
        return Answer(self._wide(found.rows), "ghost", missing, note=self._note()), list(found.grads)

    def both(self) -> tuple[Answer, list[Tensor | None]]:
        """Returns the rows, and the gradient of the sum of the losses by all parameters; in one pass where it can."""
        everything = range(len(self._params))
        if self._moves and not self._known.coupled:
            try:
                found, grads = self._ghost(sorted(self._moves), everything)
            except (CoupledError, RuntimeError):
                pass
            else:
                found = self._completed(found, "")
                return Answer(found.values / self._unit, found.method, rest=found.rest, note=found.note), grads
        return self.answer("auto"), self.gradient(everything)

    def _note(self) -> str:
        return _COUPLED if any(isinstance(m, _BatchNorm) and m.training for m in self._modules) else ""

    def along(self, places: frozenset[int], weights: Tensor | None) -> float:
        """Returns sum_i w_i <U, g_i> over some parameters."""
        ours = sorted(places)
        pairs = zip(ours, self.gradient(ours, weights), strict=True)
        return sum(inner(g, self._moves[i]) for i, g in pairs if g is not None) / self._unit

    def gradient(self, places: Sequence[int], weights: Tensor | None = None) -> list[Tensor | None]:
        """Returns sum_i w_i g_i by some parameters, None where the losses do not depend on one; a gradient's cost."""
        with self._evaluating(places, exact=False) as some:
            losses = self._graphed()
            total = losses.sum() if weights is None else (losses * weights.detach().to(losses)).sum()
            return list(torch.autograd.grad(total, some, allow_unused=True))

    def again(self, only: Set[int]) -> Tensor:
        """Returns the rows of some examples by a gradient for each, zeros for the others, shape (n,)."""
        ours = sorted(self._moves)
        with self._evaluating(ours, exact=False) as some:
            values = each_rows(self._graphed, some, [self._moves[place] for place in ours], only)
        return self._wide(values.detach()) / self._unit

    def _all(self, params: Sequence[Tensor]) -> list[Tensor]:
        others = [param for module in self._modules for param in module._parameters.values() if param is not None]
        return list({id(param): param for param in (*params, *others)}.values())

    @contextmanager
    def _evaluating(self, places: Sequence[int], *, exact: bool) -> Iterator[list[Tensor]]:
        """Yields some parameters, or whole ones in place of sharded ones, with what the closure runs made ready."""
        renormed = any(getattr(module, "max_norm", None) is not None for module in self._modules)
        hooks = [param._backward_hooks for param in self._params if param._backward_hooks]
        with ExitStack() as stack:
            stack.enter_context(harmless(self._params, self._modules, values=renormed))
            stack.enter_context(muted(hooks))
            stack.enter_context(unseen(self._modules))
            stack.enter_context(surroundings(self._modules, self._params[0].device, exact=exact))
            if not exact and "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._sharded:
                gathered = Gathered(self._params, self._slots, self._modules)
                stack.enter_context(gathered.in_place())
                yield [gathered.leaves[place] for place in places]
            else:
                for place in places:
                    self._params[place].requires_grad_()
                yield [self._params[place] for place in places]

    def _checked(self) -> Tensor:
        """Returns the losses."""
        losses: object = self._closure()
        if not isinstance(losses, Tensor) or losses.dim() != 1 or not losses.is_floating_point() or not len(losses):
            what = type(losses).__name__
            if isinstance(losses, Tensor):
                what = f"a tensor of shape {tuple(losses.shape)} and {losses.dtype}"
            raise UsageError(
                f"per_example_loss() must return one loss for each example, shape (n,), got {what}; with "
                "reduction='none', and the mean over an example's own tokens or pixels"
            )
        return losses

    def _graphed(self) -> Tensor:
        losses = self._checked()
        if not losses.requires_grad:
            raise UsageError(
                "per_example_loss() must return losses with their graph, but these have none: they were detached, or "
                "computed under no_grad, or from parameters that were not given"
            )
        return losses

    def _losses(self) -> Tensor:
        with self._evaluating((), exact=False), torch.no_grad():
            return self._checked()

    def _linked(self) -> None:
        """Raises unless losses without a tangent have a graph, so that they just do not depend on these parameters."""
        for param in self._all(self._params):
            if param.is_leaf and param.is_floating_point():
                param.requires_grad_()
        self._graphed()

    @staticmethod
    def _wide(tensor: Tensor) -> Tensor:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
