from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from foreshock import Monitor
from foreshock.diagnose import approach
from foreshock.probes.cadence import Cadence


def steps(cadence: Cadence, chi: float, start: int, stop: int) -> list[int]:
    """Returns the steps at which a reading was taken, each of which found `chi`."""
    taken = []
    for step in range(start, stop):
        if cadence.due(step):
            cadence.took(step, chi)
            taken.append(step)
    return taken


def test_calm_is_seldom_but_for_the_beginning() -> None:
    assert steps(Cadence(100), 0.5, 0, 450) == [10, 20, 40, 80, 160, 260, 360]
    assert steps(Cadence(10), 0.5, 0, 45) == [10, 20, 30, 40]
    assert steps(Cadence(1), 0.5, 0, 4) == [1, 2, 3]


def test_near_the_edge_it_looks_ten_times_as_often() -> None:
    cadence = Cadence(100)
    assert steps(cadence, 0.9, 0, 61) == [10, 20, 30, 40, 50, 60]
    assert cadence.state == "watch"


def test_three_readings_above_the_edge_are_an_alarm_and_two_are_not() -> None:
    cadence = Cadence(100)
    assert steps(cadence, 1.1, 0, 16) == [10, 11, 12, 13, 14, 15]
    assert cadence.state == "alarm"
    crossing = Cadence(100)
    steps(crossing, 1.1, 0, 12)
    steps(crossing, 0.95, 12, 13)
    steps(crossing, 1.1, 13, 24)
    assert crossing.state == "watch"


def test_readings_come_closer_together_on_the_way_to_the_edge() -> None:
    cadence, taken = Cadence(100), {}
    for step in range(2000):
        if cadence.due(step):
            taken[step] = chi = 0.5 * math.exp(0.002 * (step - 100))  # 1 at step 447
            cadence.took(step, chi)
    below = [step for step, chi in taken.items() if chi < 1]
    assert 8 <= len(below) <= 25
    assert all(b - a <= max(1, (447 - a) / 2) for a, b in pairwise(below[1:]))
    assert [step for step in taken if step > below[-1]][:3] == [447, 448, 449]
    decaying = Cadence(100)
    decaying.took(100, 0.5, 30.0)
    assert decaying.distance == 10
    decaying.took(110, 0.6, 2.0)
    assert decaying.distance == 1


def test_readings_below_lead_back_down() -> None:
    cadence = Cadence(100)
    steps(cadence, 1.1, 0, 130)
    assert steps(cadence, 0.9, 130, 175) == [*range(130, 155), 164, 174]
    assert cadence.state == "watch"
    last = steps(cadence, 0.5, 175, 420)
    assert cadence.state == "calm"
    assert last[9] - last[0] == 90
    assert last[10] - last[9] == 100


def test_what_hovers_at_the_edge_stays_in_alarm() -> None:
    cadence = Cadence(100)
    steps(cadence, 1.1, 0, 130)
    for step in range(130, 200):
        cadence.took(step, 1.02 if step % 5 == 0 else 0.98)
    assert cadence.state == "alarm"


def test_a_free_signal_that_stirs_makes_it_watch_for_a_calm_stretch_at_least() -> None:
    cadence = Cadence(100)
    steps(cadence, 0.1, 0, 150)
    cadence.stir(155)
    assert steps(cadence, 0.1, 156, 300) == [*range(156, 257, 10)]
    assert cadence.state == "calm"


def test_danger_is_near_the_edge_and_where_it_may_have_been_reached() -> None:
    cadence = Cadence(100)
    cadence.took(10, 0.2, 3000.0)
    assert not cadence.in_danger(500)
    assert cadence.in_danger(1010)
    cadence.took(1010, 0.85, 600.0)
    assert cadence.in_danger(1011)
    unknown = Cadence(100)
    unknown.took(10, 0.2)
    assert not unknown.in_danger(10_000)


def test_a_reading_that_could_not_be_had_waits_for_its_next_turn() -> None:
    cadence = Cadence(10)
    assert cadence.due(10)
    cadence.took(10, None)
    assert not cadence.due(11)
    assert cadence.due(20)


def test_not_a_number_is_no_alarm() -> None:
    cadence = Cadence(10)
    steps(cadence, float("nan"), 0, 100)
    assert cadence.state == "calm"


def test_it_goes_on_from_its_state() -> None:
    whole, first = Cadence(50), Cadence(50)
    chis = [0.5, 0.9, 1.1, 1.2, 1.3, 1.2, 0.9, 0.7] * 20
    for cadence in (whole, first):
        taken = 0
        for step in range(90):
            if cadence.due(step):
                cadence.took(step, chis[taken])
                taken += 1
    second = Cadence(50)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(90, 300):
        assert second.due(step) == whole.due(step)
        if whole.due(step):
            whole.took(step, chis[step % len(chis)])
            second.took(step, chis[step % len(chis)])
    assert second.state_dict() == whole.state_dict()


def test_a_learning_rate_that_brings_chi_near_the_edge_calls_for_a_reading_at_once() -> None:
    cadence = Cadence(100)
    assert cadence.due(10, [1e-3, 1e-4])
    cadence.took(10, 0.4)
    assert not cadence.due(19)
    assert not cadence.due(11, [1.9e-3, 1.9e-4])  # 0.4 * 1.9 is not near
    assert cadence.due(11, [1e-3, 2.1e-4])
    cadence.load_state_dict(json.loads(json.dumps(cadence.state_dict())))
    assert cadence.due(11, [1e-3, 2.1e-4])
    assert cadence.in_danger(11)
    cadence.took(11, 0.39)
    assert not cadence.due(12, [1e-3, 2.25e-4])  # a schedule's small steps are left to the usual readings
    cadence.took(12, None)
    assert not cadence.due(13, [1.0, 1.0])  # nothing is known to multiply


@pytest.mark.parametrize(("make", "factor"), [(torch.optim.Adam, 20.0), (torch.optim.AdamW, 30.0)])
def test_a_jump_of_the_learning_rate_between_two_readings_is_seen_and_blamed(make: Any, factor: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1])
    optimizer = make(model.parameters(), lr=5e-3)
    with Monitor(model, optimizer, max_overhead=1.0) as monitor:
        for step in range(190):
            if step == 171:  # readings are at 160 and, but for the jump, at 260
                optimizer.param_groups[0]["lr"] *= factor
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
    steps, chi = monitor.run.measured("chi")
    at = steps.tolist().index(171)
    assert chi[at - 1] < 0.5
    assert chi[at] > 1
    watch = next(event for event in monitor.events if event.kind == "watch")
    how = approach(monitor.run, watch)
    assert how is not None
    assert how.verdict == "learning rate"
    assert how.marks.crossing == 171
