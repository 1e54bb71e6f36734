"""The random state that the order of a data set hangs on: generators of the process, and those that the loader owns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from foreshock.requeue.plain import read, written

_INNER = ("batch_sampler", "sampler", "dataset", "datasets", "data", "loader", "base_dataloader", "data_source")


class Randomness:
    """All random state at one moment, of a loader that is about to begin an epoch.

    Attributes:
        process: states of `torch` on the CPU, `random` and `numpy.random`: a loader draws the seeds of its workers from
            the first, and most samplers the seed of their order.
        owned: states of the generators found in the loader, its samplers and its data set.
        epochs: what samplers and data sets with `set_epoch` were told.
    """

    def __init__(self, process: list[Any], owned: list[Any], epochs: list[int]) -> None:
        self.process = process
        self.owned = owned
        self.epochs = epochs

    @classmethod
    def now(cls, data: object) -> Randomness:
        """Returns the states as they are."""
        owners = _owners(data)
        return cls(_process(), owned(data), [each.epoch for each in _counting(owners)])

    @contextmanager
    def restored(self, data: object) -> Iterator[None]:
        """Sets all states; those of the process are put back at the end of the block, those that are owned go on."""
        set_owned(data, self.owned)
        for owner, epoch in zip(_counting(_owners(data)), self.epochs, strict=False):
            if owner.epoch != epoch:
                owner.set_epoch(epoch)
        before = _process()
        try:
            _set_process(self.process)
            yield
        finally:
            _set_process(before)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states as tensors and plain values."""
        return {"process": written(self.process), "owned": written(self.owned), "epochs": list(self.epochs)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Randomness:
        """Returns what `state_dict` was made of."""
        return cls(read(state["process"]), read(state["owned"]), list(state["epochs"]))


def owned(data: object) -> list[Any]:
    """Returns the states of the generators found in a loader, its samplers and its data set."""
    return [_state(each) for each in _generators(_owners(data))]


def set_owned(data: object, states: list[Any]) -> None:
    """Sets the generators to what `owned` returned."""
    for generator, state in zip(_generators(_owners(data)), states, strict=False):
        _set_state(generator, state)


def _process() -> list[Any]:
    return [torch.get_rng_state(), _numbers(random.getstate()), np.random.get_state()]


def _set_process(states: list[Any]) -> None:
    torch.set_rng_state(states[0].cpu())
    random.setstate(_tuples(states[1]))
    np.random.set_state(states[2])


def _owners(data: object) -> list[Any]:
    """Returns the loader and what it is made of, each once, always in the same order."""
    found: list[Any] = []
    waiting = [data]
    while waiting and len(found) < 64:
        each = waiting.pop(0)
        if any(each is other for other in found):
            continue
        found.append(each)
        held = getattr(each, "__dict__", {})
        for name in _INNER:
            inner = held.get(name)
            if inner is not None and hasattr(inner, "__dict__"):
                waiting.append(inner)
            elif isinstance(inner, (list, tuple)) and len(inner) < 64:
                waiting += [one for one in inner if hasattr(one, "__dict__")]
    return found


def _generators(owners: list[Any]) -> list[Any]:
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    found: dict[int, Any] = {}
    for owner in owners:
        for value in getattr(owner, "__dict__", {}).values():
            if isinstance(value, kinds):
                found.setdefault(id(value), value)
    return list(found.values())


def _counting(owners: list[Any]) -> list[Any]:
    return [each for each in owners if hasattr(each, "set_epoch") and isinstance(getattr(each, "epoch", None), int)]


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _numbers(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        generator.setstate(_tuples(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _numbers(state: tuple[Any, ...]) -> list[Any]:
    """Returns a state of `random.Random` with its 625 numbers as one array, which is faster to write."""
    version, numbers, gauss = state
    return [version, np.array(numbers, dtype=np.int64), gauss]


def _tuples(state: list[Any]) -> tuple[Any, ...]:
    version, numbers, gauss = state
    return version, tuple(numbers.tolist()), gauss
