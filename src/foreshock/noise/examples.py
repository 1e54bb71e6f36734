"""Norms of every example's gradient, taken off the loop's own forward and backward pass by hooks on its layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.noise.ears import Arrival, Ear, layer_size, plain, tensors_in
from foreshock.noise.layers import Call, Layout, call_of, couples, kind_of, layout_of, uses_of
from foreshock.noise.layout import Key, proven
from foreshock.noise.uses import Direct, Use, squares

LAYERS = ("norm", "linear", "all")
_KINDS = {"norm": {"norm"}, "linear": {"linear", "conv"}, "all": {"norm", "linear", "conv", "embedding"}}
_NOTHING = nullcontext()
IDLE = 64  # forward passes that nobody asks about, after which the hooks are taken away


class CoupledError(UsageError):
    """Examples depend on each other, so that none has a gradient of its own."""


@dataclass(frozen=True, slots=True)
class ExampleNorms:
    """What one backward pass has shown.

    Attributes:
        squares: |g_i|^2 over all parameters that are covered, shape (n,); g_i is n times example i's part of the
            gradient, so that the mean of the g_i is the gradient: of a mean over examples the gradient of example i's
            own loss.
        by_parameter: the same for each of them, by name.
        totals: the sums of the parts, by name, of norms and biases (of all while `checking`): the gradient's own.
        missing: parameters that are not covered, with the reason.
        coverage: covered numbers over all that have gradients.
    """

    squares: Tensor
    by_parameter: Mapping[str, Tensor]
    totals: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    coverage: float = 1.0

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.squares)


class PerExampleNorms:
    """Hooks that measure |g_i|^2 of every example while a loop goes forward and backward as it would anyway.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    >>> with PerExampleNorms(model) as norms:
    ...     model(x).square().mean().backward()
    ...     found = norms.read()
    >>> model.zero_grad()
    >>> model(x[:1]).square().mean().backward()
    >>> own = sum(param.grad.square().sum() for param in model.parameters())
    >>> bool(torch.isclose(found.squares[0], own))
    True

    Exact for Linear, Conv1d/2d, Embedding, LayerNorm, RMSNorm, GroupNorm, InstanceNorm, BatchNorm in eval mode, and
    norms of one's own whose output is linear in their parameters; with layers called several times and tied weights.
    Bare parameters, packed attention and recurrent layers are `missing`. Statistics of the batch couple the examples:
    then no example has a gradient of its own, and nothing is measured. Dropout is part of the noise.

    Which slice of a layer's output is whose is proven at the first batch, by two forward passes without gradients, the
    second with the examples one place on; a layer that does not follow, such as a table of positions, is missing.

    Args:
        model: the module.
        layers: "norm", "linear" (and convolutions) or "all".
        batch_dim: the dimension of the examples: 0, or 1 where sequences come first.
        examples: how many there are; None: as many as the first tensor given to the model has.
        weights: numbers shaped like a parameter, by its name, by which its squared entries count.
        prove: False believes shapes instead, `batch_dim` being that of every output.

    Raises:
        UsageError: no such choice of layers, or nothing of it in the model.

    Source: Goodfellow 2015, arXiv 1510.01799; Gray et al. 2024, arXiv 2411.00999.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str = "all",
        batch_dim: int = 0,
        examples: int | None = None,
        weights: Mapping[str, Tensor] | None = None,
        prove: bool = True,
    ) -> None:
        if layers not in LAYERS:
            raise UsageError(f"PerExampleNorms(layers=...): must be one of {', '.join(LAYERS)}, got {layers!r}")
        if batch_dim not in (0, 1):
            raise UsageError(f"PerExampleNorms(batch_dim=...): must be 0 or 1, got {batch_dim!r}")
        self.model, self.layers, self.batch_dim, self.examples = model, layers, batch_dim, examples
        self.weights: Mapping[str, Tensor] = {} if weights is None else weights
        self.prove = prove
        self.layouts: dict[Key, Layout | None] | None = None  # what was proven; None: shapes are believed
        self.checking = False
        self.active = True
        self.given: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # to the model, at its last call
        self.dropped: dict[str, str] = {}  # parameters found wrong, with the reason
        self._hooks: list[Any] = []
        self._survey()
        self.clear()

    def _survey(self) -> None:
        """Finds the layers, and which parameter is whose."""
        names: dict[int, str] = {}  # of parameters, the first one of each
        owners: dict[str, list[bool]] = {}
        self._listened: dict[str, nn.Module] = {}
        self._canonical: dict[tuple[str, str], str] = {}
        self._sizes: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        for name, module in self.model.named_modules():
            kind = kind_of(module)
            listened = kind in _KINDS[self.layers]
            for own, param in module._parameters.items():
                if param is None or not param.requires_grad:
                    continue
                known = names.setdefault(id(param), f"{name}.{own}" if name else own)
                self._canonical[name, own] = known
                self._sizes[known] = param.numel()
                owners.setdefault(known, []).append(listened)
                if not listened:
                    what = type(module).__name__
                    self._reasons[known] = f"not among {self.layers!r}" if kind else f"{what} is not followed"
                else:
                    self._listened[name] = module
        self._coupling = {
            name: module for name, module in self.model.named_modules()
            if name not in self._listened and isinstance(module, nn.modules.batchnorm._BatchNorm)
        }  # fmt: skip
        self._shared = {name for name, all_of in owners.items() if len(all_of) > 1}
        if not any(all(all_of) for all_of in owners.values()):
            raise UsageError(f"PerExampleNorms(layers={self.layers!r}): the model has no such layer with gradients")

    def __enter__(self) -> PerExampleNorms:
        self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def listen(self) -> None:
        """Puts the hooks in place."""
        if not self._hooks:
            root = Ear(self, None)
            self._hooks.append(self.model.register_forward_pre_hook(root, with_kwargs=True))
            self._hooks += [
                module.register_forward_hook(Ear(self, name), with_kwargs=True)
                for name, module in (self._listened | self._coupling).items()
            ]
        self.clear()

    def stop(self) -> None:
        """Takes the hooks on the layers away; those on outputs go with their graph."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.given = None

    @property
    def listening(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._hooks)

    def clear(self) -> None:
        """Forgets the forward pass and what was measured of it."""
        self.given = None
        self._forward, self._called = 0, dict[str, int]()
        self._n: int | None = self.examples
        self._coupled: str | None = None
        self._idle = 0
        self._error: Exception | None = None
        self._unheard: dict[str, str] = {}  # parameters whose layers could not be listened to in the forward pass
        self.forget()

    def forget(self) -> None:
        """Forgets what was measured, not the forward pass: another backward pass begins."""
        self._uses: dict[str, list[Use]] = {}
        self._squares: dict[str, Tensor] = {}
        self._totals: dict[str, Tensor] = {}
        self._failed: dict[str, str] = {}
        self._met: set[tuple[int, str, int]] = set()
        self._measured: int | None = None  # how many examples were met

    @property
    def n(self) -> int | None:
        """How many examples the model was given, as far as that is known."""
        return self._n

    @property
    def names(self) -> list[str]:
        """The parameters that are to be covered."""
        return [name for name in self._sizes if name not in self._reasons and name not in self.dropped]

    def total(self, name: str) -> Tensor | None:
        """Returns the sum over the examples of a parameter's gradients, where it was kept."""
        return self._totals.get(name)

    def began(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Looks at what the model is given."""
        if not torch.is_grad_enabled():
            return
        self.given = args, kwargs
        self._forward += 1
        self._called = {}
        first = next(tensors_in((args, kwargs)), None)
        if self.examples is None and first is not None and first.dim() > self.batch_dim:
            self._n = first.shape[self.batch_dim]
        self._idle += 1
        if self._idle > IDLE:
            self.stop()
        elif self.prove:
            self.prove = False
            self._find_layouts(args, kwargs)

    def _find_layouts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Proves which slices are whose, where the model can be called as often as one likes."""
        inner = getattr(self.model, "module", None)
        wrapped = isinstance(self.model, nn.parallel.DistributedDataParallel)
        model = inner if wrapped and isinstance(inner, nn.Module) else self.model
        if not self._n or any(not plain(param) for param in model.parameters()):
            return
        try:
            self.layouts = proven(model, (args, kwargs), self._n, self.batch_dim, self._listened)
        except Exception:  # inside the loop's own forward pass, which is to go on
            self.layouts = {}

    def heard(self, name: str, module: nn.Module, given: Tensor | None, output: Any) -> None:
        """Keeps what a layer was given, and waits for the gradient at its output."""
        if couples(module):
            self._coupled = name
        if name in self._coupling:
            return
        if not isinstance(output, Tensor) or not output.requires_grad or given is None or not torch.is_grad_enabled():
            return
        key = (name, self._called.get(name, 0))
        self._called[name] = key[1] + 1
        call = call_of(module, given) if plain(given) and plain(output) else None
        if call is None:
            self._fail(name, "its parameters or tensors are of another kind at its call", self._unheard)
        elif output.grad_fn is not None:
            output.register_hook(Arrival(self, (self._forward, *key), call, self._n))  # type: ignore[no-untyped-call]

    def meet(self, which: tuple[int, str, int], call: Call, e: Tensor, n: int | None) -> None:
        """Measures a layer's parameters as the gradient at its output goes by.

        Args:
            which: forward pass, layer and call.
            call: what was kept of it.
            e: the gradient.
            n: examples that the model was given in that pass, where that is known.
        """
        if not self.active or torch.is_grad_enabled():  # another's pass; or one that is differentiated again
            return
        name, key = which[1], which[1:]
        n = n or layer_size(call, self.batch_dim)
        if which in self._met or self._measured not in (None, n):
            self._fail(name, "its call was differentiated twice, or with batches of several sizes")
            return
        self._met.add(which)
        self._measured = n
        shape = tuple(e.shape[: e.dim() - 1] if call.features == 1 else e.shape)
        layout = layout_of(shape, n, self.batch_dim) if self.layouts is None else self.layouts.get(key)
        if layout is not None and e.shape[layout.dim] % n:
            layout = None
        if not plain(e) or layout is None or call.a._version != call.version:
            why = "its output is not split by examples" if layout is None else "its input was written over"
            self._fail(name, why if plain(e) else "its gradient is of another kind")
            return
        with torch.autocast(e.device.type, enabled=False) if torch.is_autocast_enabled(e.device.type) else _NOTHING:
            for own, use in uses_of(call, e.detach(), n, layout):
                self._add(self._canonical[name, own], use)

    def _add(self, known: str, use: Use) -> None:
        """Takes one use of a parameter: at once where it is the only one, as a rule."""
        if isinstance(use, Direct) or self.checking:
            total = use.total()
            self._totals[known] = self._totals[known] + total if known in self._totals else total
        if known in self._shared or isinstance(use, Direct):
            self._uses.setdefault(known, []).append(use)
        elif known in self._squares:
            self._shared.add(known)  # from the next pass on its uses wait for each other
            self._failed[known] = "its layer was called again"
        else:
            self._squares[known] = squares([use], self.weights.get(known))

    def _fail(self, name: str, why: str, where: dict[str, str] | None = None) -> None:
        for (module, _), known in self._canonical.items():
            if module == name:
                (self._failed if where is None else where)[known] = why

    def failed(self, error: Exception) -> None:
        """Keeps an error for who reads."""
        self._error = self._error or error

    def read(self) -> ExampleNorms:
        """Returns what the backward pass has shown, and is ready for the next forward pass.

        Raises:
            UsageError: there was none through the layers, or the examples are coupled.
        """
        if self._error is not None:
            raise self._error
        if self._coupled is not None:
            raise CoupledError(
                f"PerExampleNorms: {self._coupled} uses statistics of the batch, so that no example has a gradient of "
                "its own; use model.eval(), or micro-batches"
            )
        missing = {**self._reasons, **self._unheard, **self._failed, **self.dropped}
        with torch.no_grad():
            done = {name: squares(uses, self.weights.get(name)) for name, uses in self._uses.items()}
        found = {name: value for name, value in (self._squares | done).items() if name not in missing}
        missing |= {name: "no gradient came to its layer" for name in self.names if name not in {*found, *missing}}
        n = self._measured
        totals, covered = self._totals, sum(self._sizes[name] for name in found)
        if not found or n is None:
            why = "; ".join(sorted(set(missing.values()))) or "call backward() inside the block, on a loss of the model"
            self.clear()
            raise UsageError(f"PerExampleNorms.read(): no gradient of these layers was seen: {why}")
        self.clear()
        kind = torch.float32 if any(value.dtype != torch.float64 for value in found.values()) else torch.float64
        device = next(iter(found.values())).device
        every = {name: value.to(kind) * float(n) ** 2 for name, value in found.items()}
        whole = torch.stack([value.to(device) for value in every.values()]).sum(0)
        return ExampleNorms(whole, every, totals, missing, covered / sum(self._sizes.values()))
