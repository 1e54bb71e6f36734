"""Operations on parameters caught in a forward pass, with what they were given and the gradients at their outputs."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foreshock.noise.layers import Call, Layout, split

LEVELS = 16  # powers of two that examples are told apart by
_CLOSE, _CLOSE_HALF = 1e-5, 2e-3  # by how much of its norm an output's gradient may miss them: small numbers round

_NAMES: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    **dict.fromkeys(
        (torch.conv1d, torch.conv2d), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    ),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), ("input", "weight")),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), ("input", "bias")),
}


@dataclass(slots=True)
class Caught:
    """An operation: its parameters by "weight" and "bias", and the gradients at its output, pass by pass."""

    call: Call
    params: dict[str, int]
    grads: list[Tensor] = field(default_factory=list)


class Catch(TorchFunctionMode):
    """Catches linear maps, convolutions, embeddings, norms, products and sums with parameters.

    Args:
        params: by their ids.
    """

    def __init__(self, params: dict[int, Tensor]) -> None:
        super().__init__()
        self._params = params
        self.caught: list[Caught] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        names = _NAMES.get(function)
        if names is None or not isinstance(result, Tensor) or result.grad_fn is None or len(args) > len(names):
            return result
        given = dict(zip(names, args, strict=False)) | kwargs
        if not set(given) <= set(names):
            return result
        if len(names) == 2 and id(given.get("input")) in self._params:  # a product or sum, either way round
            given = {"input": given[names[1]], names[1]: given["input"]}
        own = {name: id(given[name]) for name in ("weight", "bias") if id(given.get(name)) in self._params}
        call = self._call(function, given, own, result) if own else None
        if call is not None:
            found = Caught(call, own)
            self.caught.append(found)
            result.register_hook(lambda e: found.grads.append(e.detach()))  # type: ignore[no-untyped-call]
        return result

    def _call(self, function: Any, given: dict[str, Any], own: dict[str, int], result: Tensor) -> Call | None:
        a = given.get("input")
        if not isinstance(a, Tensor):
            return None
        weight, bias = (given[name] if name in own else None for name in ("weight", "bias"))
        a = a.detach()
        rest: dict[str, Any] = {"version": a._version}
        if function is F.linear:
            return Call("linear", weight, bias, a, **rest)
        if function is F.embedding:
            if given.get("scale_grad_by_freq") or given.get("max_norm") is not None:
                return None
            return Call("embedding", weight, None, a, {"padding_idx": given.get("padding_idx")}, **rest)
        if function in (torch.conv1d, torch.conv2d):
            return _convolution(given, weight, bias, a, rest)
        if function is F.group_norm:
            groups, eps = given["num_groups"], given.get("eps", 1e-5)
            rest["normalised"] = lambda x: F.group_norm(x, groups, eps=eps)
            return Call("norm", weight, bias, a, features=0, **rest)
        if function in (F.layer_norm, F.rms_norm):
            shape = list(given["normalized_shape"])
            eps = given.get("eps", 1e-5 if function is F.layer_norm else None)
            rest["normalised"] = lambda x: function(x, shape, eps=eps)
            return Call("norm", weight, bias, a, features=len(shape), **rest)
        param = weight if weight is not None else bias
        assert param is not None
        if not param.dim() or param.shape != result.shape[result.dim() - param.dim() :] or param.dim() >= result.dim():
            return None
        if weight is not None and a.shape != result.shape:
            return None
        return Call("norm", weight, bias, a, normalised=lambda x: x, features=param.dim(), **rest)


def _convolution(
    given: dict[str, Any], weight: Tensor | None, bias: Tensor | None, a: Tensor, rest: dict[str, Any]
) -> Call | None:
    kernel: Tensor = given["weight"]
    dims = kernel.dim() - 2
    if a.dim() != kernel.dim():
        return None

    def spread(value: Any) -> Any:
        if isinstance(value, str):
            return value
        listed = (value,) if isinstance(value, int) else tuple(value)
        return listed * dims if len(listed) == 1 else listed

    settings: dict[str, Any] = {name: spread(given.get(name, 1)) for name in ("stride", "dilation")}
    settings |= {"padding": spread(given.get("padding", 0)), "groups": given.get("groups", 1)}
    settings["kernel_size"] = tuple(kernel.shape[2:])
    return Call("conv", weight, bias, a, settings, features=0, **rest)


def codes(n: int) -> list[float]:
    """Returns a power of two for each of n examples; no two are alike in a row of 16, and rows differ in their order.

    >>> len(set(codes(16))), len(set(codes(2)))
    (16, 2)
    """
    stream, found = random.Random(LEVELS), list[float]()
    while len(found) < n:
        found += (2.0**power for power in stream.sample(range(-LEVELS // 2, LEVELS // 2), LEVELS))
    return found[:n]


def follows(plainly: Tensor, coded: Tensor, factors: Tensor) -> Layout | None:
    """Returns the layout by which an output's gradient follows the factors of the losses; None where there is none.

    Args:
        plainly: gradient of the sum of the losses.
        coded: gradient of the sum of the losses, each multiplied by its factor.
        factors: (n,) powers of two.
    """
    n = len(factors)
    half = plainly.element_size() < 4
    least = (_CLOSE_HALF if half else _CLOSE) * torch.linalg.vector_norm(plainly.float())
    for dim in range(min(2, plainly.dim())):
        size = plainly.shape[dim]
        if not size or size % n:
            continue
        for inmost in (False, True) if size > n else (False,):
            layout = Layout(dim, inmost)
            one, other = split(plainly, n, layout), split(coded, n, layout)
            off = other.float() / factors.reshape(-1, *[1] * (one.dim() - 1)).to(other.device) - one.float()
            if not torch.linalg.vector_norm(off) > least:
                return layout
    return None


