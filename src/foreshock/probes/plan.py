"""The tensors an optimizer updates: their names, sizes, memory layout, and the units that signals speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.probes.ledger import Ledger
from foreshock.probes.native import QUANTITIES, Native, usable
from foreshock.probes.packs import Pack, build, build_apart, local, share_scratch
from foreshock.probes.second_moment import SecondMoment, second_moment

MAX_UNITS = 200
"""Most per-tensor columns of a signal: above it tensors are grouped by module (200 x 8 signals = 6.4 kB a step)."""

COPY_LIMIT = 1 << 30
"""Bytes that copies of parameters and last gradients may take together; above it neither is kept, and the signals
that need them (`update_norm`, `update_rms`, `grad_cosine`) are not measured."""

SCRATCH = 3
"""Intermediate results that a part of a sweep may hold at once."""


class Plan:
    """The tensors of one optimizer, named, packed and grouped; rebuilt when parameter groups change.

    Attributes:
        tensors: names of the optimizer's tensors, in model order.
        params: the tensors themselves.
        plain: whether all are ordinary dense real tensors (no DTensor, no complex numbers).
        group_of: (tensors,) for each the position of its parameter group.
        constants: for each parameter group its settings, see `CONSTANTS`; another list once one of them has changed.
        moments: for each parameter group how the optimizer keeps its second moment, or None; see `refresh`.
        native: the compiled sweep, where it serves these tensors and `fused` says that all parts can do with it.
        packs: memory layout; each pack holds tensors of one parameter group.
        ledger: where sums over the packs' rows are written.
        keeps_copies: whether parameters and gradients may be copied (`COPY_LIMIT`).
        names: units that per-tensor signals speak of: the tensors, or the modules of a model with more than 200.
        unit_of: (tensors,) for each tensor its unit.
        numel: (tensors,) elements of each, as this rank holds it.
        recorded: type in which its signals are stored.
        copied_at: step for whose update the parameters were copied (into the packs' memory "before").
        under_way: step whose update is about to be taken.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor, int]], optimizer: Optimizer, *, fused: bool = False) -> None:
        self.tensors = tuple(name for name, _, _ in named)
        self.params = [tensor for _, tensor, _ in named]
        self.group_of = np.array([group for _, _, group in named])
        self.moments: tuple[SecondMoment | None, ...] = ()
        self.constants: list[tuple[object, ...]] = []
        self._members = _members(optimizer)
        self._sizes = [tensor.numel() for tensor in self.params]  # a parameter's `.data` may be replaced
        self.refresh(optimizer)
        self.plain = all(local(tensor) is tensor for tensor in self.params)
        dense = [local(tensor.detach()) for tensor in self.params]
        groups = [group for _, _, group in named]
        self.native: Native | None = None
        if fused and usable(dense):
            self.packs: list[Pack] = build_apart(dense, groups)
            self.native = Native(self.packs)
        else:
            self.packs = build(dense, groups)
            share_scratch(self.packs, SCRATCH)
        self.device = self.packs[0].device if self.packs else torch.device("cpu")
        self.ledger = Ledger(self.packs)
        if self.native is not None:
            self.ledger.adopt(QUANTITIES, self.native.out)
        bytes_each = sum(pack.elements * torch.empty(0, dtype=pack.dtype).element_size() for pack in self.packs)
        self.keeps_copies = 2 * bytes_each <= COPY_LIMIT
        self.names, units = group_by_module(self.tensors)
        self.unit_of = np.array(units)
        self.numel = np.array([tensor.numel() for tensor in dense], dtype=np.float64)
        self.copied_at = self.under_way = -1
        self.recorded = np.float64 if any(pack.dtype == torch.float64 for pack in self.packs) else np.float32

    def refresh(self, optimizer: Optimizer) -> bool:
        """Reads the optimizer's constants again; returns False where its tensors have changed, so that a new plan is
        needed."""
        constants = [tuple(map(group.get, CONSTANTS)) for group in optimizer.param_groups]
        if constants != self.constants:
            self.constants = constants
            self.moments = tuple(second_moment(optimizer, group) for group in optimizer.param_groups)
        return _members(optimizer) == self._members and [param.numel() for param in self.params] == self._sizes

    def grads(self) -> list[Tensor | None]:
        """Returns the gradients as they are now."""
        grads = [param.grad for param in self.params]
        if self.plain and not any([grad is not None and grad.is_sparse for grad in grads]):  # noqa: C419 (a hot path)
            return grads
        return [None if grad is None else local(grad) for grad in grads]

    def values(self) -> list[Tensor]:
        """Returns the parameters as they are now, dense and real."""
        return self.params if self.plain else [local(param) for param in self.params]

    def by_unit(self, values: np.ndarray, how: np.ufunc = np.add) -> np.ndarray:
        """Returns (..., units) sums (or maxima) of (..., tensors) values."""
        if len(self.names) == len(self.tensors):
            return values
        result = np.full((*values.shape[:-1], len(self.names)), 0.0 if how is np.add else -np.inf)
        with np.errstate(invalid="ignore"):
            how.at(np.moveaxis(result, -1, 0), self.unit_of, np.moveaxis(values, -1, 0))
        return result


CONSTANTS = (
    "betas", "alpha", "rho", "eps", "weight_decay", "amsgrad", "centered", "maximize", "momentum", "dampening",
    "nesterov",
)
"""Settings of a parameter group that are held against those of the step before."""


def _members(optimizer: Optimizer) -> list[tuple[int, ...]]:
    """Returns what changes when a parameter group is added or one of its tensors is replaced."""
    return [tuple(map(id, group["params"])) for group in optimizer.param_groups]


def name_tensors(
    named: Mapping[int, str], order: Sequence[int], optimizer: Optimizer
) -> list[tuple[str, Tensor, int]]:
    """Returns (name, tensor, group) for each of the optimizer's tensors, in model order, those of no model last.

    Args:
        named: id of a parameter -> its name in the model.
        order: ids in model order.
        optimizer: whose parameter groups are listed; a tensor outside the model is called `group0.3`.
    """
    place = {key: i for i, key in enumerate(order)}
    found = []
    for g, group in enumerate(optimizer.param_groups):
        for j, tensor in enumerate(group["params"]):
            found.append((place.get(id(tensor), len(place)), named.get(id(tensor), f"group{g}.{j}"), tensor, g))
    found.sort(key=lambda row: row[0])
    return [(name, tensor, g) for _, name, tensor, g in found]


def group_by_module(tensors: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Returns unit names and for each tensor its unit: tensors up to `MAX_UNITS`, modules above.

    The modules are taken at the greatest depth at which there are at most `MAX_UNITS` of them.

    >>> group_by_module(["a.weight", "a.bias"])
    (('a.weight', 'a.bias'), [0, 1])
    """
    if len(tensors) <= MAX_UNITS:
        return tuple(tensors), list(range(len(tensors)))
    split = [name.split(".") for name in tensors]
    for depth in range(max(map(len, split)) - 1, 0, -1):
        prefixes = [".".join(parts[: min(depth, max(1, len(parts) - 1))]) for parts in split]
        names = tuple(dict.fromkeys(prefixes))
        if len(names) <= MAX_UNITS:
            break
    else:  # a flat model of hundreds of tensors: neighbours together
        size = -(-len(tensors) // MAX_UNITS)
        starts = [i // size * size for i in range(len(tensors))]
        prefixes = [f"tensors {start}-{min(len(tensors), start + size) - 1}" for start in starts]
        names = tuple(dict.fromkeys(prefixes))
    place = {name: i for i, name in enumerate(names)}
    return names, [place[prefix] for prefix in prefixes]
