"""Keeps measured numbers on the device and brings N steps of them to the host in one transfer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import ForeshockError, UsageError
from foreshock.probes.sweep import Sweep, Swept
from foreshock.run import RunMemory, RunWriter, StepRecord
from foreshock.run.absent import absent, is_absent

FLUSH_STEPS = 128
"""Most steps held back: the host's share of a step falls with their number and is small from here on."""

FLUSH_SECONDS = 2.0
"""Longest time a finished step is held back while steps go on."""

DENSE_STEPS = 4096
"""Steps whose per-tensor signals are all kept; later ones are thinned out by a factor that doubles with the step."""

RING_STEPS = 256
"""Steps of per-tensor signals kept in memory, to be written in full when an event is raised."""

RING_AFTER = 64
"""Steps after an event is raised whose per-tensor signals are still written in full."""


Blocks = dict[tuple[str, tuple[str, ...]], np.ndarray]
"""(table, column names) -> (N, names) values."""


@dataclass(slots=True)
class Measured:
    """One step's numbers, not yet on the host.

    Attributes:
        step: its number.
        time: seconds since the epoch.
        host: signal -> number that the host knows already.
        device: signal -> tensor of one element.
        swept: what the sweep over the tensors left.
    """

    step: int
    time: float
    host: dict[str, float]
    device: dict[str, Tensor] = field(default_factory=dict)
    swept: Swept | None = None

    def keep(self, name: Any, value: Any) -> None:
        """Adds a signal that a probe measured.

        Raises:
            UsageError: the name is not a string or the value not one number.
        """
        if not isinstance(name, str) or not name:
            raise UsageError(f"a signal's name must be a non-empty string, got {name!r}")
        if not isinstance(value, Tensor):
            self.host[name] = float(value)
        elif value.numel() == 1:
            self.device[name] = value.detach().clone()  # the probe may go on to change it in place
        else:
            raise UsageError(f"signal {name!r} must be one number, got a tensor of shape {tuple(value.shape)}")


