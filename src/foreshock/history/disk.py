"""Windows as files: one each, whole or not there at all, of tensors and JSON, to be gone through in another process."""

from __future__ import annotations

import json
import warnings
import zlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreshock.errors import ForeshockWarning, RunError, UsageError
from foreshock.guard import spill
from foreshock.guard.buffers import allocate
from foreshock.guard.freeze import Freezer, Spec
from foreshock.guard.snapshot import Snapshot, check_writable
from foreshock.guard.thaw import MISSING, Thawer
from foreshock.history.batches import Kept, Leaf, size_of
from foreshock.history.compare import Digest, digest
from foreshock.history.pins import Pin
from foreshock.history.state import State
from foreshock.history.streams import Streams
from foreshock.history.tape import Entry, settled
from foreshock.run.event import Event

VERSION = 1
_LEAF = "\0leaf"  # begins a tuple that stands for a tensor or an array of a batch


def write(folder: Path, pin: Pin) -> None:
    """Writes a window; a file of the same window is replaced.

    Raises:
        UsageError: the state of the training holds what no file can hold; by name.
        OSError: the disk cannot be written.
    """
    settled(pin.entries.values())
    freezer, states = Freezer(), [pin.state.snapshot] + ([] if pin.state.late is None else [pin.state.late])
    tensors: list[Tensor] = []
    names: list[str] = []
    parts = []
    for snapshot in states:
        check_writable(snapshot.step, snapshot.opaque)
        snapshot.buffer.wait()
        parts.append({"tree": snapshot.tree, "specs": snapshot.buffer.specs, "names": snapshot.names})
        tensors += snapshot.buffer.views
        names += snapshot.names
    entries = [freezer.value(_plain_entry(entry), f"step.{entry.step}") for entry in pin.entries.values()]
    end = digest(pin.checkpoint) if isinstance(pin.checkpoint, State) else pin.checkpoint
    text = {
        "version": VERSION, "step": pin.state.step, "last": pin.last, "states": parts, "entries": entries,
        "events": freezer.value([event.to_dict() for event in pin.events.values()], "events"),
        "specs": freezer.specs, "checkpoint": None if end is None else asdict(end),
    }  # fmt: skip
    spill.save(folder / name_of(pin), json.dumps(text, allow_nan=False), [*tensors, *freezer.tensors],
               [*names, *freezer.names])  # fmt: skip


def read(path: Path) -> Pin:
    """Returns the window of a file.

    Raises:
        RunError: it is none, or broken.
    """
    text, tensors = spill.read(path)
    found = json.loads(text)
    if found.get("version") != VERSION:
        raise RunError(f"{path}: a window of version {found.get('version')!r}; this foreshock reads {VERSION}")
    waiting = list(tensors)
    snapshots = [_snapshot(found["step"], part, waiting) for part in found["states"]]
    thawer = Thawer(_specs(found["specs"]), None)
    events = thawer.value(found["events"], MISSING, "events")
    entries = [thawer.value(node, MISSING, "step") for node in found["entries"]]
    for live, number in thawer.copies:
        dtype, shape, _, _ = thawer._specs[number]
        live.copy_(waiting[number].view(getattr(torch, dtype)).reshape(shape))
    for done in thawer.writes:
        done()
    end = found["checkpoint"]
    if end is not None:
        hashes = {int(number): each for number, each in end["tensors"].items()}
        end = Digest(end["step"], tuple(end["sections"]), end["tree"], hashes)
    made = [Event.from_dict(each) for each in events]
    return Pin({event.key: event for event in made}, State(*snapshots),
               {each["step"]: _entry(each) for each in entries}, found["last"], end, written=True)  # fmt: skip


def read_all(folder: Path) -> list[Pin]:
    """Returns the windows that this rank wrote to a folder; those that cannot be read are left out with a warning.

    Raises:
        RunError: there is none.
    """
    pins: list[Pin] = []
    for path in _files(folder, "safetensors"):
        try:
            pins.append(read(path))
        except RunError as error:
            warnings.warn(f"left out: {error}", ForeshockWarning, stacklevel=3)
    if not pins:
        raise RunError(f"{folder}: no window that can be read; give the path of History(monitor, spill=...)")
    return pins


