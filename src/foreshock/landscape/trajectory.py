"""The path of the parameters through a training, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.gathered import WholeSpace
from foreshock.errors import UsageError
from foreshock.landscape.components import PCA, pca
from foreshock.landscape.plane import Direction, Plane

_MEMORY = 1 << 28  # bytes of snapshots that are kept unless more are asked for
_LEAST = 6  # snapshots that must fit: two after the next thinning out
# One in three is kept when memory is full. An odd number, because an unstable mode alternates from step to step: at
# every second step it would stand still, at every third it still alternates.
_THIN = 3


class Trajectory:
    """Snapshots of the parameters: all of them while memory lasts, then every third, every ninth, ...

    What is kept is exact, so is its PCA, and any window of it can be asked for. The memory is for snapshots, each of
    the size of the parameters in float32 (float64 where they are); nothing is allocated before the first.
    Parameters that are sharded over ranks are gathered: call `add` on every rank, each keeps whole snapshots.

    Args:
        params: the parameters. They may be left out: then those of the first `add` are meant.
        memory: bytes that the snapshots may take.
        device: where they are kept; by default where the parameters are, "cpu" to spare an accelerator's memory.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> trajectory = Trajectory([w])
    >>> for _ in range(5):
    ...     trajectory.add()
    ...     with torch.no_grad():
    ...         w += torch.tensor([1.0, 0.0])
    >>> trajectory.steps.tolist(), trajectory.pca().explained.tolist()
    ([0, 1, 2, 3, 4], [1.0])
    """

    def __init__(
        self, params: Sequence[Tensor] | None = None, *, memory: int = _MEMORY,
        device: torch.device | str | None = None,
    ) -> None:
        self._params = None if params is None else tuple([params] if isinstance(params, Tensor) else params)
        self._memory, self._device = memory, device
        self._layout: WholeSpace | None = None
        self._rows: list[Tensor] = []
        self._steps: list[int] = []
        self._seen = 0
        self._stride = 1

    def add(self, values: Sequence[Tensor] | Tensor | None = None, *, step: int | None = None) -> None:
        """Takes a snapshot, or passes it over where snapshots have been thinned out.

        Args:
            values: tensors shaped like the parameters, or a flat vector (n,); by default the parameters as they are.
            step: its number, above the last one; by default how many were added before.

        Raises:
            UsageError: other shapes; steps that do not grow; memory too small for six snapshots.
        """
        if values is None and self._params is None:
            raise UsageError("Trajectory().add(): nothing is known of the parameters yet; pass them here or above")
        if self._params is None:
            assert values is not None
            self._params = (values,) if isinstance(values, Tensor) else tuple(values)
        number = self._seen if step is None else int(step)
        if self._steps and number <= self._steps[-1]:
            raise UsageError(f"add(step={number}): steps must grow; the last one kept is {self._steps[-1]}")
        place, self._seen = self._seen, self._seen + 1
        if place % self._stride:
            return
        space = self._space
        if len(self._rows) >= self._capacity:
            self._rows, self._steps = self._rows[::_THIN], self._steps[::_THIN]
            self._stride *= _THIN
            if place % self._stride:
                return
        row = space.flatten(self._params) if values is None else space.take(values).clone()
        self._rows.append(row.to(self._device or row.device))
        self._steps.append(number)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the snapshots kept, flat, shape (n,)."""
        return iter(self._rows)

    @property
    def steps(self) -> np.ndarray:
        """The steps of the snapshots kept, shape (m,)."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def stride(self) -> int:
        """One in how many snapshots is kept: 1, 3, 9, ..."""
        return self._stride

    def snapshot(self, step: int) -> list[Tensor]:
        """Returns the last snapshot kept that is not of a later step, as tensors shaped like the parameters.

        Raises:
            UsageError: there is none so early.
        """
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        if place < 0:
            raise UsageError(f"snapshot({step}): no snapshot is that early; {self._held()}")
        return self._space.split(self._rows[place].to(self._space.device))

    def pca(
        self, k: int = 2, *, first: int | None = None, last: int | None = None, top: Direction | None = None
    ) -> PCA:
        """Returns the principal components of the snapshots kept in a window, see `pca`.

        Args:
            k: components wanted.
            first, last: the window, in steps, both included.
            top: the sharpest direction: how far the components are aligned with it is then in the result.

        Raises:
            UsageError: fewer than two snapshots in the window.
        """
        steps = self.steps
        inside = (steps >= (-math.inf if first is None else first)) & (steps <= (math.inf if last is None else last))
        places = np.flatnonzero(inside)
        if len(places) < 2:
            raise UsageError(f"pca(first={first}, last={last}): {len(places)} snapshots in the window; {self._held()}")
        return pca(self._space.params, [self._rows[place] for place in places], k, steps=steps[places], top=top)

    def plane(self, *, first: int | None = None, last: int | None = None) -> Plane:
        """Returns the plane of the first two principal components of a window, through its mean."""
        return self.pca(2, first=first, last=last).plane()

    def state_dict(self) -> dict[str, Any]:
        """Returns what `load_state_dict` continues from; the snapshots are not copied."""
        return {"rows": list(self._rows), "steps": list(self._steps), "seen": self._seen, "stride": self._stride}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues a trajectory.

        Raises:
            UsageError: snapshots of another number of parameters.
        """
        rows = list(state["rows"])
        if self._params is not None and any(row.numel() != self._space.n for row in rows):
            raise UsageError(
                f"load_state_dict: snapshots of {rows[0].numel()} numbers for parameters of {self._space.n}"
            )
        self._rows = [row.to(self._device or row.device) for row in rows]
        self._steps, self._seen, self._stride = list(state["steps"]), int(state["seen"]), int(state["stride"])

    @property
    def _space(self) -> WholeSpace:
        if self._layout is None:
            if self._params is None:
                raise UsageError("Trajectory(): nothing was added yet")
            self._layout = WholeSpace(self._params)
        return self._layout

    @property
    def _capacity(self) -> int:
        each = self._space.n * self._space.dtype.itemsize
        room = self._memory // each
        if room < _LEAST:
            raise UsageError(
                f"Trajectory(memory={self._memory}): a snapshot takes {each} bytes, and at least {_LEAST} must fit; "
                f"pass memory={_LEAST * each} or more, and device='cpu' to keep them off the accelerator"
            )
        return int(room)

    def _held(self) -> str:
        if not self._steps:
            return "nothing was added yet"
        thinned = f", one in {self._stride}" if self._stride > 1 else ""
        return f"those kept are of steps {self._steps[0]} to {self._steps[-1]}{thinned}"
