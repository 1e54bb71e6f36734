"""Tensors laid out for measuring: large ones as they lie, small ones packed into rows, huge ones cut into pieces.

A step of a small network takes a few milliseconds and has dozens of tensors; a handful of kernels for each would cost
more than a few per cent of it. So small tensors are copied into rows of equal width in which every tensor starts on a
new row: elementwise work is one kernel over the pack and a reduction gives a value per row. A large tensor is a pack of
its own, viewed and not copied. On CPU a pack is small enough to stay in the second-level cache while all probes pass
over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """How tensors are laid out on a kind of device, in elements.

    Attributes:
        width: a row of a pack of small tensors.
        alone: from this size on a tensor is a pack of its own: the copy that is saved is worth its kernels.
        capacity: most in a pack.
    """

    width: int
    alone: int
    capacity: int


# on CPU a pack and its scratch, half a MiB of float32 each at most, stay in a core's cache; 256 is the best of 64..1024
_CPU = Sizes(width=256, alone=1 << 15, capacity=1 << 17)
# on accelerators a launch costs more than memory traffic, and few rows are to be brought over
_ACCELERATOR = Sizes(width=4096, alone=1 << 18, capacity=1 << 24)


def sizes_of(device: torch.device) -> Sizes:
    """Returns the layout used on a device."""
    return _CPU if device.type == "cpu" else _ACCELERATOR


def local(tensor: Tensor) -> Tensor:
    """Returns the dense real tensor that this rank holds: a DTensor's shard, a sparse gradient made dense."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is not None:
        tensor = to_local()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the type a tensor is measured in: float64 stays, everything narrower becomes float32."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32


