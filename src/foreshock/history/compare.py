"""Whether the live state of a training is, bit for bit, that of a snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.guard.freeze import Freezer
from foreshock.guard.holding import Holding, freeze
from foreshock.guard.snapshot import Snapshot

_WITHOUT = ("rng", "data")  # a replay goes through the same batches, and sets the random streams itself


@dataclass(frozen=True, slots=True)
class Digest:
    """What is left of a snapshot to compare others with.

    Attributes:
        step: of the snapshot.
        tree: JSON of its sections.
        tensors: type, shape and hash of each tensor in them, by number.
    """

    step: int
    tree: str
    tensors: dict[int, str]


def digest(snapshot: Snapshot) -> Digest:
    """Returns the digest of a snapshot."""
    snapshot.buffer.wait()
    return _digest(snapshot.step, snapshot.tree, snapshot.buffer.views)


def digest_of(holding: Holding, step: int) -> Digest:
    """Returns the digest of the live state, as a snapshot of this step would have it."""
    freezer = Freezer()
    tree = freeze(holding, freezer)
    return _digest(step, tree, freezer.tensors)


def _digest(step: int, tree: Mapping[str, Any], tensors: Mapping[int, Tensor] | list[Tensor]) -> Digest:
    compared = {name: section for name, section in tree.items() if name not in _WITHOUT}
    return Digest(step, json.dumps(compared), {number: _hash(tensors[number]) for number in set(_numbers(compared))})


def _hash(tensor: Tensor) -> str:
    with torch.no_grad():
        raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def _numbers(node: Any) -> Iterator[int]:
    """Yields the numbers of the tensors in a tree."""
    if isinstance(node, dict):
        if isinstance(node.get("tensor"), int):
            yield node["tensor"]
        for each in node.values():
            yield from _numbers(each)
    elif isinstance(node, (list, tuple)):
        for each in node:
            yield from _numbers(each)
