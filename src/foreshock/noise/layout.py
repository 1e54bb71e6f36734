"""Which slice of a layer's output is whose, proven: examples that change places take their slices along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.curvature.harmless import harmless
from foreshock.noise.layers import Layout, split

Key = tuple[str, int]  # a layer's name and which of its calls

_CLOSE, _CLOSE_HALF = 1e-3, 3e-2  # of an output's norm: kernels round by where in the batch a row is


def proven(
    model: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]], n: int, dim: int, layers: Mapping[str, nn.Module]
) -> dict[Key, Layout | None]:
    """Returns where the n examples lie in the output of each call of each layer; None where they do not.

    Two forward passes in eval mode, without gradients, the second with the examples one place on. An output follows
    them place by place, or belongs to no example: a table of positions, a mask, what is made of the whole batch. Modes,
    buffers and random streams are as before.

    Args:
        model: the module.
        given: positional and named arguments, with the examples in `dim` of every tensor that is as long there.
        n: how many.
        dim: 0 or 1.
        layers: by name.
    """
    kept: dict[Key, Tensor] = {}
    found: dict[Key, Layout | None] = {}

    def keep(key: Key, output: Tensor) -> None:
        kept[key] = output.clone()  # what follows may write over it

    def compare(key: Key, output: Tensor) -> None:
        found[key] = _layout(kept.pop(key, None), output, n)

    with harmless([], model), torch.no_grad():
        model.eval()
        _called(model, given, layers, keep)
        _called(model, _moved(given, n, dim), layers, compare)
    return found


def _called(
    model: nn.Module, given: Any, layers: Mapping[str, nn.Module], told: Callable[[Key, Tensor], None]
) -> None:
    counts = dict.fromkeys(layers, 0)

    def hear(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                told((name, counts[name]), output)
                counts[name] += 1

        return hook

    hooks = [module.register_forward_hook(hear(name)) for name, module in layers.items()]
    try:
        model(*given[0], **given[1])
    finally:
        for hook in hooks:
            hook.remove()


def _layout(before: Tensor | None, after: Tensor, n: int) -> Layout | None:
    """Returns the layout by which an output has followed its examples, None where it has not."""
    if before is None or before.shape != after.shape or not before.is_floating_point():
        return None
    close = (_CLOSE_HALF if before.element_size() < 4 else _CLOSE) * torch.linalg.vector_norm(before.float())
    for dim in range(min(2, before.dim())):
        size = before.shape[dim]
        if size == 0 or size % n:
            continue
        for inmost in (False, True) if size > n else (False,):
            layout = Layout(dim, inmost)
            off = split(after, n, layout) - split(before, n, layout).roll(1, 0)
            if torch.linalg.vector_norm(off.float()) <= close:
                return layout
    return None


def _moved(value: Any, n: int, dim: int) -> Any:
    """Returns arguments with the examples one place on."""
    if isinstance(value, Tensor):
        return value.roll(1, dim) if value.dim() > dim and value.shape[dim] == n else value
    if isinstance(value, Mapping):
        return {key: _moved(each, n, dim) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        inner = [_moved(each, n, dim) for each in value]
        if isinstance(value, tuple):
            return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
        return inner
    return value