class Recorder:
    """Takes `Measured` steps, writes them in blocks and gives them back as records.

    Args:
        sink: where the records go.
        failed: told of a part of the sweep whose arithmetic on the host raised.

    Attributes:
        dtype: type of the stored values; float64 for float64 models.
    """

    def __init__(self, sink: RunWriter | RunMemory, failed: Callable[[Any, Exception], None]) -> None:
        self.sink = sink
        self.dtype: type[np.floating[Any]] = np.float32
        self._failed = failed
        self._held: list[Measured] = []
        self._since = 0.0
        self._place: dict[str, dict[str, int]] = {"step": {}, "tensors": {}}
        self._places: dict[str, dict[tuple[str, ...], np.ndarray]] = {"step": {}, "tensors": {}}
        self._names: dict[str, tuple[str, ...]] = {"step": (), "tensors": ()}
        self._ring: deque[tuple[int, float, np.ndarray]] = deque(maxlen=RING_STEPS)
        self._detail_until = -1
        self._detailed = -1
        self.broken: Exception | None = None

    def take(self, measured: Measured) -> bool:
        """Holds a step; returns whether it is time to flush."""
        now = time.monotonic()
        if not self._held:
            self._since = now
        self._held.append(measured)
        return len(self._held) >= FLUSH_STEPS or now - self._since >= FLUSH_SECONDS

    def flush(self) -> list[StepRecord]:
        """Brings the held steps over, writes them and returns their run-wide signals.

        A disk that cannot be written keeps the error in `broken`; the records are returned all the same.
        """
        held, self._held = self._held, []
        if not held:
            return []
        values = self._transfer(held)
        blocks = self._settle(held, values)
        steps = np.array([each.step for each in held], np.int64)
        times = np.array([each.time for each in held])
        whole = self._table("step", blocks, len(held))
        self._write("step", self._names["step"], steps, times, whole)
        detail = self._table("tensors", blocks, len(held))
        if detail.shape[1]:
            self._write_tensors(steps, times, detail)
        return self._records(held, whole)

    def detail(self, step: int) -> None:
        """Writes the per-tensor signals around a step in full: those still in memory and those to come."""
        self._detail_until = max(self._detail_until, step + RING_AFTER)
        self._write_detail()

    def _transfer(self, held: Sequence[Measured]) -> list[tuple[dict[str, float], np.ndarray | None]]:
        """Returns for each step its one-element tensors and its swept vector, by one copy from each device and type."""
        pieces: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for each in held:
            for tensor in each.device.values():
                pieces.setdefault((tensor.device, tensor.dtype), []).append(tensor.reshape(1))
            if each.swept is not None:
                pieces.setdefault((each.swept.flat.device, each.swept.flat.dtype), []).append(each.swept.flat)
        arrays = {}
        for kind, parts in pieces.items():
            joined = torch.cat(parts)
            wide = joined.cpu() if joined.dtype in (torch.float32, torch.float64) else joined.cpu().double()
            values = wide.numpy().astype(np.float64)
            ends = np.cumsum([part.numel() for part in parts]).tolist()
            arrays[kind] = iter([values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)])
        result = []
        for each in held:
            scalars = {name: float(next(arrays[t.device, t.dtype])[0]) for name, t in each.device.items()}
            flat = None if each.swept is None else each.swept.flat
            result.append((scalars, None if flat is None else next(arrays[flat.device, flat.dtype])))
        return result

    def _settle(
        self, held: Sequence[Measured], values: Sequence[tuple[dict[str, float], np.ndarray | None]]
    ) -> Blocks:
        """Returns the columns of neighbours that were measured together, absent ones marked."""
        count = len(held)
        blocks: Blocks = {}

        def rows(names: tuple[str, ...], table: str) -> np.ndarray:
            found = blocks.get((table, names))
            if found is None:
                found = blocks[table, names] = absent((count, len(names)))
            return found

        for i, (each, (scalars, _)) in enumerate(zip(held, values, strict=True)):
            for name, value in (each.host | scalars).items():
                run_wide = "/" not in name or name.startswith("lr/")
                rows((name,), "step" if run_wide else "tensors")[i, 0] = value
        for first, last in _stretches(held):
            swept = held[first].swept
            if swept is None:
                continue
            block = np.stack([vector for _, vector in values[first:last] if vector is not None])
            steps = np.array([held[i].step for i in range(first, last)], np.int64)
            known = [each.swept.host for each in held[first:last] if each.swept is not None]
            for name, column in Sweep.settle(steps, swept.layout, block, known, self._failed).items():
                if name.endswith("/"):
                    rows(_prefixed(name, swept.layout[0].names), "tensors")[first:last] = column
                else:
                    rows((name,), "step")[first:last, 0] = column
        return blocks

    def _table(self, table: str, blocks: Blocks, count: int) -> np.ndarray:
        """Returns (N, all columns so far) values in stored precision; the columns of a table only grow."""
        mine = {names: block for (of, names), block in blocks.items() if of == table}
        known = self._places[table]
        gone = {names: is_absent(block) for names, block in mine.items()}
        for names in mine:
            if names not in known and not gone[names].all():  # what was never measured gets no column
                fresh = tuple(name for name in names if name not in self._place[table])
                self._place[table].update(zip(fresh, range(len(self._names[table]), 10**9), strict=False))
                self._names[table] += fresh
                known[names] = np.array([self._place[table][name] for name in names])
        wide = absent((count, len(self._names[table])))
        for names, block in mine.items():
            if names in known:  # a column may be in two blocks, when the parameter groups have changed
                wide[:, known[names]] = np.where(gone[names], wide[:, known[names]], block)
        if self.dtype == np.float64:
            return wide
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = wide.astype(np.float32)
        narrow[is_absent(wide)] = absent(1, np.float32)[0]
        return narrow

    def _write_tensors(self, steps: np.ndarray, times: np.ndarray, values: np.ndarray) -> None:
        keep = np.array([step % _thinning(step) == 0 for step in steps.tolist()])
        self._write("tensors", self._names["tensors"], steps[keep], times[keep], values[keep])
        if steps[-1] >= DENSE_STEPS:
            for step, moment, row in zip(steps.tolist(), times.tolist(), values, strict=True):
                self._ring.append((step, moment, row))
            if steps[0] <= self._detail_until:
                self._write_detail()

    def _write_detail(self) -> None:
        rows = [
            (step, moment, row) for step, moment, row in self._ring
            if self._detailed < step <= self._detail_until and step % _thinning(step)
        ]
        if not rows:
            return
        self._detailed = rows[-1][0]
        width = len(self._names["tensors"])
        values = absent((len(rows), width), self.dtype)
        for i, (_, _, row) in enumerate(rows):
            values[i, : len(row)] = row  # columns only grow, so an older row is a prefix
        steps = np.array([step for step, _, _ in rows], np.int64)
        times = np.array([moment for _, moment, _ in rows])
        self._write("detail", self._names["tensors"], steps, times, values)

    def _write(
        self, table: str, names: tuple[str, ...], steps: np.ndarray, times: np.ndarray, values: np.ndarray
    ) -> None:
        if not len(steps) or not names:
            return
        try:
            self.sink.append(table, names, steps, times, values)
        except (ForeshockError, OSError) as error:
            self.broken = error

    def _records(self, held: Sequence[Measured], values: np.ndarray) -> list[StepRecord]:
        names = self._names["step"]
        gone = is_absent(values)
        rows = values.tolist()
        if gone.any():
            return [
                StepRecord(each.step, {n: v for n, v, a in zip(names, row, mask, strict=True) if not a}, each.time)
                for each, row, mask in zip(held, rows, gone.tolist(), strict=True)
            ]
        return [
            StepRecord(each.step, dict(zip(names, row, strict=True)), each.time)
            for each, row in zip(held, rows, strict=True)
        ]

    def rewind(self, step: int) -> None:
        """Forgets what was held or kept from `step` on: the run goes back there."""
        self._held = [each for each in self._held if each.step < step]
        kept = [row for row in self._ring if row[0] < step]
        self._ring.clear()
        self._ring.extend(kept)
        self._detailed = min(self._detailed, step - 1)
        self._detail_until = min(self._detail_until, step - 1)


@cache
def _prefixed(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


def _thinning(step: int) -> int:
    """Returns the distance at which per-tensor signals are kept around a step: 1, 2, 4, ..., so that a run of n steps
    keeps about DENSE_STEPS * (1 + log2(n / DENSE_STEPS) / 2) of them."""
    return 1 if step < DENSE_STEPS else 1 << (step // DENSE_STEPS).bit_length()


def _stretches(held: Sequence[Measured]) -> list[tuple[int, int]]:
    """Returns [first, last) of the runs of neighbouring steps that can be settled together."""
    edges = [0]
    for i in range(1, len(held)):
        before, now = held[i - 1].swept, held[i].swept
        if before is None or now is None or before.layout != now.layout:
            edges.append(i)
    return list(zip(edges, [*edges[1:], len(held)], strict=True))
