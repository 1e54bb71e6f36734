"""Computing in a wider float type what a model computes in its own, without converting the model or its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

_NARROW = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# methods that would round a wide tensor: they return it as it is
_ROUNDING = {"float", "half", "bfloat16", "type_as"}


class Widened(TorchFunctionMode):
    """Casts what is narrower to `dtype` wherever it meets a tensor of that type; casts back to narrow ones are ignored.

    Inputs, masks and constants stay as they are until they meet a weight, as type promotion would have it, but for
    matrix products, convolutions and layers as well, which torch refuses to promote.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._narrower = frozenset(_NARROW[: _NARROW.index(dtype)])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if not any(tensor.dtype == self._dtype for tensor in tensors):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _ROUNDING and args[0].dtype == self._dtype:
            return args[0]
        if name == "to":
            first, rest = args[0], tree_map(self._target, (args[1:], kwargs))
            return func(first, *rest[0], **rest[1])
        if name in ("__get__", "__set__", "copy_", "set_", "__setitem__") or "out" in kwargs:
            return func(*args, **kwargs)
        kwargs = {key: self._target(value) if key == "dtype" else value for key, value in kwargs.items()}
        if name.endswith("_") and not name.endswith("__"):  # in place: what is written to stays what it is
            return func(args[0], *tree_map(self._cast, args[1:]), **tree_map(self._cast, kwargs))
        return func(*tree_map(self._cast, args), **tree_map(self._cast, kwargs))

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.dtype in self._narrower else value

    def _target(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in self._narrower:
            return torch.empty((), dtype=self._dtype, device=value.device)
        return self._dtype if isinstance(value, torch.dtype) and value in self._narrower else value


@contextmanager
def widened(params: Sequence[Tensor], dtype: torch.dtype, modules: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Has parameters, and all that is computed with them, in a wider type inside; their own memory is not touched.

    Args:
        params: the parameters.
        dtype: float32 or float64; parameters that are as wide already stay as they are.
        modules: those that are run; recurrent ones are given inputs of the type, which they insist on.
    """
    narrow = [param for param in params if param.dtype in _NARROW[: _NARROW.index(dtype)]]
    if not narrow:
        yield
        return
    own = [param.data for param in narrow]
    recurrent = [module for module in modules if isinstance(module, nn.RNNBase)]
    hooks = [module.register_forward_pre_hook(partial(_wide_inputs, dtype)) for module in recurrent]
    usual = torch.get_default_dtype()
    try:
        for param in narrow:
            param.data = param.data.to(dtype)
        if usual in _NARROW[: _NARROW.index(dtype)]:
            torch.set_default_dtype(dtype)
        with Widened(dtype):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_default_dtype(usual)
        for param, data in zip(narrow, own, strict=True):
            param.data = data


def _wide_inputs(dtype: torch.dtype, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    narrower = _NARROW[: _NARROW.index(dtype)]
    wide: tuple[Any, ...] = tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in narrower else x, given
    )
    return wide