def clear_drafts(folder: Path) -> None:
    """Deletes what a killed process left half written."""
    for path in _files(folder, "draft"):
        path.unlink(missing_ok=True)


def name_of(pin: Pin) -> str:
    """Returns the name of a window's file, after its first event."""
    kind, signal, raised = next(iter(pin.events))
    return f"window-{raised:012d}-{kind}-{zlib.crc32(signal.encode()):08x}{spill.of_this_rank()}.safetensors"


def _files(folder: Path, ending: str) -> list[Path]:
    """Returns this rank's files of a folder, in order."""
    rank = spill.of_this_rank()
    found = sorted(folder.glob(f"window-*{rank}.{ending}"))
    return found if rank else [path for path in found if "-rank-" not in path.name]


def _plain_entry(entry: Entry) -> dict[str, Any]:
    """Returns an attempt as plain values, tensors and arrays."""
    given, why = [], entry.unkept
    for batch in entry.batches:
        try:
            batch.check(entry.step)
            given.append(_plain(batch.tree))
        except UsageError as error:
            given, why = [], str(error)
            break
    return {
        "step": entry.step, "losses": list(entry.losses), "batches": given, "unkept": why,
        "streams": [each.plain() for each in entry.streams], "rates": list(entry.rates), "taken": entry.taken,
        "actions": list(entry.actions), "clean": entry.clean, "broken": entry.broken,
    }  # fmt: skip


def _entry(plain: Mapping[str, Any]) -> Entry:
    batches = []
    for tree in plain["batches"]:
        leaves: list[Leaf] = []
        made = _live(tree, leaves)
        batches.append(Kept(made, tuple(leaves), sum(map(size_of, leaves))))
    return Entry(
        plain["step"], losses=plain["losses"], batches=batches, unkept=plain["unkept"], rates=tuple(plain["rates"]),
        streams=tuple(map(Streams.from_plain, plain["streams"])), taken=plain["taken"], actions=tuple(plain["actions"]),
        clean=plain["clean"], broken=plain["broken"],
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """Returns a batch as what files hold: other mappings become dicts, other sequences lists and tuples.

    Raises:
        UsageError: there is something else in it.
    """
    if isinstance(value, Leaf) and getattr(value.value, "layout", torch.strided) is torch.strided:
        return (_LEAF, value.on_host(), None if value.device is None else str(value.device), value.grad)
    if isinstance(value, (dict, UserDict)):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, torch.Size) or value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, (torch.dtype, torch.device, np.generic)):
        return value
    what = type(value.value if isinstance(value, Leaf) else value).__qualname__
    raise UsageError(
        f"it holds a {what}, which no file can hold: give observe(batch=...) dense tensors, arrays, numbers, strings "
        "in dicts, lists, tuples, or make batches again with History(batches=...)"
    )


def _live(value: Any, leaves: list[Leaf]) -> Any:
    """Returns the tree of a batch of which `_plain` made plain values, and adds its leaves to a list."""
    if type(value) is tuple and value and type(value[0]) is str and value[0] == _LEAF:
        _, held, device, grad = value
        leaves.append(Leaf(held, None if device is None else torch.device(device), grad))
        return leaves[-1]
    if type(value) is dict:
        return {key: _live(each, leaves) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_live(each, leaves) for each in value)
    return value


def _snapshot(step: int, part: Mapping[str, Any], waiting: list[Tensor]) -> Snapshot:
    """Returns a snapshot, whose tensors are the next of those that are waiting."""
    specs = _specs(part["specs"])
    buffer = allocate(specs, pinned=False)
    for view, (dtype, shape, _, _) in zip(buffer.views, specs, strict=True):
        view.copy_(waiting.pop(0).view(getattr(torch, dtype)).reshape(shape))
    return Snapshot(step, part["tree"], buffer, part["names"])


def _specs(read: Sequence[Any]) -> list[Spec]:
    return [(dtype, tuple(shape), tuple(stride), device) for dtype, shape, stride, device in read]
