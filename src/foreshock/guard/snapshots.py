"""The ring of snapshots: states of a training in host memory, from which it can be put back bit for bit."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from foreshock.distributed import running
from foreshock.errors import ForeshockWarning, UsageError
from foreshock.guard import spill as disk
from foreshock.guard.buffers import Buffer, allocate, needed
from foreshock.guard.cadence import IN_A_GROUP, USUAL, Cadence, spare
from foreshock.guard.freeze import Freezer, Spec
from foreshock.guard.holding import Holding, checked, freeze, thaw
from foreshock.guard.memory import available, installed
from foreshock.guard.snapshot import Snapshot, check_writable, from_file, from_plain, to_file, to_plain

STATE_VERSION = 1


class Snapshots:
    """Copies of a training's state, from which it can be put back in place, bit for bit::

        snapshots = Snapshots(every=50)
        snapshots.attach(model, optimizer, scheduler=scheduler)
        for step, batch in enumerate(loader):
            if snapshots.due(step):
                snapshots.take(step)
            ...
        snapshots.restore(snapshots.before(step - 100))

    A snapshot holds parameters and buffers, the optimizer's state and options, and whatever else was attached, with
    the random streams of Python, numpy and torch. What third-party optimizers keep is held as well, in whatever lists,
    dicts and attributes; tensors that share memory are copied once. Restoring writes into the tensors that are there,
    so that references, views, tied weights and captured graphs stay valid. Taking one changes nothing and draws no
    random number. Each rank of a group holds its own part; nothing is communicated.

    A state that is taken after a batch's forward pass has that batch in its running statistics and random streams;
    right after an update there is none of it.

    Args:
        every: steps from one snapshot to the next. None is 20 steps (50 in a group of ranks, where all must agree);
            where the first four show that this costs more than three times `max_overhead`, the distance is raised to
            what `max_overhead` allows, 200 steps at most, and then fixed. A resumed run keeps the distance it had;
            two runs from the same seed may differ in it only where their cost is near that limit: give `every` to
            rule that out.
        keep: how many there are at most. They thin out with age: the recent ones are dense, the older ones at about
            doubling distances.
        memory: bytes of host memory that they may take; fewer are kept where they do not fit. None takes a quarter of
            what is available at the first one; in a group a rank's share of an eighth of what the machine has.
        max_overhead: share of the wall time that taking them may cost, for `every=None`; getting hold of memory, which
            ends once the ring is full, is not counted.
        spill: directory to write each of them to as well, and to delete them from as they are forgotten, with
            safetensors (`pip install 'foreshock[snapshots]'`); `Snapshots.load` reads it in another process. Writing
            waits for the disk, and counts as cost.

    Attributes:
        refused: why the last `take` did not fit; empty if it did.
        seconds: wall time that taking snapshots has cost so far.

    Raises:
        UsageError: an argument that cannot work.
        MissingExtraError: safetensors is needed and not installed.
    """

    def __init__(
        self,
        *,
        every: int | None = None,
        keep: int = 6,
        memory: int | None = None,
        max_overhead: float = 0.01,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in (("every", every), ("keep", keep), ("memory", memory)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"Snapshots({name}=...): must be a positive integer, got {value!r}")
        if not 0.0 < max_overhead <= 1.0:
            raise UsageError(f"Snapshots(max_overhead=...): must be above 0 and at most 1, got {max_overhead!r}")
        self.keep, self.memory = keep, memory
        self.spill = None if spill is None else Path(spill)
        if spill is not None:
            disk.library()
        self.refused = ""
        self.seconds = 0.0
        self._cadence = Cadence(every, float(max_overhead))
        self._holding: Holding | None = None
        self._ring: list[Snapshot] = []
        self._spare: Buffer | None = None
        self._unwritten: set[int] = set()
        self._owns_folder = False
        self._told = False
        self._allocating = 0.0  # seconds spent on getting hold of memory

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, every: int | None = None, memory: int | None = None) -> Snapshots:
        """Returns the snapshots that `Snapshots(spill=path)` wrote, this rank's, for a fresh model and optimizer.

        Attach these and `restore`; what is taken then goes on in the same directory, as many of them as there are, six
        at least, and at the distance that was in force.

        Raises:
            RunError: there is none that is whole; those that are not are left out with a `ForeshockWarning`.
            MissingExtraError: safetensors is not installed.
        """
        found = cls(every=every, memory=memory, spill=path)
        for step, (text, tensors) in disk.read_all(Path(path)).items():
            snapshot, more = from_file(step, text, tensors)
            found._ring.append(snapshot)
        found._cadence.load_state_dict(more["cadence"])
        found._cadence.last = step
        found.keep, found._owns_folder = max(found.keep, len(found._ring)), True
        return found

    def attach(
        self,
        model: nn.Module | None,
        optimizer: Optimizer,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        data: Any = None,
    ) -> None:
        """Says what a snapshot holds; snapshots that are there already can be restored into it.

        Args:
            model: None holds the optimizer's parameters only, and no buffers.
            optimizer: any torch optimizer.
            scheduler: one, or a list, tuple or dict of them.
            scaler: a GradScaler.
            ema: a module of averaged weights, or anything with `state_dict` and `load_state_dict`.
            data: what knows the position in the data, by its `state_dict`.

        Raises:
            UsageError: one of them cannot be brought back.
        """
        self._holding = checked(Holding(model, optimizer, scheduler, scaler, ema, data))

    @property
    def holding(self) -> Holding | None:
        """The live objects that were attached; None before that."""
        return self._holding

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the snapshots there are, ascending."""
        return tuple(snapshot.step for snapshot in self._ring)

    @property
    def distance(self) -> int | None:
        """Steps from one snapshot to the next; None while it is being measured."""
        return self._cadence.distance

    @property
    def nbytes(self) -> int:
        """Bytes of host memory held."""
        buffers = [snapshot.buffer for snapshot in self._ring] + ([self._spare] if self._spare else [])
        return sum(buffer.flat.numel() for buffer in buffers)

    def due(self, step: int) -> bool:
        """Returns whether it is time for a snapshot: at the first step asked about, then at the distance in force.

        It stays true until one is taken. Call it once a step: the time between calls is the time of a step.
        """
        if self._cadence.distance is None and running():
            self._cadence.distance = IN_A_GROUP
        return self._cadence.due(step)

    def take(self, step: int) -> bool:
        """Copies the state before the update of a step; one of the same step is replaced.

        Returns False, with the reason in `refused`, where it does not fit into the memory there is.

        Raises:
            UsageError: nothing was attached, a later step is in the ring, or something cannot be copied, by its name.
        """
        holding = self._attached("take")
        if self._ring and self._ring[-1].step > step:
            newest = self._ring[-1].step
            raise UsageError(f"take(step): there is a snapshot of step {newest}, got {step}: drop_after({step}) first")
        begun, allocating = time.perf_counter(), self._allocating
        self._cadence.last = step  # should it fail, the next attempt is a distance away
        freezer = Freezer()
        tree = freeze(holding, freezer)
        if self.spill is not None:
            check_writable(step, freezer.opaque)
            self._claim_folder(self.spill)
        if self._ring and self._ring[-1].step == step:
            self._release(self._ring.pop())
        buffer = self._room(step, freezer.specs, pinned=any(tensor.is_cuda for tensor in freezer.tensors))
        if buffer is None:
            self._cadence.took(step, None)
            return False
        buffer.fill(freezer.tensors)
        self._ring.append(Snapshot(step, tree, buffer, freezer.names, freezer.kept, tuple(freezer.opaque)))
        self.refused = ""
        self._write_files(step)
        cost = time.perf_counter() - begun
        self.seconds += cost
        cost -= self._allocating - allocating
        self._cadence.took(step, max(cost, buffer.stalled()) if self.distance is None else cost)
        return True

    def restore(self, step: int, *, rng: bool = False, data: bool = False) -> None:
        """Puts everything attached back to the snapshot of exactly this step, in place and bit for bit.

        Gradients are left as they are.

        Args:
            step: one of `steps`.
            rng: the random streams as well.
            data: the position in the data as well.

        Raises:
            UsageError: there is no such snapshot, or the live objects do not match it; nothing is written then.
        """
        holding, snapshot = self._attached("restore"), self._of(step)
        plan = snapshot.thawer()
        thaw(snapshot.tree, holding, plan, rng=rng, data=data)
        snapshot.put_back(plan)

    def restore_moments(self, step: int) -> None:
        """Puts back the optimizer's per-parameter state alone, step counts included; parameters and options stay.

        Raises:
            UsageError: as `restore`.
        """
        holding, snapshot = self._attached("restore_moments"), self._of(step)
        plan = snapshot.thawer()
        plan.optimizer(snapshot.tree["optimizer"], holding.optimizer, "optimizer", only_state=True)
        snapshot.put_back(plan)

    def before(self, step: int) -> int | None:
        """Returns the step of the newest snapshot that was taken at or before a step; None if there is none."""
        return max((each for each in self.steps if each <= step), default=None)

    def lend(self, step: int) -> Snapshot:
        """Returns the snapshot of exactly this step, to be held: its memory is not written to again, nor counted here.

        Raises:
            UsageError: there is no such snapshot.
        """
        snapshot = self._of(step)
        snapshot.buffer.lent = True
        return snapshot

    def drop_after(self, step: int) -> None:
        """Forgets the snapshots taken after a step; where none is left the next one is due at once."""
        while self._ring and self._ring[-1].step > step:
            self._release(self._ring.pop())
        if not self._ring:
            self._cadence.last = None
        if self.spill is not None and self._owns_folder:
            disk.keep_only(self.spill, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns the ring and its schedule as tensors and plain values; loads with `torch.load(weights_only=True)`.

        The tensors are not copied, and no longer written to either.

        Raises:
            UsageError: the state of some object cannot be written down exactly; by its name.
        """
        return {
            "version": STATE_VERSION,
            "memory": self.memory,
            "seconds": self.seconds,
            "cadence": self._cadence.state_dict(),
            "snapshots": [to_plain(snapshot) for snapshot in self._ring],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned; an `every` or a `memory` of one's own stays in force.

        Raises:
            UsageError: the state is not that of snapshots, or of a later version.
        """
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION or "snapshots" not in state:
            found = state.get("version") if isinstance(state, Mapping) else type(state).__name__
            raise UsageError(f"not the state of snapshots of version {STATE_VERSION}: found {found!r}")
        self._cadence.load_state_dict(state["cadence"])
        self.memory = self.memory if self.memory is not None else state["memory"]
        self.seconds = float(state["seconds"])
        self._ring, self._spare = [from_plain(saved) for saved in state["snapshots"]], None
        self._unwritten, self._owns_folder = set(self.steps), True

    def _attached(self, call: str) -> Holding:
        if self._holding is None:
            raise UsageError(f"{call}() needs to know what a snapshot holds: call attach(model, optimizer) first")
        return self._holding

    def _of(self, step: int) -> Snapshot:
        for snapshot in self._ring:
            if snapshot.step == step:
                return snapshot
        there = ", ".join(map(str, self.steps)) or "none"
        raise UsageError(f"there is no snapshot of step {step}; there are: {there}")

    def _claim_folder(self, folder: Path) -> None:
        """Refuses a directory with the snapshots of another run, which would be deleted one by one."""
        if not self._owns_folder and disk.files(folder):
            raise UsageError(
                f"Snapshots(spill=...): {folder} holds the snapshots of another run; go on from them with "
                "Snapshots.load(path), load this run's own state before the first step, or give another directory"
            )
        self._owns_folder = True

    def _write_files(self, step: int) -> None:
        """Makes the directory hold what the ring holds; a disk that fails is said once, and training goes on."""
        if self.spill is None:
            return
        self._unwritten.add(step)
        try:
            for snapshot in self._ring:
                if snapshot.step in self._unwritten:
                    to_file(snapshot, self.spill, cadence=self._cadence.state_dict())
            disk.keep_only(self.spill, self.steps)
            self._unwritten.clear()
        except (OSError, disk.library().SafetensorError) as error:
            if not self._told:
                self._told = True
                message = f"snapshots are in memory only: {self.spill} cannot be written ({error})"
                warnings.warn(message, ForeshockWarning, stacklevel=3)

    def _room(self, step: int, specs: list[Spec], *, pinned: bool) -> Buffer | None:
        """Returns memory for a snapshot, after older ones have made room; None if it cannot be had."""
        newest = self._ring[-1].buffer if self._ring else None
        size = newest.flat.numel() if newest is not None and newest.specs == tuple(specs) else needed(specs)
        if self.memory is None:
            self.memory = _share_of_memory()
        if size > self.memory:
            self.refused = (
                f"a snapshot takes {size:,} bytes of host memory and may take {self.memory:,}: "
                "give Snapshots(memory=...) more, or hold less"
            )
            return None
        unit = self.distance or USUAL
        held = sum(snapshot.buffer.flat.numel() for snapshot in self._ring)
        while self._ring and (len(self._ring) >= self.keep or held + size > self.memory):
            gone = self._of(spare([*self.steps, step], unit))
            self._ring.remove(gone)
            held -= gone.buffer.flat.numel()
            self._release(gone)
        reused, self._spare = self._spare, None
        if reused is not None and reused.flat.numel() == size and reused.pinned >= pinned:
            reused.wait()
            reused.cut(specs)
            return reused
        del reused
        begun = time.perf_counter()
        try:
            return allocate(specs, pinned=pinned)
        except (MemoryError, RuntimeError) as error:
            self.refused = f"a snapshot takes {size:,} bytes of host memory, which could not be had ({error})"
            return None
        finally:
            self._allocating += time.perf_counter() - begun

    def _release(self, snapshot: Snapshot) -> None:
        """Keeps the memory of a snapshot that has left for the next one."""
        if not snapshot.buffer.lent:
            self._spare = snapshot.buffer


def _share_of_memory() -> int:
    """Returns the bytes that a process's snapshots may take: in a group the same on every rank of alike machines."""
    if running():
        return max(1, installed() // 8 // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return max(1, available() // 4)
