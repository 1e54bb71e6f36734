"""Snapshots as files: safetensors for the tensors, JSON in its header for all else, whole or not there at all."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreshock.distributed import running
from foreshock.errors import ForeshockWarning, MissingExtraError, RunError

_NAME = re.compile(r"step-(\d+)(?:-rank-(\d+))?\.safetensors")
# what every safetensors from 0.4 on has a name for; anything else goes as bytes
_NATIVE = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def library() -> Any:
    """Returns the modules of safetensors that are needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("snapshots on disk need safetensors: pip install 'foreshock[snapshots]'") from error
    return safetensors


def write(folder: Path, step: int, text: str, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
    """Writes a snapshot so that it is there whole or not at all, and still there after a loss of power.

    Args:
        folder: is made if it is not there.
        step: names the file.
        text: JSON, all of the snapshot but its tensors.
        tensors, names: on the host; where they were, which becomes their names in the file.
    """
    save(folder / _name(step), text, tensors, names)


def save(final: Path, text: str, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
    """Writes a file of text and tensors, to be `read`: there whole or not at all; its folder is made.

    Args:
        final: the file, ending in `.safetensors`; while it is written it ends in `.draft`.
        text, tensors, names: as of `write`.
    """
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    draft = final.with_suffix(".draft")
    held: dict[str, Tensor] = {}
    checksum = 0
    for number, (tensor, name) in enumerate(zip(tensors, names, strict=True)):
        plain = tensor.contiguous()
        raw = plain.flatten().view(torch.uint8)
        checksum = _checksum(raw, checksum)
        held[f"{number}:{name}"] = plain if str(tensor.dtype)[6:] in _NATIVE else raw
    library().torch.save_file(held, draft, metadata={"foreshock": text, "checksum": str(checksum)})
    _settle(draft, os.O_RDWR)
    os.replace(draft, final)
    _settle(folder, os.O_RDONLY)


def read(path: Path) -> tuple[str, list[Tensor]]:
    """Returns the text of a snapshot and its tensors, in order, contiguous; those of rarer types as bytes.

    Raises:
        RunError: the file is no snapshot, or what it holds is not what was written.
    """
    tensors, checksum = [], 0
    try:
        with library().safe_open(path, framework="pt", device="cpu") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            for key in sorted(file.keys(), key=lambda key: int(key.partition(":")[0])):
                tensors.append(file.get_tensor(key).clone())  # bytes of the file may lie anywhere: aligned now
                checksum = _checksum(tensors[-1].flatten().view(torch.uint8), checksum)
        if str(checksum) != metadata["checksum"]:
            raise RunError(f"{path}: the tensors are not those that were written (checksum); use another snapshot")
        return metadata["foreshock"], tensors
    except (KeyError, ValueError, OSError, library().SafetensorError) as error:
        raise RunError(f"{path}: not a snapshot, or broken off ({error}); use another one") from error


def read_all(folder: Path) -> dict[int, tuple[str, list[Tensor]]]:
    """Returns all snapshots that this rank wrote to a folder, by step; those that cannot be read with a warning.

    Raises:
        RunError: there is none.
    """
    found: dict[int, tuple[str, list[Tensor]]] = {}
    for step, path in sorted(files(folder).items()):
        try:
            found[step] = read(path)
        except RunError as error:
            warnings.warn(f"left out: {error}", ForeshockWarning, stacklevel=3)
    if not found:
        raise RunError(f"{folder}: no snapshot{_of_rank()} that can be read; give the path of Snapshots(spill=...)")
    return found


def files(folder: Path) -> dict[int, Path]:
    """Returns the files of this rank's snapshots in a folder, by step."""
    found = {}
    for path in folder.glob("step-*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match and path.name == _name(int(match[1])):
            found[int(match[1])] = path
    return found


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Deletes this rank's snapshots of other steps, and what a killed process left half written."""
    for step, path in files(folder).items():
        if step not in steps:
            path.unlink(missing_ok=True)
    for path in folder.glob("step-*.draft"):
        if path.with_suffix(".safetensors").name == _name(int(path.name.split("-")[1].split(".")[0])):
            path.unlink(missing_ok=True)


def _checksum(raw: Tensor, before: int) -> int:
    data: Any = raw.numpy()
    return zlib.crc32(data, before)


def _rank() -> int | None:
    return torch.distributed.get_rank() if running() else None


def _of_rank() -> str:
    return "" if _rank() is None else f" of rank {_rank()}"


def of_this_rank() -> str:
    """Returns what the name of a file of this process has before its ending: nothing, but in a group of ranks."""
    rank = _rank()
    return "" if rank is None else f"-rank-{rank:05d}"


def _name(step: int) -> str:
    return f"step-{step:012d}{of_this_rank()}.safetensors"


def _settle(path: Path, mode: int) -> None:
    """Waits until a file or a folder is on the disk."""
    try:
        descriptor = os.open(path, mode)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
