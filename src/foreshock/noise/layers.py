"""What a call of a layer makes of its parameters' gradients, example by example, given the gradient at its output.

A linear layer's and a convolution's are sums of outer products, an embedding's are rows, a norm's are sums over places
of the gradient times the normalised input. Known are torch's own layers, and norms of one's own, recognised by their
names, whose output is linear in their parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.noise.uses import Direct, Lookup, Outer, Use

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Layout(NamedTuple):
    """Where examples lie: in which dimension, and whether places of one example are together there or apart."""

    dim: int = 0
    inmost: bool = False


@dataclass(slots=True)
class Call:
    """One call of a layer.

    Attributes:
        kind: "linear", "conv", "embedding", or a norm: its normalised input is what `normalised` makes of the input.
        weight, bias: the parameters, None where there is none or its gradient is not wanted.
        a: the input, detached.
        settings: of the layer.
        normalised: makes the normalised input of the input, for norms.
        version: of the input at the call: a later change in place makes it useless.
        features: how many of the last dimensions of the output are one place; for norms and convolutions over channels
            0, since these lie in dimension 1.
    """

    kind: str
    weight: Tensor | None
    bias: Tensor | None
    a: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)
    normalised: Callable[[Tensor], Tensor] | None = None
    version: int = 0
    features: int = 1


def kind_of(module: nn.Module) -> str | None:
    """Returns "linear", "conv", "embedding" or "norm"; None for modules whose parameters cannot be followed."""
    own = {name for name, param in module._parameters.items() if param is not None}
    if not own or not own <= {"weight", "bias"}:
        return None
    if isinstance(module, nn.Embedding):
        return "embedding" if not module.scale_grad_by_freq and module.max_norm is None else None
    if isinstance(module, CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    mine = "norm" in type(module).__name__.lower() and next(module.children(), None) is None
    return "norm" if isinstance(module, (*NORMS, *BATCH_NORMS)) or mine else None


def call_of(module: nn.Module, a: Tensor) -> Call | None:
    """Returns what is to be kept of a module's call with this input; None where its parameters cannot be followed."""
    own = {name: param for name, param in module._parameters.items() if param is not None}
    kind = kind_of(module)
    weight, bias = (own[name] if name in own and own[name].requires_grad else None for name in ("weight", "bias"))
    if kind is None or (weight is None and bias is None):
        return None
    a = a.detach()
    rest: dict[str, Any] = {"version": a._version}
    if kind == "linear":
        return Call("linear", weight, bias, a, **rest)
    if kind == "embedding":
        return Call("embedding", weight, None, a, {"padding_idx": module.padding_idx}, **rest)
    if isinstance(module, CONVOLUTIONS):
        names = ("stride", "padding", "dilation", "groups", "kernel_size", "padding_mode")
        settings = {name: getattr(module, name) for name in names}
        if settings["padding_mode"] != "zeros" or isinstance(module, nn.Conv3d):
            return None if weight is not None else Call("conv", None, bias, a, settings, features=0, **rest)
        return Call("conv", weight, bias, a, settings, features=0, **rest)
    if isinstance(module, nn.LayerNorm):
        shape, eps = module.normalized_shape, module.eps
        made: Callable[[Tensor], Tensor] = lambda x: F.layer_norm(x, shape, eps=eps)  # noqa: E731
        return Call("norm", weight, bias, a, {}, made, features=len(shape), **rest)
    if isinstance(module, nn.RMSNorm):
        shape, least = module.normalized_shape, module.eps
        return Call("norm", weight, bias, a, {}, lambda x: F.rms_norm(x, list(shape), eps=least),
                    features=len(shape), **rest)  # fmt: skip
    if isinstance(module, nn.GroupNorm):
        groups, eps = module.num_groups, module.eps
        return Call("norm", weight, bias, a, {}, lambda x: F.group_norm(x, groups, eps=eps), features=0, **rest)
    if isinstance(module, BATCH_NORMS):
        return _of_statistics(module, weight, bias, a, rest)
    return Call("norm", weight, bias, a, {}, _Unit(module), features=max(p.dim() for p in own.values()), **rest)


def couples(module: nn.Module) -> bool:
    """Returns whether a module makes one example's output depend on the others': statistics of the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or module.running_mean is None
    )


def _of_statistics(
    module: nn.Module, weight: Tensor | None, bias: Tensor | None, a: Tensor, rest: dict[str, Any]
) -> Call | None:
    """Returns the call of a batch norm that uses its running statistics, or of an instance norm."""
    state: Any = module
    mean, variance, eps = state.running_mean, state.running_var, state.eps
    instance = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    own = instance and (module.training or mean is None)
    if (not instance and couples(module)) or (own and a.dim() < 3):
        return None

    def made(x: Tensor) -> Tensor:
        return F.instance_norm(x, eps=eps) if own else F.batch_norm(x, mean, variance, eps=eps)

    return Call("norm", weight, bias, a, {}, made, features=0, **rest)


class _Unit:
    """The normalised input of a norm of somebody's own: what its output gains as its weight goes from 0 to 1."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self._with(x, 1.0) - self._with(x, 0.0)
        return found

    def _with(self, x: Tensor, value: float) -> Any:
        stand_in = copy.copy(self._module)  # shares all but the table of parameters, so that nothing is written
        stand_in.__dict__["_parameters"] = {
            name: None if param is None else torch.full_like(param, value if name == "weight" else 0.0)
            for name, param in self._module._parameters.items()
        }
        return stand_in.forward(x)


