"""One snapshot: a tree of plain values and a buffer of tensors, and how both are written down and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.guard import spill
from foreshock.guard.buffers import Buffer, allocate
from foreshock.guard.freeze import Spec
from foreshock.guard.thaw import Thawer


@dataclass(slots=True)
class Snapshot:
    """The state of a training before the update of one step.

    Attributes:
        step: number of that step.
        tree: what there was, tensors by number; see `freeze`.
        buffer: the tensors.
        names: where each of them was.
        kept: objects that the tree refers to; None where it comes from a file.
        opaque: which of those have to be refused by files.
    """

    step: int
    tree: dict[str, Any]
    buffer: Buffer
    names: list[str]
    kept: list[Any] | None = None
    opaque: tuple[str, ...] = ()

    def thawer(self) -> Thawer:
        """Returns what plans a restoration of it."""
        return Thawer(self.buffer.specs, self.kept)

    def put_back(self, plan: Thawer) -> None:
        """Does what was planned: tensors first, then the rest."""
        self.buffer.empty_into(plan.copies)
        for write in plan.writes:
            write()


def check_writable(step: int, opaque: Sequence[str]) -> None:
    """Raises `UsageError` where the state of a training holds what cannot be written down, by its name."""
    if opaque:
        raise UsageError(
            f"the snapshot of step {step} cannot be written: {'; '.join(opaque)} cannot be written down exactly; keep "
            "numbers, strings, tensors and containers of them in the state, or give the object state_dict() and "
            "load_state_dict()"
        )


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """Returns a snapshot as plain values and one tensor, which is lent: not copied, and never written again."""
    check_writable(snapshot.step, snapshot.opaque)
    snapshot.buffer.wait()
    snapshot.buffer.lent = True
    return {"step": snapshot.step, "text": _text(snapshot, {}), "bytes": snapshot.buffer.flat}


def from_plain(plain: Mapping[str, Any]) -> Snapshot:
    """Returns the snapshot of which `to_plain` made plain values."""
    read = json.loads(plain["text"])
    buffer = Buffer(plain["bytes"].cpu(), _specs(read), lent=True)
    return Snapshot(int(plain["step"]), read["tree"], buffer, read["names"])


def to_file(snapshot: Snapshot, folder: Path, **more: Any) -> None:
    """Writes a snapshot into a folder, and plain values beside it."""
    check_writable(snapshot.step, snapshot.opaque)
    snapshot.buffer.wait()
    spill.write(folder, snapshot.step, _text(snapshot, more), snapshot.buffer.views, snapshot.names)


def from_file(step: int, text: str, tensors: Sequence[Tensor]) -> tuple[Snapshot, dict[str, Any]]:
    """Returns the snapshot that `to_file` wrote, and what was beside it."""
    read = json.loads(text)
    specs = _specs(read)
    buffer = allocate(specs, pinned=False)
    for view, tensor, (dtype, shape, _, _) in zip(buffer.views, tensors, specs, strict=True):
        view.copy_(tensor.view(getattr(torch, dtype)).reshape(shape))
    return Snapshot(step, read["tree"], buffer, read["names"]), read["more"]


def _text(snapshot: Snapshot, more: Mapping[str, Any]) -> str:
    written = {"tree": snapshot.tree, "specs": snapshot.buffer.specs, "names": snapshot.names, "more": more}
    return json.dumps(written, allow_nan=False)


def _specs(read: Mapping[str, Any]) -> list[Spec]:
    return [(dtype, tuple(shape), tuple(stride), device) for dtype, shape, stride, device in read["specs"]]
