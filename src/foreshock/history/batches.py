"""A batch that is kept for later: by reference where that is safe, and never given back other than it was."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import UsageError

SMALL = 1 << 16
"""Bytes up to which a tensor is copied: that takes no longer than making sure that it was not written to."""
_SAMPLE = 64  # elements that are looked at again to see that a tensor was not written to behind torch's back
_DEPTH = 8  # containers inside containers that are looked into


@dataclass(slots=True)
class Leaf:
    """A tensor or an array of a batch.

    Attributes:
        value: on the host: a copy, or the very one that was given.
        device: where it was; None for an array.
        grad: whether it required gradients.
        version: torch's count of writes to it when it was given; None for a copy.
        sample: some of its elements then.
        arrived: an event of the copy from a GPU, until it was waited for.
    """

    value: Any
    device: torch.device | None = None
    grad: bool = False
    version: int | None = None
    sample: Any = None
    arrived: Any = None

    def written(self) -> bool:
        """Returns whether somebody has written to it since it was given."""
        if self.sample is None:
            return self.version is not None and bool(self.value._version != self.version)
        if self.version is not None and self.value._version != self.version:
            return True
        return not _same_bits(_sample(self.value), self.sample)

    def on_host(self) -> Any:
        """Returns the value, once it is there."""
        if self.arrived is not None:
            self.arrived.synchronize()
            self.arrived = None
        return self.value

    def give(self) -> Any:
        """Returns a copy, where it was."""
        value = self.on_host()
        if self.device is None:
            return value.copy()
        made = value.clone() if self.device.type == "cpu" else value.to(_reachable(self.device), copy=True)
        return made.requires_grad_() if self.grad else made


@dataclass(frozen=True, slots=True)
class Kept:
    """One batch.

    Attributes:
        tree: its containers, copied, with `Leaf` in place of tensors and arrays.
        leaves: all of them.
        nbytes: bytes of host memory that it holds.
    """

    tree: Any
    leaves: tuple[Leaf, ...]
    nbytes: int

    def give(self, step: int) -> Any:
        """Returns the batch as it was, in containers and tensors of its own.

        Raises:
            UsageError: as `check`.
        """
        self.check(step)
        return _mapped(self.tree, (Leaf,), Leaf.give, _DEPTH)

    def check(self, step: int) -> None:
        """Raises a UsageError where the batch was written to after it was given, so that it is lost."""
        for leaf in self.leaves:
            if leaf.written():
                raise UsageError(
                    f"the batch of step {step} was overwritten in place after observe(batch=...), so it cannot be "
                    "given back: a buffer that the loader fills again? Use History(monitor, copy=True), which copies "
                    "each batch, or History(monitor, batches=...), which makes them again"
                )


def keep(batch: Any, *, copying: bool = False) -> Kept:
    """Returns what keeps a batch: containers are copied, tensors are not where they are large and on the host.

    Tensors of data loaders' workers and in pinned memory are copied, because both are scarce, and so are those on a
    GPU, without waiting for it. Large ones on the host are kept by reference: they can be written to until they are
    given back, which is seen by torch's count of writes and by a sample of their elements.

    Args:
        batch: tensors, arrays and anything else in dicts, lists, tuples, or objects with attributes.
        copying: copies everything.
    """
    leaves: list[Leaf] = []

    def kept(value: Any) -> Leaf:
        leaf = _of_tensor(value, copying) if isinstance(value, Tensor) else _of_array(value, copying)
        leaves.append(leaf)
        return leaf

    tree = _mapped(batch, (Tensor, np.ndarray), kept, _DEPTH)
    return Kept(tree, tuple(leaves), sum(map(size_of, leaves)))


def size_of(leaf: Leaf) -> int:
    """Returns the bytes that a tensor or an array of a batch takes."""
    return _size(leaf.value)


def _of_tensor(tensor: Tensor, copying: bool) -> Leaf:
    device, grad = tensor.device, tensor.requires_grad
    plain = tensor.detach() if grad else tensor
    if not tensor.is_cpu:
        return _from_gpu(plain, grad) if tensor.is_cuda else Leaf(plain.cpu(), device, grad)
    if copying or _size(plain) <= SMALL or _scarce(plain):
        return Leaf(plain.clone(), device, grad)
    version = None if plain.is_inference() else plain._version
    return Leaf(plain, device, grad, version, _sample(plain))


def _size(value: Any) -> int:
    if not isinstance(value, Tensor) or value.layout is torch.strided:
        return int(value.nbytes)
    if value.layout is torch.jagged:
        return int(value.values().nbytes)
    return value._nnz() * (value.element_size() + 16)


def _scarce(tensor: Tensor) -> bool:
    """Returns whether a tensor is in memory that others wait for: shared with a worker, or pinned."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.is_shared() or (torch.cuda.is_initialized() and tensor.is_pinned())  # type: ignore[no-untyped-call]


