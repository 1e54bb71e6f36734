"""Whether the live state of a training is, bit for bit, that of a snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.guard.freeze import Freezer
from foreshock.guard.holding import Holding, freeze
from foreshock.history.state import State

_ALL = ("optimizer", "model", "scheduler", "scaler", "ema")
_MOVED = ("optimizer", "model")  # of a snapshot that was taken before the scheduler stepped


@dataclass(frozen=True, slots=True)
class Digest:
    """What is left of a state to hold others against.

    Attributes:
        step: whose beginning it was.
        sections: those that are compared.
        tree: JSON of them, tensors by number.
        tensors: type, shape and hash of each of these.
    """

    step: int
    sections: tuple[str, ...]
    tree: str
    tensors: dict[int, str]

    def is_of(self, holding: Holding) -> bool:
        """Returns whether the live state is the same, bit for bit."""
        freezer = Freezer()
        return _digest(self.step, freeze(holding, freezer), freezer.tensors, self.sections) == self


def digest(state: State) -> Digest:
    """Returns the digest of a state: of all its sections, the random streams and the position in the data left out."""
    state.snapshot.buffer.wait()
    sections = _ALL if state.late is None else _MOVED
    return _digest(state.step, state.snapshot.tree, state.snapshot.buffer.views, sections)


def _digest(step: int, tree: Mapping[str, Any], tensors: Sequence[Tensor], sections: tuple[str, ...]) -> Digest:
    compared = {name: tree[name] for name in sections if name in tree}
    if sections == _MOVED:
        compared["optimizer"] = {name: part for name, part in tree["optimizer"].items() if name != "groups"}
    numbers = sorted(set(_numbers(compared)))
    return Digest(step, sections, json.dumps(compared), {number: _hash(tensors[number]) for number in numbers})


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
