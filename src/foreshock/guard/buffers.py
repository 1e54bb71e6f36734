"""Host memory that a snapshot is copied into, and the copying: asynchronous from a GPU, never ahead of an update."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foreshock.guard.freeze import Spec

_ALIGNED = 64  # bytes: a cache line, and more than any type's alignment
_ROOMY = 2.0  # a copy on the device is made first if this many times its size is free there


class Buffer:
    """One flat piece of host memory, cut into tensors.

    Attributes:
        flat: (bytes,) uint8.
        views: the tensors in it, as `specs` say.
        lent: somebody else holds `flat` as well; it is never written again.
        pinned: a GPU can copy into it on its own.
        pending: events of copies under way, in or out.
    """

    def __init__(self, flat: Tensor, specs: Sequence[Spec], *, lent: bool = False, pinned: bool = False) -> None:
        self.flat, self.lent, self.pinned = flat, lent, pinned
        self.specs: tuple[Spec, ...] = ()
        self.views: list[Tensor] = []
        self.pending: list[Any] = []
        self._arrived: dict[torch.device, Any] = {}
        self._timed: list[tuple[Any, Any]] = []
        self.cut(specs)

    def cut(self, specs: Sequence[Spec]) -> None:
        """Cuts the memory into other tensors, which must fit."""
        if tuple(specs) == self.specs:
            return
        self.specs, self.views = tuple(specs), []
        for (dtype, shape, stride, _), (start, end) in zip(specs, extents(specs), strict=True):
            piece = self.flat[start:end].view(getattr(torch, dtype))
            self.views.append(piece.as_strided(shape, stride, piece.storage_offset()))

    def fill(self, tensors: Sequence[Tensor]) -> float:
        """Copies live tensors in and returns the seconds that the host took.

        On a GPU the copy runs on a stream of its own and the host goes on at once. The stream that trains goes on at
        once as well where a copy on the device finds room; otherwise it waits, so that no update comes before the copy.
        """
        begun = time.perf_counter()
        with torch.no_grad():
            for device, numbers in _by_device(tensors).items():
                out, live = [self.views[i] for i in numbers], [tensors[i] for i in numbers]
                if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
                    self._fill_from_gpu(device, out, live)
                else:
                    torch._foreach_copy_(out, live)
        return time.perf_counter() - begun

    def empty_into(self, copies: Sequence[tuple[Tensor, int]]) -> None:
        """Copies the tensors of the given numbers to where they go, each in the order of its device's work."""
        made_in_inference = any(live.is_inference() for live, _ in copies)
        with torch.inference_mode() if made_in_inference else torch.no_grad():
            for device, places in _by_device([live for live, _ in copies]).items():
                self._order(device)
                live, held = [copies[i][0] for i in places], [self.views[copies[i][1]] for i in places]
                torch._foreach_copy_(live, held, non_blocking=device.type == "cuda")
                if device.type == "cuda":
                    self.pending.append(torch.cuda.current_stream(device).record_event())
            for device in {live.device for live, _ in copies if live.device.type not in ("cpu", "cuda")}:
                torch.get_device_module(device).synchronize()

    def wait(self) -> None:
        """Waits until all copies under way are done: before the host reads the memory, or it goes to something else."""
        _finish(self.pending)
        self._arrived.clear()

    def stalled(self) -> float:
        """Returns the seconds that the last `fill` has cost the stream that trains; 0 without a GPU."""
        spent = 0.0
        for begun, ended in self._timed:
            ended.synchronize()
            spent += begun.elapsed_time(ended) / 1e3
        return spent

    def _order(self, device: torch.device) -> None:
        """Makes a reader wait for what is still being copied in: the device's stream if it can, else the host."""
        own = self._arrived.get(device)
        if own is not None and len(self._arrived) == 1:
            torch.cuda.current_stream(device).wait_event(own)
        else:
            self.wait()

    def _fill_from_gpu(self, device: torch.device, out: list[Tensor], live: list[Tensor]) -> None:
        with torch.cuda.device(device):
            training, side = torch.cuda.current_stream(), _side_stream(device)
            begun, ended, arrived = (_cuda().Event(enable_timing=True) for _ in range(3))
            begun.record(training)
            staged = _staged(device, live)
            side.wait_stream(training)
            with torch.cuda.stream(side):
                torch._foreach_copy_(out, live if staged is None else staged, non_blocking=True)
                arrived.record(side)
            if staged is None:
                training.wait_event(arrived)
            else:
                for tensor in staged:
                    tensor.record_stream(side)
            ended.record(training)
        self.pending.append(arrived)
        self._arrived[device], self._timed = arrived, [(begun, ended)]


def extents(specs: Sequence[Spec]) -> list[tuple[int, int]]:
    """Returns where each tensor begins and ends in a buffer, in bytes.

    >>> extents([("float32", (3,), (1,), "cpu"), ("int8", (5, 2), (2, 1), "cpu")])
    [(0, 12), (64, 74)]
    """
    found, at = [], 0
    for dtype, shape, _, _ in specs:
        size = getattr(torch, dtype).itemsize
        for each in shape:
            size *= each
        found.append((at, at + size))
        at += -(-size // _ALIGNED) * _ALIGNED
    return found


def needed(specs: Sequence[Spec]) -> int:
    """Returns how many bytes a buffer for some tensors has."""
    places = extents(specs)
    return -(-places[-1][1] // _ALIGNED) * _ALIGNED if places else 0


def allocate(specs: Sequence[Spec], *, pinned: bool) -> Buffer:
    """Returns a new buffer, in memory that a GPU can write to on its own if it can be had.

    torch's own allocator of pinned memory rounds sizes up to powers of two, which would waste up to half of it; so
    ordinary memory is registered with the driver, and unregistered when it goes. What is not is touched here,
    so that the pages are there when it is filled.
    """
    flat = torch.empty(needed(specs), dtype=torch.uint8, device="cpu")
    buffer = Buffer(flat, specs)
    if pinned and flat.numel():
        runtime = _cuda().cudart()
        buffer.pinned = int(runtime.cudaHostRegister(flat.data_ptr(), flat.numel(), 0)) == 0
        ending = weakref.finalize(flat, _let_go, runtime, flat.data_ptr() if buffer.pinned else None, buffer.pending)
        ending.atexit = False
    if not buffer.pinned:
        flat.zero_()
    return buffer


def _let_go(runtime: Any, address: int | None, pending: list[Any]) -> None:
    """Makes memory ordinary again, before it is freed, once nothing is copied to it any more."""
    _finish(pending)
    if address is not None:
        runtime.cudaHostUnregister(address)


def _finish(pending: list[Any]) -> None:
    while pending:
        pending.pop().synchronize()


def _cuda() -> Any:
    """Returns `torch.cuda`, much of which has no types."""
    return torch.cuda


def _by_device(tensors: Sequence[Tensor]) -> dict[torch.device, list[int]]:
    found: dict[torch.device, list[int]] = {}
    for number, tensor in enumerate(tensors):
        found.setdefault(tensor.device, []).append(number)
    return found


def _staged(device: torch.device, live: list[Tensor]) -> list[Tensor] | None:
    """Returns copies on the device, or None where they would leave it short of memory."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in live)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if free < _ROOMY * size:
        return None
    try:
        copies = [torch.empty_like(tensor) for tensor in live]
    except torch.OutOfMemoryError:
        return None
    torch._foreach_copy_(copies, live)
    return copies


_STREAMS: dict[torch.device, Any] = {}


def _side_stream(device: torch.device) -> Any:
    if device not in _STREAMS:
        _STREAMS[device] = _cuda().Stream(device)
    return _STREAMS[device]