def _from_gpu(plain: Tensor, grad: bool) -> Leaf:
    host = torch.empty_like(plain, device="cpu", pin_memory=True)
    host.copy_(plain, non_blocking=True)
    return Leaf(host, plain.device, grad, arrived=torch.cuda.current_stream(plain.device).record_event())


def _of_array(array: Any, copying: bool) -> Leaf:
    if copying or array.nbytes <= SMALL or array.dtype.hasobject:
        return Leaf(array.copy())
    return Leaf(array, sample=_sample(array))


def _sample(value: Any) -> Any:
    """Returns a copy of some elements, evenly spaced; None of what cannot be seen as one row of them."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or not value.is_contiguous() or value.is_quantized:
            return None
        flat = value.reshape(-1)
        return flat[:: max(1, flat.numel() // _SAMPLE)].clone()
    if not value.flags.c_contiguous:
        return value.copy()
    flat = value.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLE)].copy()


def _same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    return bool(one.tobytes() == other.tobytes())


def _mapped(value: Any, kinds: tuple[type, ...], change: Callable[[Any], Any], depth: int) -> Any:
    """Returns a value with copies of its containers, in which everything of some kinds is changed."""
    kind = type(value)
    if kind in kinds or isinstance(value, kinds):
        return change(value)
    if depth == 0 or value is None or isinstance(value, (str, bytes, int, float, complex, type)):
        return value
    if kind is list or kind is tuple:
        return kind([_mapped(each, kinds, change, depth - 1) for each in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple.__new__(kind, [_mapped(each, kinds, change, depth - 1) for each in value])
    if kind is dict:
        return {key: _mapped(each, kinds, change, depth - 1) for key, each in value.items()}
    if isinstance(value, torch.nn.Module) or callable(value):
        return value
    if not isinstance(value, (MutableMapping, UserDict, list)) and not hasattr(value, "__dict__"):
        return value
    return _of_object(value, kinds, change, depth)


def _of_object(value: Any, kinds: tuple[type, ...], change: Callable[[Any], Any], depth: int) -> Any:
    """Returns a copy of a container of another class, or of an object with attributes; itself where that fails."""
    try:
        made = copy.copy(value)
        if isinstance(made, list):
            made[:] = [_mapped(each, kinds, change, depth - 1) for each in value]
        elif isinstance(made, Mapping) and not isinstance(made, UserDict):
            held: Any = made
            for key, each in value.items():
                held[key] = _mapped(each, kinds, change, depth - 1)
        for key, each in vars(value).items() if hasattr(value, "__dict__") else ():
            vars(made)[key] = _mapped(each, kinds, change, depth - 1)
    except Exception:  # somebody else's class, which may do whatever it likes
        return value
    return made


def _reachable(device: torch.device) -> torch.device:
    """Returns the device if this process has it, else the CPU."""
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        return torch.device("cpu")
    return device
