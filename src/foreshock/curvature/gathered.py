"""Modules whose parameters are sharded, put together for the length of a pass: FSDP2 and tensor parallel.

Double backward through such modules fails (FSDP2) or is silently wrong by 22 % (`parallelize_module`), while through
the whole parameters it is exact; the price is a copy of the model on each rank meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from foreshock import distributed
from foreshock.curvature.graph import moved
from foreshock.curvature.harmless import muted
from foreshock.curvature.space import Space
from foreshock.errors import UsageError

Slot = tuple[nn.Module, str, Tensor]


class WholeSpace(Space):
    """A space whose vectors may be given as sharded tensors; what it returns is whole, on every rank."""

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return super().flatten([None if tensor is None else distributed.whole(tensor) for tensor in tensors])


def slots_of(params: Sequence[Tensor], modules: Sequence[nn.Module]) -> list[Slot]:
    """Returns which modules hold which sharded parameters, and which of `params`.

    To be asked between training steps: within one, FSDP2 may hold the unsharded ones in their places.

    Raises:
        UsageError: one of `params` is in none of the modules.
    """
    wanted = {id(param) for param in params}
    slots: list[Slot] = [
        (module, name, param)
        for module in modules
        for name, param in module._parameters.items()
        if param is not None and (distributed.sharded(param) or id(param) in wanted)
    ]
    found = {id(param) for _, _, param in slots}
    for i, param in enumerate(params):
        if id(param) not in found:
            raise UsageError(
                f"params[{i}] is sharded, but is in none of the modules that the closure is known to run; pass model=, "
                "and make the operator between training steps"
            )
    return slots


class Gathered:
    """Plain leaves in place of sharded parameters.

    Args:
        params: the parameters, sharded or not.
        slots: where they are in the modules that are run, see `slots_of`.
        modules: all modules that are run.

    Attributes:
        leaves: for each of `params` a plain tensor of its whole shape, which requires gradients.
    """

    def __init__(self, params: Sequence[Tensor], slots: Sequence[Slot], modules: Sequence[nn.Module]) -> None:
        self._params = list(params)
        self._modules = modules
        self._versions = [param._version for param in params]
        self.leaves = [distributed.whole(param).requires_grad_() for param in params]
        wholes: dict[int, Tensor] = {id(param): leaf for param, leaf in zip(params, self.leaves, strict=True)}
        for _, _, param in slots:
            if id(param) not in wholes:
                wholes[id(param)] = distributed.whole(param)
        self._slots = [(module, name, wholes[id(param)]) for module, name, param in slots]

    def check(self) -> None:
        """Raises when the parameters have moved since they were gathered."""
        if any(param._version != seen for param, seen in zip(self._params, self._versions, strict=True)):
            raise UsageError(moved("they were gathered"))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Runs the modules on the whole parameters, without the hooks by which torch shards and unshards them."""
        before = [(module, name, module._parameters[name]) for module, name, _ in self._slots]
        tables = [table for module in self._modules for table in (module._forward_pre_hooks, module._forward_hooks)]
        others = [{key: hook for key, hook in table.items() if not _of_torch(hook)} for table in tables]
        try:
            with muted(tables):
                for table, kept in zip(tables, others, strict=True):
                    table.update(kept)
                for module, name, leaf in self._slots:
                    module._parameters[name] = leaf  # type: ignore[assignment]
                yield
        finally:
            for module, name, param in before:
                module._parameters[name] = param


def _of_torch(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
