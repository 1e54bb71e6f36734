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
    """Reads the streams again and again, and returns the very same object while none of them has moved.

    Reading all of a stream's state takes longer than seeing that it has not moved: 20 us for Python's and 70 us for
    numpy's. So those two, from which most loops draw nothing, are read at the deep readings only, until they move.
    """

    def __init__(self) -> None:
        self._last: Streams | None = None
        self._moves = {"python": False, "numpy": False}
        self._twister: Any = None  # the object of which `_address` is the memory
        self._address = 0
        self._words: bytes = b""  # of the twister, as they were when it was last read
        self._bytes: bytes = b""  # of torch's state

    def read(self, *, deep: bool = True) -> Streams:
        """Returns the streams as they are now.

        Args:
            deep: looks at all; else Python's and numpy's are None unless they have been seen to move before.
        """
        last = self._last
        python = self._python(last) if deep or self._moves["python"] else None
        numbers = self._numpy(last) if deep or self._moves["numpy"] else None
        state = torch.get_rng_state()
        raw = state.numpy().tobytes()
        if last is not None and raw == self._bytes:
            state = last.torch
        self._bytes = raw
        cuda = _of_gpus(last)
        if last is None:
            self._last = Streams(python, numbers, state, cuda)
            return self._last
        found = Streams(python, numbers, state, cuda)
        if all(one is other for one, other in _pairs(found, last)):
            return last
        # what was not looked at has not moved, as far as is known: the next look is held against the last one
        self._last = Streams(last.python if python is None else python, last.numpy if numbers is None else numbers,
                             state, cuda)  # fmt: skip
        return self._last if python is not None and numbers is not None else found

    def _python(self, last: Streams | None) -> tuple[Any, ...]:
        now = random.getstate()
        known = None if last is None else last.python
        if known is None:
            return now
        # every refill of the twister changes all of its words
        if now[1][-1] == known[1][-1] and now[1][0] == known[1][0] and now[2] == known[2]:
            return known
        self._moves["python"] = True
        return now

    def _numpy(self, last: Streams | None) -> Mapping[str, Any]:
        known = None if last is None else last.numpy
        words = self._raw()
        if known is not None and words and words == self._words and not self._moves["numpy"]:
            return known
        now: Mapping[str, Any] = np.random.get_state(legacy=False)
        moved = known is None or not _alike(now, known)
        self._words = words
        if known is not None and moved:
            self._moves["numpy"] = True
        return now if known is None or moved else known

    def _raw(self) -> bytes:
        """Returns the memory of numpy's generator, if it is the one that numpy starts with."""
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


def filled(shallow: Streams, deep: Streams, before: Streams | None) -> Streams:
    """Returns a shallow reading with what a deep one, taken later, shows not to have moved since the one before."""
    if before is None or (shallow.python is not None and shallow.numpy is not None):
        return shallow
    python = deep.python if shallow.python is None and deep.python is before.python else shallow.python
    numbers = deep.numpy if shallow.numpy is None and deep.numpy is before.numpy else shallow.numpy
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