def layout_of(shape: tuple[int, ...], n: int, dim: int) -> Layout | None:
    """Returns how n examples lie in an output by its shape alone; None where they cannot.

    >>> layout_of((8, 5, 16), 8, 0), layout_of((40, 16), 8, 0), layout_of((5, 8, 16), 8, 1), layout_of((5, 16), 8, 0)
    (Layout(dim=0, inmost=False), Layout(dim=0, inmost=False), Layout(dim=1, inmost=False), None)
    """
    if len(shape) > dim and shape[dim] == n:
        return Layout(dim)
    if shape and shape[0] and shape[0] % n == 0:
        return Layout(0, inmost=dim == 1)
    return None


def split(x: Tensor, n: int, layout: Layout) -> Tensor:
    """Returns a view, or copy, of shape (n, r, ...): the r slices of each example along the dimension they lie in."""
    x = x.movedim(layout.dim, 0)
    r = x.shape[0] // n
    return x.reshape(r, n, *x.shape[1:]).movedim(1, 0) if layout.inmost else x.reshape(n, r, *x.shape[1:])


def uses_of(call: Call, e: Tensor, n: int, layout: Layout) -> list[tuple[str, Use]]:
    """Returns "weight", "bias" or both, each with its use, e being the gradient at the output.

    Args:
        call: what was kept.
        e: shaped like the output.
        n: examples.
        layout: where they lie in the output; in the input likewise.
    """
    kind = torch.promote_types(e.dtype, torch.float32) if e.device.type == "cpu" else e.dtype
    found: list[tuple[str, Use]] = []
    if call.kind == "embedding":
        assert call.weight is not None
        index = split(call.a, n, layout).reshape(n, -1)
        e = split(e, n, layout).reshape(n, index.shape[1], -1)
        if call.settings["padding_idx"] is not None:
            e = e.masked_fill((index == call.settings["padding_idx"] % call.weight.shape[0])[..., None], 0.0)
        return [("weight", Lookup(index, e, tuple(call.weight.shape)))]
    at = split(e, n, layout)
    if call.bias is not None:
        found.append(("bias", Direct(_placed(at, call.features))))
    if call.weight is None:
        return found
    if call.kind == "linear":
        a = split(call.a.to(e.dtype), n, layout)
        shape = tuple(call.weight.shape)
        a, at = a.reshape(n, 1, -1, shape[1]).to(kind), at.reshape(n, 1, -1, shape[0]).to(kind)
        found.append(("weight", Outer(a, at, shape)))
    elif call.kind == "conv":
        found.append(("weight", _unfolded(call, e, n, layout, kind)))
    else:
        assert call.normalised is not None
        wide = torch.promote_types(e.dtype, torch.float32)
        unit = split(call.normalised(call.a.to(wide)), n, layout)
        found.append(("weight", Direct(_placed(at.to(wide) * unit, call.features))))
    return found


def _placed(x: Tensor, features: int) -> Tensor:
    """Returns sums over all places, shape (n, *features), or (n, channels) where channels lie in dimension 1."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if features:
        inner = x.shape[x.dim() - features :]
        return x.reshape(len(x), -1, *inner).sum(1, dtype=wide)
    return x.reshape(*x.shape[:3], -1).sum((1, 3), dtype=wide)


def _unfolded(call: Call, e: Tensor, n: int, layout: Layout, kind: torch.dtype) -> Outer:
    """Returns a convolution's use: its input unfolded into the patches that its kernel is laid on."""
    assert call.weight is not None
    settings, a = call.settings, call.a.to(e.dtype).to(kind)
    e = e.to(kind)
    line = a.dim() == 3
    if line:  # (B, C, L) as an image of height 1
        a, e = a[:, :, None], e[:, :, None]

    def both(value: Any, fill: int) -> tuple[int, int]:
        return (fill, value[0]) if line else (value[0], value[1])

    kernel, dilation = both(settings["kernel_size"], 1), both(settings["dilation"], 1)
    padding = settings["padding"]
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        a = F.pad(a, (spans[1] // 2, spans[1] - spans[1] // 2, spans[0] // 2, spans[0] - spans[0] // 2))
        padding = (0, 0)
    else:
        padding = both(padding, 0)
    patches = F.unfold(a, kernel, dilation, padding, both(settings["stride"], 1))  # (B, C k, places)
    groups, shape = settings["groups"], tuple(call.weight.shape)
    a = split(patches, n, layout).reshape(n, -1, groups, patches.shape[1] // groups, patches.shape[2])
    at = split(e.flatten(2), n, layout).reshape(n, -1, groups, shape[0] // groups, patches.shape[2])
    made = [x.permute(0, 2, 1, 4, 3).reshape(n, groups, -1, x.shape[3]) for x in (a, at)]
    return Outer(made[0], made[1], shape)
