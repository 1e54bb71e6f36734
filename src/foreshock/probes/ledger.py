"""Where a sweep writes its sums and maxima, and how they are read on the host.

Every quantity has one number for each row of each pack, in memory that is reused from step to step: reductions write
straight into it (`out=`), so that a step ends with a single copy of a few hundred numbers. They are added up per
tensor on the host, for many steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreshock.probes.packs import Pack


class Ledger:
    """Slots for the sums and maxima of one plan's packs."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._packs = packs
        self.rows = sum(pack.rows_count for pack in packs)
        self._device = packs[0].device if packs else torch.device("cpu")
        self._memory: dict[str, tuple[list[Tensor], dict[int, Tensor]]] = {}
        owners = np.concatenate([np.repeat(pack.index, pack.lengths) for pack in packs] or [np.empty(0, np.int64)])
        # rows of one tensor lie together, so each run of equal owners is one tensor, or one piece of it
        self._starts = np.flatnonzero(np.diff(owners, prepend=-1)) if len(owners) else owners
        self._owner = owners[self._starts] if len(owners) else owners
        self._alone = np.array([pack.alone for pack in packs for _ in range(pack.rows_count)], bool)

    def sum(self, name: str, pack: Pack, x: Tensor) -> None:
        """Writes each row's sum."""
        torch.sum(x, -1, out=self._slot(name, pack))

    def top(self, name: str, pack: Pack, x: Tensor) -> None:
        """Writes each row's largest element."""
        torch.amax(x, -1, out=self._slot(name, pack))

    def dot(self, name: str, pack: Pack, x: Tensor, y: Tensor, *, spare: int) -> None:
        """Writes each row's scalar product of x and y; may overwrite scratch number `spare`."""
        if pack.alone:
            torch.dot(x, y, out=self._slot(name, pack))
        else:
            torch.sum(torch.mul(x, y, out=pack.scratch(spare)), -1, out=self._slot(name, pack))

    def squares(self, name: str, pack: Pack, x: Tensor) -> None:
        """Writes each row's sum of squares; read it with `summed(..., roots=True)`."""
        if pack.alone:
            torch.dot(x, x, out=self._slot(name, pack))
        else:
            torch.linalg.vector_norm(x, dim=1, out=self._slot(name, pack))  # squared on the host, in float64

    def nothing(self, name: str, pack: Pack) -> None:
        """Writes zeros."""
        self._slot(name, pack).zero_()

    def take(self, names: Sequence[str]) -> list[Tensor]:
        """Returns the current values as 1-D tensors, to be copied before the next step."""
        buffers = [buffer for name in names for buffer in self._memory[name][0]]
        return buffers if len(buffers) == len(names) else [buffer.to(self._device) for buffer in buffers]

    def summed(self, rows: np.ndarray, count: int, *, roots: bool = False) -> np.ndarray:
        """Returns (N, count) sums per tensor of (N, rows) values.

        Args:
            rows: what was taken under one name, N steps of it.
            count: number of tensors.
            roots: whether `squares` wrote it.
        """
        if roots:
            rows = np.where(self._alone, rows, np.square(rows))
        return self._spread(np.add.reduceat(rows, self._starts, axis=1), count, np.add, 0.0)

    def topped(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Returns (N, count) maxima per tensor of (N, rows) values; -inf for a tensor without elements."""
        return self._spread(np.maximum.reduceat(rows, self._starts, axis=1), count, np.maximum, -np.inf)

    def _spread(self, runs: np.ndarray, count: int, how: np.ufunc, empty: float) -> np.ndarray:
        result = np.full((len(runs), count), empty)
        if len(set(self._owner.tolist())) == len(self._owner):
            result[:, self._owner] = runs
        else:
            how.at(result.T, self._owner, runs.T)
        return result

    def adopt(self, names: Sequence[str], values: Tensor) -> None:
        """Reads quantities from (quantities, rows) memory that somebody else writes."""
        for name, row in zip(names, values, strict=True):
            self._memory[name] = [row], {}

    def _slot(self, name: str, pack: Pack) -> Tensor:
        found = self._memory.get(name)
        if found is None:
            found = self._memory[name] = self._allocate()
        return found[1][id(pack)]

    def _allocate(self) -> tuple[list[Tensor], dict[int, Tensor]]:
        buffers: list[Tensor] = []
        slots: dict[int, Tensor] = {}
        kinds: list[tuple[torch.device, torch.dtype]] = []
        for pack in self._packs:
            kind = pack.device, pack.dtype
            if kind not in kinds:
                kinds.append(kind)
        for kind in kinds:
            members = [pack for pack in self._packs if (pack.device, pack.dtype) == kind]
            buffer = torch.zeros(sum(pack.rows_count for pack in members), dtype=kind[1], device=kind[0])
            at = 0
            for pack in members:
                slots[id(pack)] = buffer[at] if pack.alone else buffer[at : at + pack.rows_count]
                at += pack.rows_count
            buffers.append(buffer)
        return buffers, slots
