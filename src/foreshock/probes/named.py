"""The head that the user has named, for models whose graph does not show it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.probes.nodes import plain

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")


class Named:
    """A linear layer of the model, with its input where it was listened to.

    Attributes:
        param: its weight (K, d).
        bias: its bias.
        classes: K.
        factor: of the softmax's logits, taken for 1.
        shown: whether the graph shows its input; None while that is not known.
    """

    factor = 1.0

    def __init__(self, module: nn.Module) -> None:
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        self.param, self.classes = weight, weight.shape[0]
        self.bias = bias if isinstance(bias, Tensor) else None
        self.shown: bool | None = None
        self._module = module
        self._input: Tensor | None = None
        self._hook: Any = None

    def weight(self) -> Tensor:
        """Returns the (K, d) weight as it is now."""
        return self.param.detach()

    def features(self) -> Tensor | None:
        """Returns the (M, d) input of its last call, where it was listened to."""
        kept, self._input = self._input, None
        return None if kept is None or kept.shape[-1] != self.param.shape[1] else kept.reshape(-1, kept.shape[-1])

    def rows(self, dim: int) -> Tensor | None:
        """Returns None: what becomes of its rows is not known."""
        return None

    def listen(self) -> None:
        """Keeps the input of the next calls, if the graph has been seen not to show it."""
        if self.shown is False and self._hook is None:
            self._hook = self._module.register_forward_hook(Ear(self))
            weakref.finalize(self, self._hook.remove)

    def stop(self) -> None:
        """Takes the hook away."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class Ear:
    """The hook on the head. A model that is pickled or copied meanwhile takes a deaf one along."""

    def __init__(self, owner: Named | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        owner = self._owner()
        if owner is not None and given and isinstance(given[0], Tensor):
            owner._input = plain(given[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return Ear, ()


def named(head: nn.Module | str, model: Any) -> Named:
    """Returns the head of a model by its name, or the one that is given.

    Raises:
        UsageError: the model has no such module, or it has no weight of K rows.
    """
    layers = {_clean(name): module for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}
    if isinstance(head, str) and not layers:
        raise UsageError(
            f"Softmax(head={head!r}): a name needs the module, and the monitor was given a {type(model).__name__}; "
            "give the layer itself"
        )
    layer = layers.get(_clean(head)) if isinstance(head, str) else head
    if layer is None:
        raise UsageError(f"Softmax(head={head!r}): the model has no such module. {_candidates(layers)}")
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        what = type(layer).__name__
        raise UsageError(f"Softmax(head=...): a {what} has no weight of shape (K, d). {_candidates(layers)}")
    return Named(layer)


def _candidates(layers: dict[str, nn.Module]) -> str:
    names = [name for name, layer in layers.items() if getattr(getattr(layer, "weight", None), "ndim", 0) == 2]
    shown = ("..., " if len(names) > 8 else "") + ", ".join(repr(name) for name in names[-8:])
    return f"Layers with such a weight: {shown or 'none'}"


def _clean(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = f"{name}.".replace(wrapper, "").removesuffix(".") if name else name
    return name
