"""Where tensors live in memory, and how much of it the host has left."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.distributed import local

PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})
"""Classes of tensors that are memory and nothing else."""

_FALLBACK = 4 << 30
"""Bytes taken to be available where the system does not tell."""


def dense(tensor: Tensor) -> Tensor:
    """Returns the memory that a tensor shows, each element once: a view, of this rank's part of a `DTensor`.

    >>> dense(torch.zeros(3, 1).expand(3, 4)).shape
    torch.Size([3, 1])
    """
    if type(tensor) in PLAIN and tensor.is_contiguous():
        return tensor.detach()
    view = local(tensor.detach())
    for dim, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if stride == 0 and size > 1:
            view = view.narrow(dim, 0, 1)
    return view


def place(view: Tensor) -> tuple[Any, ...] | None:
    """Returns what two tensors share if and only if they show the same memory in the same way; None for empty ones."""
    if view.numel() == 0:
        return None
    if view.is_contiguous():
        return view.data_ptr(), view.dtype, view.shape
    return view.data_ptr(), view.dtype, view.shape, view.stride()


def strides(view: Tensor) -> tuple[int, ...]:
    """Returns the strides of a copy that takes no more room than its elements and keeps the order of the dimensions.

    >>> strides(torch.zeros(2, 3).t()), strides(torch.zeros(4, 6)[:, ::2])
    ((1, 3), (3, 1))
    """
    if view.is_contiguous():
        return view.stride()
    return torch.empty_like(view, device="meta", memory_format=torch.preserve_format).stride()


def available() -> int:
    """Returns how many bytes of host memory are there to be taken, containers' limits respected."""
    found = [_meminfo("MemAvailable")]
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        found.append(None)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            found.append(max(0, most - now))
    return min((each for each in found if each is not None), default=_FALLBACK)


def installed() -> int:
    """Returns how many bytes of host memory this machine, or this container, has: the same at every call."""
    found = [_meminfo("MemTotal"), _number("/sys/fs/cgroup/memory.max")]
    found.append(_number("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min((each for each in found if each is not None), default=_FALLBACK)


def _meminfo(name: str) -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())  # "max", where there is no limit, is no number
    except (OSError, ValueError):
        return None
