"""How often snapshots are taken, by what they cost, and which of them go."""

from __future__ import annotations

import doctest
import random
from itertools import pairwise

import pytest

from foreshock.guard import buffers, cadence, freeze, memory
from foreshock.guard.cadence import Cadence, fixed


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(cadence.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def train(schedule, clock, steps, *, step, cost):
    """Returns the steps at which snapshots were taken."""
    taken = []
    for n in steps:
        if schedule.due(n):
            clock.now += cost
            schedule.took(n, cost)
            taken.append(n)
        clock.now += step
    return taken


@pytest.mark.parametrize("module", [buffers, cadence, freeze, memory])
def test_the_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(("cost", "distance"), [(0.001, 20), (0.05, 20), (0.07, 100), (0.15, 200), (9.0, 200)])
def test_the_first_snapshots_are_twenty_steps_apart_and_fix_the_distance(clock, cost, distance):
    schedule = Cadence(None, 0.01)
    taken = train(schedule, clock, range(1200), step=0.1, cost=cost)
    assert taken[:4] == [0, 20, 40, 60]
    assert schedule.distance == distance
    assert {b - a for a, b in pairwise(taken[3:])} == {distance}
    if cost <= 0.2:
        assert len(taken[4:]) * cost <= (0.03 if distance == 20 else 0.01) * 1140 * 0.1 * 1.01


def test_noise_of_the_clock_does_not_make_two_runs_differ(clock):
    noise = random.Random(0)
    for _ in range(20):
        schedule = Cadence(None, 0.01)
        for n in range(100):
            if schedule.due(n):
                spent = 0.02 * (1 + 9 * noise.random() ** 4)
                clock.now += spent
                schedule.took(n, spent)
            clock.now += 0.1 * (1 + noise.random())
        assert schedule.distance == 20


def test_every_fixes_the_distance_and_asks_no_clock(clock):
    schedule = Cadence(7, 0.01)
    assert train(schedule, clock, range(3, 40), step=1e-6, cost=100.0) == [3, 10, 17, 24, 31, 38]
    assert not schedule.pace


def test_a_resumed_schedule_goes_on_at_the_distance_it_had_whatever_the_clock_says(clock):
    whole, first = Cadence(None, 0.01), Cadence(None, 0.01)
    wanted = train(whole, clock, range(600), step=0.1, cost=0.08)
    assert whole.distance == 100
    taken = train(first, clock, range(331), step=0.1, cost=0.08)
    second = Cadence(None, 0.01)
    second.load_state_dict(first.state_dict())
    clock.now += 1e5
    assert taken + train(second, clock, range(331, 600), step=7.0, cost=0.0001) == wanted


def test_a_measurement_that_was_cut_off_is_finished_by_the_resumed_run(clock):
    first, second = Cadence(None, 0.01), Cadence(None, 0.01)
    train(first, clock, range(55), step=0.1, cost=0.08)
    assert first.distance is None
    second.load_state_dict(first.state_dict())
    clock.now += 1e5  # the time in between is no step
    assert train(second, clock, range(55, 280), step=0.1, cost=0.08) == [60, 160, 260]


def test_a_snapshot_that_was_refused_is_tried_again_a_distance_later(clock):
    schedule = Cadence(20, 0.01)
    assert schedule.due(0)
    schedule.took(0, None)
    assert not schedule.due(19)
    assert schedule.due(20)


def test_a_snapshot_that_is_not_taken_stays_due():
    schedule = Cadence(20, 0.01)
    schedule.took(0, 1.0)
    assert [n for n in range(1, 25) if schedule.due(n)] == [20, 21, 22, 23, 24]


def test_without_a_time_the_farthest_distance_is_taken():
    assert fixed(0.1, 0.0, 0.01) == 200


def test_available_memory_is_found_and_no_more_than_there_is():
    assert 0 < memory.available() <= memory.installed()
