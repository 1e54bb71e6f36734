"""Every collective in the library: means over ranks, sharded parameters gathered, errors shared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
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


def max_(tensor: Tensor, group: Group) -> Tensor:
    """Takes the largest over the ranks of each number of a tensor, in place, and returns it: one collective."""
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=group)
    return tensor


def place(group: Group) -> tuple[int, int]:
    """Returns this process's rank in a group, and how many ranks that has.

    Raises:
        UsageError: it is not in the group.
    """
    rank = torch.distributed.get_rank(group)
    if rank < 0:
        raise UsageError("this process is not in the group that it was given; leave the call to those that are in it")
    return rank, torch.distributed.get_world_size(group)


def slice_of(tensor: Tensor) -> tuple[Tensor, Group, int]:
    """Returns this rank's slice of a `DTensor` that is split once, the ranks it is split between, and the dimension.

    The gradient of the slice becomes that of the `DTensor`.

    Raises:
        UsageError: the tensor is split along no dimension or several, or awaits a sum over ranks.
    """
    from torch.distributed.tensor import Replicate, Shard

    whole: Any = tensor
    split = [at for at, each in enumerate(whole.placements) if not isinstance(each, Replicate)]
    placement = whole.placements[split[0]] if len(split) == 1 else None
    if not isinstance(placement, Shard):
        raise UsageError(
            f"a DTensor is placed as {whole.placements}; it must be split along one of its dimensions over one of its "
            "mesh's, and replicated over the others: use redistribute(), or give its to_local() and the group"
        )
    return whole.to_local(), whole.device_mesh.get_group(split[0]), placement.dim % tensor.ndim


def each(mine: Any, group: Group | None) -> Iterator[Any]:
    """Yields what every rank of a group has, in the order of the ranks, one at a time; anything that pickles.

    Tensors come on the processor's side. All ranks must take all of them.
    """
    rank, count = place(group)
    for source in range(count):
        box = [mine if source == rank else None]
        torch.distributed.broadcast_object_list(
            box, src=source if group is None else torch.distributed.get_global_rank(group, source), group=group
        )
        yield box[0]


def local(tensor: Tensor) -> Tensor:
    """Returns a rank's part of a `DTensor`; others as they are."""
    return tensor.to_local() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a `DTensor` placed as another is; as it is where it lies so already."""
    one: Any = tensor
    other: Any = like
    return tensor if one.placements == other.placements else one.redistribute(placements=other.placements)


def alike(
    names: Sequence[str], numbers: Sequence[int] | None, error: Exception | None, group: Group, device: torch.device
) -> None:
    """Raises on every rank when one of them has an error, or when numbers that must be the same on all are not.

    Raises:
        Exception: this rank's own, or `UsageError` for that of another or for the first number that differs.
    """
    mine = torch.tensor([int(error is not None), *(numbers or [0] * len(names))], device=_of(group, device))
    every = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(every, mine, group=group)
    failed, *columns = torch.stack(every, dim=1).tolist()
    if error is not None:
        raise error
    if any(failed):
        raise UsageError(f"{sum(failed)} of the other ranks failed; what happened is in their own messages")
    for name, column in zip(names, columns, strict=True):
        if len(set(column)) > 1:
            raise UsageError(f"{name} must be the same on every rank; by rank: {', '.join(map(str, column))}")


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
