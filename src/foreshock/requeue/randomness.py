"""The random state that the order of a data set hangs on: generators of the process, and those that the loader owns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from foreshock.requeue.plain import read, written

_INNER = ("batch_sampler", "sampler", "dataset", "datasets", "data", "loader", "base_dataloader", "data_source")
# of torch: they draw from nothing but its own streams
_SAMPLERS = (DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


class Randomness:
    """All random state at one moment, of a loader that is about to begin an epoch.

    Attributes:
        process: states of `torch` on the CPU, `random` and `numpy.random`: a loader draws the seeds of its workers from
            the first, and most samplers the seed of their order; None for those that the data cannot look at.
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
        if type(data) in (list, tuple, range):
            return cls([None, None, None], [], [])
        owners = _owners(data)
        return cls(_process(data), [_state(g) for g in _generators(owners)], [o.epoch for o in _counting(owners)])

    @contextmanager
    def restored(self, data: object) -> Iterator[None]:
        """Sets all states; those of the process are put back at the end of the block, those that are owned go on."""
        set_owned(data, self.owned)
        for owner, epoch in zip(_counting(_owners(data)), self.epochs, strict=False):
            if owner.epoch != epoch:
                owner.set_epoch(epoch)
        with process_untouched():
            _set_process(self.process)
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns the states as tensors and plain values."""
        return {"process": states_written(self.process), "owned": states_written(self.owned), "epochs": self.epochs}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Randomness:
        """Returns what `state_dict` was made of."""
        return cls(states_read(state["process"]), states_read(state["owned"]), list(state["epochs"]))


@contextmanager
def process_untouched() -> Iterator[None]:
    """Puts the random state of the process back at the end of the block."""
    before = _whole_process()
    try:
        yield
    finally:
        _set_process(before)


def states_written(states: list[Any]) -> list[Any]:
    """Returns states of generators as tensors and plain values."""
    return [written(_packed(state)) for state in states]


def states_read(states: list[Any]) -> list[Any]:
    """Returns what `states_written` has written down."""
    return [_unpacked(read(state)) for state in states]


def owned(data: object) -> list[Any]:
    """Returns the states of the generators found in a loader, its samplers and its data set."""
    return [_state(each) for each in _generators(_owners(data))]


def set_owned(data: object, states: list[Any]) -> None:
    """Sets the generators to what `owned` returned."""
    for generator, state in zip(_generators(_owners(data)), states, strict=False):
        _set_state(generator, state)


def _process(data: object) -> list[Any]:
    """Returns the states of the process that the order of these data may hang on."""
    if (
        type(data) is DataLoader
        and not isinstance(data.dataset, IterableDataset)
        and type(data.sampler) in _SAMPLERS
        and type(data.batch_sampler) in (BatchSampler, type(None))
    ):
        return [torch.get_rng_state(), None, None]  # the others take 60 us, which counts where epochs are short
    return _whole_process()


def _whole_process() -> list[Any]:
    return [torch.get_rng_state(), random.getstate(), np.random.get_state()]


def _set_process(states: list[Any]) -> None:
    in_torch, in_python, in_numpy = states
    if in_torch is not None:
        torch.set_rng_state(in_torch.cpu())
    if in_python is not None:
        random.setstate(in_python)
    if in_numpy is not None:
        np.random.set_state(in_numpy)


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
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _packed(state: Any) -> Any:
    """Returns a state, that of `random.Random` with its 625 numbers as one array, which is faster to write."""
    if isinstance(state, tuple) and len(state) == 3 and isinstance(state[1], tuple):
        return ["random", state[0], np.array(state[1], dtype=np.int64), state[2]]
    return state


def _unpacked(state: Any) -> Any:
    if isinstance(state, list) and state[:1] == ["random"]:
        return state[1], tuple(state[2].tolist()), state[3]
    return state
