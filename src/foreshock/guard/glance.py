"""What is known of a step before it is taken, brought to the host by one transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import distributed

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum", "exp_inf", "max_exp_avg_sq")
"""What torch calls second moments, and those that do as it does."""


def glance(
    loss: Tensor | None, optimizer: Optimizer, *, group: distributed.Group | None = None, beside: Sequence[float] = ()
) -> tuple[dict[str, float], tuple[float, ...]]:
    """Returns the signals of an attempt: `loss`, `grad_norm`, `moments`, `lr`, `steps`, those that there are.

    Norms are taken in float32 (float64 for such tensors), of the gradients as they are; sharded ones count with all
    their shards. With a group of ranks the loss is their mean, and all ranks get the same numbers, by one collective.

    Args:
        loss: () on its device.
        optimizer: whose gradients and state these are.
        group: ranks that share the training.
        beside: further numbers, which are added up over the ranks.

    Returns:
        The signals, and the sums of `beside`.
    """
    params = [param for each in optimizer.param_groups for param in each["params"]]
    grads = [param.grad for param in params if param.grad is not None]
    states = [optimizer.state[param] for param in params if param in optimizer.state]
    moments = [kept for state in states for kept in _moments(state)]
    device = grads[0].device if grads else (loss.device if loss is not None else torch.device("cpu"))
    ranks = 1 if group is None else torch.distributed.get_world_size(group)
    parts = [
        _scalar(loss, device) / ranks, squares(grads, device, ranks), squares(moments, device, ranks),
        *(torch.tensor(float(each), dtype=torch.float64) for each in beside),
    ]  # fmt: skip
    packed = torch.stack([part.to(device=device, dtype=_wide(device)) for part in parts])
    if group is not None:
        packed = distributed.sum_(packed, group)
    mean, grad_squares, moment_squares, *sums = packed.tolist()
    found = {"steps": _count(states)}
    if loss is not None:
        found["loss"] = mean
    if grads:
        found["grad_norm"] = grad_squares**0.5
    if moments or not states:
        found["moments"] = moment_squares**0.5
    rate = max((float(each["lr"]) for each in optimizer.param_groups if "lr" in each), default=math.nan)
    return found | ({"lr": rate} if math.isfinite(rate) else {}), tuple(sums)


def squares(tensors: Sequence[Tensor], device: torch.device, ranks: int = 1) -> Tensor:
    """Returns the sum of all squares, () float64 (float32 where there is no float64), of this rank's shards.

    What every rank holds a copy of counts by its share, so that a sum over the ranks is right for both.
    """
    total = torch.zeros((), dtype=_wide(device), device=device)
    own: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for tensor in tensors:
        plain = _plain(tensor)
        own.setdefault((plain.device, plain.dtype, distributed.sharded(tensor)), []).append(plain)
    for (_, dtype, sharded), alike in own.items():
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        norms = torch.stack(torch._foreach_norm(alike, 2.0, dtype=kept))
        part = norms.to(device=device, dtype=_wide(device)).square().sum()
        total += part if sharded else part / ranks
    return total


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Returns whether every entry is finite; waits for the device."""
    floats = [_plain(tensor) for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
    largest = [each.abs().amax().float().cpu() for each in floats if each.numel()]
    return not largest or bool(torch.stack(largest).isfinite().all())


def _plain(tensor: Tensor) -> Tensor:
    """Returns the values that this rank holds of a tensor, as a dense real one."""
    held = tensor.detach()
    held = held.to_local() if distributed.sharded(held) else held  # type: ignore[attr-defined]
    held = held.coalesce().values() if held.is_sparse else held
    return torch.view_as_real(held) if held.is_complex() else held


def _moments(state: Mapping[str, Any]) -> list[Tensor]:
    return [state[name] for name in SECOND_MOMENTS if isinstance(state.get(name), Tensor)]


def _count(states: Sequence[Mapping[str, Any]]) -> float:
    """Returns the optimizer's own count of steps, where it can be had without waiting for a device."""
    if not states:
        return 0.0
    count = states[0].get("step", math.nan)
    if isinstance(count, Tensor):
        return float(count) if count.device.type == "cpu" else math.nan
    return float(count) if isinstance(count, (int, float)) else math.nan


def _scalar(loss: Tensor | None, device: torch.device) -> Tensor:
    return torch.zeros((), device=device) if loss is None else loss.detach().to(device)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
