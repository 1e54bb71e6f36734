"""What a training's small batches are: micro-batches and ranks where there are some, else the examples of its batch."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import distributed
from foreshock.batch_size import Pair
from foreshock.curvature.harmless import under_way
from foreshock.errors import UsageError
from foreshock.noise.ears import tensors_in
from foreshock.noise.examples import CoupledError, ExampleNorms, PerExampleNorms
from foreshock.noise.passes import Passes
from foreshock.noise.precondition import inverse_squares
from foreshock.noise.step import CLOSE, of_examples, of_passes, to_host

DUST = 1e-5  # of the gradient's norm: what is smaller may be rounding, as for a bias before a norm
Kind = Literal["pairs", "examples", "local"]
Taken = tuple[Pair, float] | str
"""The estimates of a step and the size of its batch, or why there are none."""


class Source:
    """Looks on at one step at a time: `listen` before its forward pass, `open`, `watch` before backward, `take` after.

    Args:
        layers: whose norms are taken of examples.
        batch_dim: dimension of the examples in the model's input.
        precondition: whether to divide by the optimizer's denominators.
    """

    def __init__(self, layers: str, batch_dim: int, *, precondition: bool) -> None:
        self.layers, self.batch_dim, self.precondition = layers, batch_dim, precondition
        self.kind: Kind | None = None
        self.missing: dict[str, str] = {}
        self._found: ExampleNorms | None = None
        self._ranks = 1
        self._norms: dict[str, PerExampleNorms] = {}
        self._using: PerExampleNorms | None = None
        self._passes: Passes | None = None
        self._given: Given | None = None
        self._checks: dict[str, tuple[Tensor, Tensor]] = {}
        self._why = ""

    def settle(self, model: Any, losses: int | None) -> None:
        """Decides what to measure by.

        Args:
            model: what the monitor was given.
            losses: micro-batches of the step before; None where that is not known yet.

        Raises:
            UsageError: nothing can be measured here, with the reason.
        """
        modules = list(model.modules()) if isinstance(model, nn.Module) else []
        params = [param for module in modules for param in module._parameters.values() if param is not None]
        group = distributed.group_of(modules)
        self._ranks = 1
        if any(distributed.sharded(param) for param in params):
            if self.layers != "norm":
                raise UsageError(
                    "parameters are sharded, so that no rank sees a gradient of its own batch; norm layers do: use "
                    "NoiseScale(layers='norm', calibrate=0)"
                )
            self.kind = "local"
        elif group is not None:
            self.kind, self._ranks = "pairs", distributed.place(group)[1]
        elif losses is None or losses > 1:
            if distributed.running():
                raise UsageError("there are several ranks: give Monitor the DistributedDataParallel itself")
            self.kind = "pairs"
        else:
            if not modules:
                raise UsageError("one batch a step and no module to measure its examples in: give Monitor the model")
            if any(compiled(module) for module in modules):
                raise UsageError(
                    "layers of a compiled model cannot be listened to; accumulate over micro-batches, or compile later"
                )
            self.kind = "examples"

    def listen(self, model: nn.Module, *, whole: bool = False) -> None:
        """Puts hooks on the layers, for the next forward pass; of all layers where `whole`."""
        for layers in {self.layers, "all" if whole else self.layers}:
            if layers not in self._norms or self._norms[layers].model is not model:
                self._norms[layers] = PerExampleNorms(model, layers=layers, batch_dim=self.batch_dim)
                self._norms[layers].checking = self.kind == "examples"
                weakref.finalize(self, self._norms[layers].stop)
        self._using = self._norms["all" if whole else self.layers]
        self._using.active = False
        self._using.listen()

    def open(self, model: Any, optimizer: Optimizer) -> None:
        """Gets ready for the backward passes of a step."""
        self.close(listening=True)
        norms, self._why = self._using, ""
        named = _named(model, optimizer)
        weights = None
        if self.precondition:
            weights = inverse_squares(optimizer, {id(param): name for name, param in named.items()})
            if weights is None:
                self._why = "the optimizer has no second moments to divide by, or not for long enough"
                return
        self._checks = {}
        if self.kind == "pairs":
            self._passes = Passes(named, weights=weights, averaged=self._ranks > 1)
        elif norms is not None and norms.listening:
            norms.weights = weights or {}
            params = {} if self.kind == "local" else {name: named[name] for name in norms.names if name in named}
            own = weakref.ref(self)
            self._passes = Passes(
                params, weights=weights, began=lambda place: _began(own(), place), arrived=_Check(own)
            )

    @property
    def opened(self) -> bool:
        """Whether a step is being watched."""
        return self._passes is not None

    def watch(self, loss: Tensor, place: int, *, last: bool) -> None:
        """Waits for the backward pass of a loss; `last` where it may be the step's last one."""
        if self._passes is not None:
            self._passes.watch(loss, place, whole=last and self.kind == "pairs")

    def size(self, model: Any) -> float:
        """Returns how many examples the model was last given; NaN where that is not known, yet."""
        if self._using is not None and self._using.n:
            return float(self._using.n)
        if self._given is None and isinstance(model, nn.Module):
            self._given = Given(model, self.batch_dim)
        return float("nan") if self._given is None else self._given.size

    def take(self, sizes: Sequence[float]) -> Taken:
        """Returns the estimates of the step that was watched, and the size of its batch; or why there are none.

        Raises:
            UsageError: there will never be any.
        """
        if self._passes is None:
            return self._why or "nothing was watched"
        if self.kind == "pairs":
            return of_passes(self._passes, sizes, self._ranks)
        assert self._using is not None
        try:
            found = self._using.read()
        except CoupledError:
            raise
        except UsageError as error:
            return str(error)
        wrong = self._wrong(found)
        if wrong:
            return wrong
        self._found = found
        return self.among(self.layers)

    def among(self, layers: str) -> Taken:
        """Returns the same of a choice of layers, from what `take` has just read."""
        assert self._passes is not None
        assert self._found is not None
        assert self._using is not None
        names = [name for name in self._norms[layers].names if name not in self._using.dropped]
        if layers == self.layers:
            known = self._found.missing.items()
            self.missing = {name: why for name, why in known if name in names or layers == "all"}
            self.missing |= self._norms[layers].dropped | self._using.dropped
        return of_examples(self._found, self._passes, names)

    def _wrong(self, found: ExampleNorms) -> str:
        """Holds what the layers saw against the gradient; returns why it cannot be used, empty where it can."""
        norms = self._using
        assert norms is not None
        if not self._checks:
            return ""
        names = [name for name in self._checks if name in found.by_parameter]
        values = to_host([each for name in names for each in self._checks[name]])
        off = dict(zip(names, zip(values[::2], values[1::2], strict=True), strict=True))
        if norms.checking:
            norms.checking = False
            least = DUST**2 * sum(norm for _, norm in off.values())
            for name, (miss, norm) in off.items():
                if not miss <= CLOSE**2 * norm + least:
                    norms.dropped[name] = "its layer's part is not all of its gradient"
            return ""
        kept = [pair for name, pair in off.items() if name not in norms.dropped]
        fine = sum(miss for miss, _ in kept) <= CLOSE**2 * sum(norm for _, norm in kept)
        return "" if fine else "what the layers saw is not the gradient"

    def check(self, name: str, grad: Tensor) -> None:
        """Notes how far the sum over examples is from a gradient that has arrived."""
        norms = self._using
        if norms is None:
            return
        total = norms.total(name)
        if total is not None and not grad.is_sparse:
            wide = grad.to(total.dtype)
            self._checks[name] = (total - wide).square().sum(), wide.square().sum()

    def begin(self, place: int) -> None:
        """Makes way for what a backward pass will show: of the step's first loss."""
        if self._using is not None:
            self._using.active = place == 0
            if place == 0:
                self._using.forget()
                self._checks = {}

    def close(self, *, listening: bool = False) -> None:
        """Takes the hooks away; those of the layers may stay."""
        if self._passes is not None:
            self._passes.close()
            self._passes = None
        if self._using is not None and not listening:
            self._using.stop()
            self._using = None


