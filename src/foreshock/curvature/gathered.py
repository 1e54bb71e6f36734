"""Modules run on other tensors than their own parameters, for the length of a pass: whole ones, or wider ones.

Double backward through such modules fails (FSDP2) or is silently wrong by 22 % (`parallelize_module`), while through
the whole parameters it is exact; the price is a copy of the model on each rank meanwhile. Parameters of 16 bits give
products that are 1 to 5 % off; the same weights in float32 give those of rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from foreshock import distributed
from foreshock.curvature.anatomy import LOW, nodes_of
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
    """Returns which modules hold which of `params`, and which other parameters that are sharded or of 16 bits.

    To be asked between training steps: within one, FSDP2 may hold the unsharded ones in their places.

    Raises:
        UsageError: one of `params` is in none of the modules.
    """
    wanted = {id(param) for param in params}
    slots: list[Slot] = [
        (module, name, param)
        for module in modules
        for name, param in module._parameters.items()
        if param is not None and (distributed.sharded(param) or id(param) in wanted or param.dtype in LOW)
    ]
    found = {id(param) for _, _, param in slots}
    for i, param in enumerate(params):
        if id(param) not in found:
            raise UsageError(
                f"params[{i}] is in none of the modules that the closure is known to run; pass model=, and make the "
                "operator between training steps"
            )
    return slots


class Gathered:
    """Plain leaves in place of parameters: whole ones for sharded ones, float32 ones for those of 16 bits.

    Args:
        params: the parameters, sharded or not.
        slots: where they are in the modules that are run, see `slots_of`.
        modules: all modules that are run.
        wide: makes parameters and buffers of 16 bits float32.

    Attributes:
        leaves: for each of `params` a plain tensor of its whole shape, which requires gradients.
        wide: whether these were widened.
    """

    def __init__(
        self, params: Sequence[Tensor], slots: Sequence[Slot], modules: Sequence[nn.Module], *, wide: bool = False
    ) -> None:
        self._params = list(params)
        self._modules = modules
        self.wide = wide
        self._versions = [param._version for param in params]
        self.leaves = [self._plain(param).requires_grad_() for param in params]
        plain: dict[int, Tensor] = {id(param): leaf for param, leaf in zip(params, self.leaves, strict=True)}
        for _, _, param in slots:
            if id(param) not in plain:
                plain[id(param)] = self._plain(param)
        self._slots = [(module, name, plain[id(param)]) for module, name, param in slots]

    def _plain(self, param: Tensor) -> Tensor:
        whole = distributed.whole(param)
        return whole.detach().float() if self.wide and whole.dtype in LOW else whole

    def check(self) -> None:
        """Raises when the parameters have moved since they were gathered."""
        if any(param._version != seen for param, seen in zip(self._params, self._versions, strict=True)):
            raise UsageError(moved("they were gathered"))

    def check_loss(self, loss: Tensor) -> None:
        """Raises when a loss depends on a parameter itself, past the module that has it.

        Raises:
            UsageError: a closure that uses the parameters directly, as in a penalty that it adds.
        """
        places = {id(param): i for i, param in enumerate(self._params) if param is not self.leaves[i]}
        for node in nodes_of(loss):
            variable = getattr(node, "variable", None)
            if id(variable) in places:
                raise UsageError(
                    f"the closure uses params[{places[id(variable)]}] itself, not through the module that has it; "
                    "for sharded parameters use the module\'s attribute"
                )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Runs the modules on the leaves, without the hooks by which torch shards and unshards."""
        before = [(module, name, module._parameters[name]) for module, name, _ in self._slots]
        buffers = [
            (module, name, buffer)
            for module in self._modules
            for name, buffer in module._buffers.items()
            if self.wide and buffer is not None and buffer.dtype in LOW
        ]
        tables = [table for module in self._modules for table in (module._forward_pre_hooks, module._forward_hooks)]
        others = [{key: hook for key, hook in table.items() if not _of_torch(hook)} for table in tables]
        recurrent = [(m, m._flat_weights) for m in self._modules if isinstance(m, nn.RNNBase)]
        try:
            with muted(tables):
                for table, kept in zip(tables, others, strict=True):
                    table.update(kept)
                for module, name, leaf in self._slots:
                    module._parameters[name] = leaf  # type: ignore[assignment]
                for module, name, buffer in buffers:
                    module._buffers[name] = buffer.float()
                for rnn, _ in recurrent:
                    rnn._flat_weights = [getattr(rnn, name, None) for name in rnn._flat_weights_names]
                yield
        finally:
            for module, name, param in before:
                module._parameters[name] = param
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            for rnn, weights in recurrent:
                rnn._flat_weights = weights


def _of_torch(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed")