class Pack:
    """Some tensors of one device and type, or a piece of one.

    Attributes:
        index: positions of its tensors in the model's order.
        alone: whether it is one large tensor, or a piece of one: then it is one flat row.
        shape: (rows, width), or (elements,) if alone.
        lengths: rows of each tensor.
        in_order: whether a contiguous tensor has its elements in the pack's order.
        chosen: picks this pack's entries from a list over all tensors.
        group: parameter group that its tensors belong to.
    """

    def __init__(
        self, index: list[int], tensors: list[Tensor], piece: slice | None, group: int, *, apart: bool = False
    ) -> None:
        self.index, self.group, self._piece = index, group, piece
        first = tensors[0]
        self.device, self.dtype = first.device, working_dtype(first)
        sizes = [tensor.numel() for tensor in tensors]
        layout = sizes_of(first.device)
        self.alone = apart or sizes[0] >= layout.alone
        self._order: list[int] | None = None
        if self.alone:
            self.shape: tuple[int, ...] = (sizes[0] if piece is None else piece.stop - piece.start,)
            self.lengths = [1]
            self._slots = [(slice(None), torch.Size(self.shape))]
            if not first.is_contiguous():  # another memory order, such as channels last, is viewed in that order
                self._order = sorted(range(first.dim()), key=lambda d: (-first.stride()[d], d))
        else:
            width = layout.width
            self.lengths = [-(-size // width) for size in sizes]
            self.shape = (sum(self.lengths), width)
            starts = [width * sum(self.lengths[:i]) for i in range(len(sizes))]
            end = width * sum(self.lengths)
            self._slots = [
                (slice(start, start + tensor.numel()), tensor.shape)
                for start, tensor in zip(starts, tensors, strict=True)
            ]
            ends = [*starts[1:], end]
            pads = [stop - slot.stop for stop, (slot, _) in zip(ends, self._slots, strict=True)]
            self._pads = [torch.zeros(pad, dtype=self.dtype, device=self.device) for pad in pads]
        self.in_order = self._order is None and piece is None
        self.rows_count = sum(self.lengths)
        self.elements = math.prod(self.shape)
        self.chosen = itemgetter(*index) if len(index) > 1 else lambda tensors: (tensors[index[0]],)
        self._scratch: list[Tensor] = []
        self._own: dict[str, tuple[Tensor, list[Tensor]]] = {}
        self._sources: dict[str, tuple[tuple[int, ...], list[Tensor]]] = {}

    def use_scratch(self, buffers: Sequence[Tensor]) -> None:
        """Takes flat memory, shared with other packs, for intermediate results."""
        self._scratch = [buffer[: self.elements].view(self.shape) for buffer in buffers]

    def scratch(self, number: int) -> Tensor:
        """Returns shared memory of this pack's shape, of undefined content."""
        return self._scratch[number]

    def own(self, name: str) -> Tensor:
        """Returns the pack's own memory called `name`, zero where it was never written."""
        return self._room(name)[0]

    def swap(self, one: str, other: str) -> None:
        """Exchanges the names of two of the pack's own memories without moving a byte."""
        first, second = self._room(one), self._room(other)
        self._own[one], self._own[other] = second, first

    def rows(self, tensors: Sequence[Tensor | None], name: str, spare: int) -> Tensor:
        """Returns this pack's tensors (None: zeros) as rows, to be read only.

        A large tensor is viewed, or converted into scratch number `spare`; small ones are copied into the memory
        `name`, whose padding stays zero.
        """
        if not self.alone:
            return self.copy(tensors, name)
        tensor = tensors[self.index[0]]
        if tensor is None:
            return self._scratch[spare].zero_()
        flat = self.flat(tensor)
        return flat if flat.dtype == self.dtype else self._scratch[spare].copy_(flat)

    def lasting_rows(self, tensors: Sequence[Tensor | None], name: str, spare: int) -> Tensor:
        """Returns the same for tensors that live on from step to step: they are remembered as flat views, which makes
        copying many small ones twice as fast."""
        if self.alone:
            return self.rows(tensors, name, spare)
        chosen = self.chosen(tensors)
        if any(tensor is None or tensor.dtype != self.dtype for tensor in chosen):
            return self.copy(tensors, name)
        where = tuple(map(Tensor.data_ptr, chosen))
        known = self._sources.get(name)
        if known is None or known[0] != where:
            views = [tensor.detach().reshape(-1) for tensor in chosen]
            if tuple(map(Tensor.data_ptr, views)) != where:  # not contiguous: a copy would not follow its tensor
                return self.copy(tensors, name)
            pieces = [piece for pair in zip(views, self._pads, strict=True) for piece in pair if piece.numel()]
            known = self._sources[name] = where, pieces
        room = self.own(name)
        torch.cat(known[1], out=room.view(-1))
        return room

    def copy(self, tensors: Sequence[Tensor | None], name: str) -> Tensor:
        """Copies this pack's tensors (None: zeros) into the memory called `name` and returns it."""
        room, slots = self._room(name)
        if self.alone:
            tensor = tensors[self.index[0]]
            return room.zero_() if tensor is None else room.copy_(self.flat(tensor))
        chosen = self.chosen(tensors)
        if any(tensor is None for tensor in chosen):
            room.zero_()
            pairs = [(slot, tensor) for slot, tensor in zip(slots, chosen, strict=True) if tensor is not None]
            slots, chosen = [slot for slot, _ in pairs], [tensor for _, tensor in pairs]
        if slots:
            torch._foreach_copy_(slots, chosen)
        return room

    def keep(self, name: str, rows: Tensor, source: str) -> None:
        """Makes `rows`, which `rows(..., source, ...)` returned, the content of the memory called `name`."""
        if self.alone:
            self.own(name).copy_(rows)
        else:
            self.swap(name, source)

    def flat(self, tensor: Tensor) -> Tensor:
        """Returns a tensor's elements in the pack's order, 1-D; a view where that is possible."""
        if self._order is not None:
            tensor = tensor.permute(self._order)
        flat = tensor.reshape(-1)
        return flat if self._piece is None else flat[self._piece]

    def _room(self, name: str) -> tuple[Tensor, list[Tensor]]:
        found = self._own.get(name)
        if found is None:
            rows = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            flat = rows.view(-1)
            slots = [flat[slot].view(shape) for slot, shape in self._slots]
            found = self._own[name] = rows, slots
        return found


def build_apart(tensors: Sequence[Tensor], groups: Sequence[int]) -> list[Pack]:
    """Returns a pack for each non-empty tensor."""
    pairs = enumerate(zip(tensors, groups, strict=True))
    return [Pack([i], [tensor], None, group, apart=True) for i, (tensor, group) in pairs if tensor.numel()]


def build(tensors: Sequence[Tensor], groups: Sequence[int]) -> list[Pack]:
    """Returns packs that hold every non-empty tensor once, those of one device and type together.

    Args:
        tensors: dense and real.
        groups: for each the position of its parameter group; no pack holds tensors of two.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Pack]] = {}
    small: dict[tuple[torch.device, torch.dtype], dict[int, list[list[int]]]] = {}
    for i, (tensor, group) in enumerate(zip(tensors, groups, strict=True)):
        size, layout = tensor.numel(), sizes_of(tensor.device)
        kind = tensor.device, working_dtype(tensor)
        if size >= layout.alone:
            # pieces of nearly equal size, so that the last is not a crumb
            count = 1 if size <= 2 * layout.capacity else -(-size // layout.capacity)
            cuts = [slice(size * j // count, size * (j + 1) // count) for j in range(count)]
            packs = kinds.setdefault(kind, [])
            packs += [Pack([i], [tensor], cut if count > 1 else None, group) for cut in cuts]
        elif size:
            kinds.setdefault(kind, [])
            parts = small.setdefault(kind, {}).setdefault(group, [[]])
            if sum(-(-tensors[j].numel() // layout.width) * layout.width for j in parts[-1]) + size > layout.capacity:
                parts.append([])
            parts[-1].append(i)
    for kind, by_group in small.items():
        for group, parts in by_group.items():
            kinds[kind] += [Pack(part, [tensors[i] for i in part], None, group) for part in parts]
    return [pack for packs in kinds.values() for pack in packs]


def share_scratch(packs: Sequence[Pack], count: int) -> None:
    """Gives all packs of one device and type the same `count` pieces of memory for intermediate results."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Pack]] = {}
    for pack in packs:
        kinds.setdefault((pack.device, pack.dtype), []).append(pack)
    for (device, dtype), members in kinds.items():
        most = max(pack.elements for pack in members)
        buffers = [torch.empty(most, dtype=dtype, device=device) for _ in range(count)]
        for pack in members:
            pack.use_scratch(buffers)