class _Check:
    """Told of gradients, as long as the source is there."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __call__(self, name: str, grad: Tensor) -> None:
        owner = self._owner()
        if owner is not None:
            owner.check(name, grad)


def _began(source: Source | None, place: int) -> None:
    if source is not None:
        source.begin(place)


class Given:
    """Knows how many examples a model was last given, by a hook on it."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        self.size, self._dim = float("nan"), dim
        hook = model.register_forward_pre_hook(_Look(self), with_kwargs=True)
        weakref.finalize(self, hook.remove)

    def look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Looks at what the model is given."""
        first = next(tensors_in((args, kwargs)), None)
        if torch.is_grad_enabled() and first is not None and first.dim() > self._dim:
            self.size = float(first.shape[self._dim])


class _Look:
    """The hook; one that is pickled or copied with the model is blind."""

    def __init__(self, owner: Given | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        owner = self._owner()
        if owner is not None and not torch.compiler.is_compiling() and not under_way():
            owner.look(args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Look, ()


def compiled(module: nn.Module) -> bool:
    """Returns whether a module was given to `torch.compile`."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _named(model: Any, optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's parameters that have gradients, by the model's names where it has them."""
    held = {
        id(param): param for group in optimizer.param_groups for param in group["params"]
        if param.requires_grad and param.is_leaf and not distributed.sharded(param)
    }  # fmt: skip
    names = {id(param): name for name, param in model.named_parameters()} if isinstance(model, nn.Module) else {}
    return {names.get(key, str(i)): param for i, (key, param) in enumerate(held.items())}
