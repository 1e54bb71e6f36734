"""Random streams are read as they are, and only those that move are read at every step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from foreshock.guard.freeze import Freezer
from foreshock.history.streams import Reader, Streams, differ, filled


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item(),
            torch.randn(1).item()]  # fmt: skip


def test_streams_that_are_put_back_give_the_same_numbers():
    reader = Reader()
    for _ in range(3):
        state = reader.read()
        first = draw()
        state.put_back()
        assert draw() == first


def test_reading_draws_nothing():
    expected = draw()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    Reader().read()
    assert draw() == expected


@pytest.mark.parametrize("stream", ["python", "numpy", "gauss", "torch"])
def test_a_stream_that_moves_is_seen(stream):
    moves = {"python": random.random, "numpy": np.random.rand, "gauss": np.random.randn, "torch": lambda: torch.rand(1)}
    reader = Reader()
    one, still = reader.read(), reader.read()
    assert not differ(one, still)
    assert still.python is one.python
    assert still.numpy is one.numpy
    moves[stream]()
    two = reader.read()
    assert differ(one, two)
    moves[stream]()  # a Gaussian that was made with the one before leaves the twister where it is
    assert differ(two, reader.read(deep=False))


def test_a_stream_that_stands_still_is_not_looked_at():
    reader = Reader()
    reader.read()
    light = reader.read(deep=False)
    assert light.python is None
    assert light.numpy is None
    assert reader.read(deep=False) is light
    random.random()
    assert reader.read(deep=False).python is None  # not known yet that it moves
    reader.read()
    assert reader.read(deep=False).python is not None


def test_what_was_not_looked_at_is_left_alone_or_filled():
    reader = Reader()
    deep, light = reader.read(), reader.read(deep=False)
    random.random()
    expected = random.getstate()
    light.put_back()
    assert random.getstate() == expected
    filled(light, deep).put_back()
    assert random.getstate() == deep.python


def test_states_survive_being_made_plain():
    state = Reader().read()
    first = draw()
    Freezer().value(state.plain(), "streams")  # can be written down
    Streams.from_plain(state.plain()).put_back()
    assert draw() == first


def test_another_generator_of_numpy_is_read_in_full():
    reader, old = Reader(), np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = reader.read()
        first = np.random.rand()
        assert differ(state, reader.read())
        state.put_back()
        assert np.random.rand() == first
    finally:
        np.random.set_bit_generator(old)
