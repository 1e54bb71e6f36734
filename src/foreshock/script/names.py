"""Names for an optimizer's tensors, found in the modules that are alive; nothing is patched for it."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["live_roots", "name_parameters"]

# Modules that only hold another one, and where: their level is no part of the model's names.
_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}


def live_roots() -> list[nn.Module]:
    """Returns the modules alive in this process that are no part of another one."""
    # type(), not isinstance(): the latter asks proxies for their class, which would run code of the script.
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    return [module for module in modules if id(module) not in inner]


def name_parameters(optimizer: Optimizer, roots: Iterable[nn.Module] | None = None) -> list[tuple[str, Tensor]]:
    """Returns a name and the tensor for everything the optimizer updates, in the order of the model.

    The module that holds most of the tensors gives the names; where two hold equally many, the one with the longer
    names, which is the outer one. Tensors it does not hold are named by the next module, with its class in front,
    and those that no module holds by their place in the optimizer, "group0.3".

    Args:
        optimizer: its parameter groups say which tensors are wanted.
        roots: the modules to look into; those alive when not given.
    """
    wanted = {
        id(tensor): (f"group{place}.{index}", tensor)
        for place, group in enumerate(optimizer.param_groups)
        for index, tensor in enumerate(group["params"])
    }
    models = [_unwrapped(root) for root in (live_roots() if roots is None else roots)]
    held = [(type(model).__name__, _held(model, wanted)) for model in models]
    held.sort(key=lambda root: (len(root[1]), max((len(name) for name in root[1].values()), default=0)), reverse=True)
    named: list[tuple[str, Tensor]] = []
    taken: set[str] = set()
    for owner, names in held:
        prefix = f"{owner}." if named else ""
        for key, name in names.items():
            if key in wanted:
                named.append((_unique(prefix + name, taken), wanted.pop(key)[1]))
    return named + [(_unique(place, taken), tensor) for place, tensor in wanted.values()]


def _unwrapped(module: nn.Module) -> nn.Module:
    while type(module).__name__ in _WRAPPERS:
        module = getattr(module, _WRAPPERS[type(module).__name__])
    return module


def _held(model: nn.Module, wanted: Iterable[int]) -> dict[int, str]:
    """Returns {id of tensor: name} for the wanted tensors under a module."""
    return {
        id(tensor): name.replace("._orig_mod.", ".")
        for name, tensor in model.named_parameters()
        if id(tensor) in wanted
    }


def _unique(name: str, taken: set[str]) -> str:
    count, result = 1, name
    while result in taken:
        count += 1
        result = f"{name}#{count}"
    taken.add(result)
    return result
