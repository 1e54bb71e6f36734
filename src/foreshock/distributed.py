"""Every collective in the library: means over ranks, sharded parameters gathered, errors shared."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError

Group = Any  # a `torch.distributed.ProcessGroup`


def running() -> bool:
    """Returns whether this process is one rank of several."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor is a `DTensor`, as FSDP2 and tensor parallel modules have them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Returns the whole of a sharded tensor, on every rank, as a plain one; others as they are."""
    return tensor.full_tensor().detach() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def group_of(modules: Iterable[nn.Module]) -> Group | None:
    """Returns the ranks over which the gradients of some modules are averaged, None where there is this one only.

    The group of a `DistributedDataParallel`; all ranks where a parameter is sharded. Under tensor parallelism the
    ranks of one replica compute the same, so a mean over all of them is the mean over the replicas.
    """
    if not running():
        return None
    for module in modules:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.process_group
        if any(param is not None and sharded(param) for param in module._parameters.values()):
            return torch.distributed.group.WORLD
    return None


def share(weight: float, group: Group, device: torch.device) -> float:
    """Returns this rank's part of the sum of all ranks' weights."""
    total = torch.tensor(weight, dtype=torch.float64, device=_of(group, device))
    torch.distributed.all_reduce(total, group=group)
    return weight / float(total)


def sum_(tensor: Tensor, group: Group) -> Tensor:
    """Adds up a tensor over the ranks, in place, and returns it: one collective, the same bits on each rank."""
    torch.distributed.all_reduce(tensor, group=group)
    return tensor


def agreed(error: Exception | None, group: Group, device: torch.device) -> None:
    """Raises on every rank when one of them has an error, so that none waits for it in the next collective.

    Raises:
        Exception: this rank's own, or `UsageError` for that of another.
    """
    failed = torch.tensor(0.0 if error is None else 1.0, device=_of(group, device))
    torch.distributed.all_reduce(failed, group=group)
    if error is not None:
        raise error
    if float(failed) > 0:
        raise UsageError(f"{int(failed)} of the other ranks failed; what happened is in their own messages")


def _of(group: Group, device: torch.device) -> torch.device:
    """Returns where a group's numbers have to be."""
    return device if "nccl" in str(torch.distributed.get_backend(group)) else torch.device("cpu")
