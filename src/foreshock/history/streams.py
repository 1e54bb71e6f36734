"""The random streams of a process, as they were at some moment: those of Python, numpy and torch."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TWISTER = 624 * 4 + 4  # bytes of numpy's Mersenne twister: its words and the position in them


@dataclass(frozen=True, slots=True)
class Streams:
    """States of the random streams; None for one that was not looked at, which `put_back` then leaves alone.

    Attributes:
        python: of `random`.
        numpy: of `numpy.random`, the global one.
        torch: of torch's generator on the CPU; uint8.
        cuda: of torch's generators on the GPUs, by device; empty where there are none.
    """

    python: tuple[Any, ...] | None
    numpy: Mapping[str, Any] | None
    torch: Tensor
    cuda: tuple[Tensor, ...] = ()

    def put_back(self) -> None:
        """Sets the streams of this process to these states."""
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            np.random.set_state(dict(self.numpy))
        torch.set_rng_state(self.torch)
        if self.cuda and torch.cuda.is_available():
            for device, state in enumerate(self.cuda[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)

    def plain(self) -> dict[str, Any]:
        """Returns plain values, arrays and tensors, from which `from_plain` makes the same again."""
        python = None
        if self.python is not None:
            version, words, spare = self.python
            python = [version, np.frombuffer(struct.pack(f"<{len(words)}I", *words), "<u4"), spare]
        return {"python": python, "numpy": self.numpy, "torch": self.torch, "cuda": list(self.cuda)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Streams:
        """Returns the states of which `plain` made plain values."""
        python = plain["python"]
        if python is not None:
            python = python[0], tuple(map(int, python[1])), python[2]
        return cls(python, plain["numpy"], plain["torch"], tuple(plain["cuda"]))


class Reader:
    """Reads the streams again and again, and gives back the same states while they have not moved.

    Most loops draw nothing from most streams, and reading them takes 20 us for Python's, 70 us for numpy's and 2 us for
    torch's, more while a network trains. So one that has not been seen to move is read where that cannot be avoided:
    Python's and numpy's at the deep readings only, torch's not `again` in the same step.
    """

    def __init__(self) -> None:
        self._torch: Streams | None = None  # the last reading, without Python's and numpy's
        self._raw = b""  # bytes of torch's state in it
        self._python: tuple[Any, ...] | None = None
        self._numpy: Mapping[str, Any] | None = None
        self._moves = {"python": False, "numpy": False, "torch": False}
        self._twister: Any = None  # numpy's generator, of which `_address` is the memory
        self._address = 0
        self._words = b""  # the twister, as it was when numpy's state was last read

    def read(self, *, deep: bool = True) -> Streams:
        """Returns the streams as they are now.

        Args:
            deep: looks at all; else Python's and numpy's are None unless they have been seen to move.
        """
        light = self._of_torch()
        python = self._of_python() if deep or self._moves["python"] else None
        numbers = self._of_numpy() if deep or self._moves["numpy"] else None
        return light if python is None and numbers is None else Streams(python, numbers, light.torch, light.cuda)

    def again(self) -> Streams | None:
        """Returns the streams that have been seen to move as they are now; None where none has."""
        return self.read(deep=False) if any(self._moves.values()) else None

    def _of_torch(self) -> Streams:
        state, last = torch.get_rng_state(), self._torch
        raw, cuda = ctypes.string_at(state.data_ptr(), state.numel()), _of_gpus(last)
        if last is None or raw != self._raw or cuda is not last.cuda:
            self._moves["torch"] = last is not None
            self._torch = Streams(None, None, state if last is None or raw != self._raw else last.torch, cuda)
            self._raw = raw
            return self._torch
        return last

    def _of_python(self) -> tuple[Any, ...]:
        now, known = random.getstate(), self._python
        # every refill of the twister changes all of its words
        if known is not None and now[1][-1] == known[1][-1] and now[1][0] == known[1][0] and now[2] == known[2]:
            return known
        self._moves["python"] = known is not None
        self._python = now
        return now

    def _of_numpy(self) -> Mapping[str, Any]:
        known, words = self._numpy, self._memory()
        if known is not None and words and words == self._words and not self._moves["numpy"]:
            return known
        now: Mapping[str, Any] = np.random.get_state(legacy=False)
        self._words = words
        if known is not None and _alike(now, known):
            return known
        self._moves["numpy"] = known is not None
        self._numpy = now
        return now

    def _memory(self) -> bytes:
        """Returns the memory of numpy's generator, if it is of the kind that numpy starts with."""
        find = getattr(np.random, "get_bit_generator", None)
        if find is None:
            return b""
        generator = find()
        if generator is not self._twister:
            self._twister = generator
            self._address = generator.ctypes.state_address if isinstance(generator, np.random.MT19937) else 0
        return ctypes.string_at(self._address, _TWISTER) if self._address else b""


def differ(one: Streams, other: Streams) -> bool:
    """Returns whether two readings differ in a stream that both looked at."""
    return any(a is not b for a, b in _pairs(one, other) if a is not None and b is not None)


def filled(shallow: Streams, deep: Streams) -> Streams:
    """Returns a reading with what it did not look at as another one saw it."""
    python = deep.python if shallow.python is None else shallow.python
    numbers = deep.numpy if shallow.numpy is None else shallow.numpy
    return Streams(python, numbers, shallow.torch, shallow.cuda)


def _pairs(one: Streams, other: Streams) -> tuple[tuple[Any, Any], ...]:
    return (one.python, other.python), (one.numpy, other.numpy), (one.torch, other.torch), (one.cuda, other.cuda)


def _of_gpus(last: Streams | None) -> tuple[Tensor, ...]:
    if not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        return () if last is None else last.cuda
    now = tuple(torch.cuda.get_rng_state_all())
    if last is not None and len(now) == len(last.cuda) and all(map(torch.equal, now, last.cuda)):
        return last.cuda
    return now


def _alike(one: Any, other: Any) -> bool:
    """Returns whether two states of numpy's generator are the same."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    return bool(np.array_equal(one, other))
