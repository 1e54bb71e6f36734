"""Names for the tensors of an attribution, and the modules they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foreshock.curvature.surroundings import modules_of
from foreshock.errors import UsageError

__all__ = ["by_module", "modules_and_names"]

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")


def modules_and_names(
    names: nn.Module | Sequence[str] | None, params: Sequence[Tensor], losses: Iterable[Callable[[], Any]]
) -> tuple[list[nn.Module], list[str]]:
    """Returns the modules that closures run and a name for each parameter.

    Args:
        names: the model, or a name for each parameter; by default what the closures' code names is looked through.
        params: the parameters; those that no module holds are named by their place.
        losses: the closures.

    Raises:
        UsageError: names of another number, or twice the same.
    """
    roots = [names] if isinstance(names, nn.Module) else [root for each in losses for root in modules_of(each)]
    if names is None or isinstance(names, nn.Module):
        known: dict[int, str] = {}
        for root in roots:
            for name, param in root.named_parameters():
                known.setdefault(id(param), _clean(name))
        found = [known.get(id(param), f"params.{i}") for i, param in enumerate(params)]
        repeated = len(set(found)) != len(found)
        return roots, [f"{name}#{i}" for i, name in enumerate(found)] if repeated else found
    listed = [str(name) for name in names]
    if len(listed) != len(params) or len(set(listed)) != len(listed):
        raise UsageError(
            f"attribute(names): a different name for each parameter, got {len(listed)} names ({len(set(listed))} "
            f"different ones) for {len(params)} parameters; or give the model"
        )
    return roots, listed


def _clean(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def by_module(columns: Mapping[str, float]) -> dict[str, float]:
    """Returns the sums over the tensors of each module, all levels: a layer's, its block's, in order of appearance.

    >>> by_module({"body.0.weight": 1.0, "body.0.bias": 2.0, "head.weight": 4.0})
    {'body': 3.0, 'body.0': 3.0, 'head': 4.0}
    """
    sums: dict[str, float] = {}
    for name, value in columns.items():
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            sums[module] = sums.get(module, 0.0) + value
    return sums
