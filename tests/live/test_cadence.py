from __future__ import annotations

import json

from foreshock.probes.cadence import Cadence


def steps(cadence: Cadence, chi: float, start: int, stop: int) -> list[int]:
    """Returns the steps at which a reading was taken, each of which found `chi`."""
    taken = []
    for step in range(start, stop):
        if cadence.due(step):
            cadence.took(step, chi)
            taken.append(step)
    return taken


def test_calm_is_seldom_and_leaves_the_first_steps_out() -> None:
    assert steps(Cadence(100), 0.5, 0, 450) == [100, 200, 300, 400]
    assert steps(Cadence(1), 0.5, 0, 4) == [1, 2, 3]


def test_near_the_edge_it_looks_ten_times_as_often() -> None:
    cadence = Cadence(100)
    assert steps(cadence, 0.9, 0, 151) == [100, 110, 120, 130, 140, 150]
    assert cadence.state == "watch"


def test_three_readings_above_the_edge_are_an_alarm_and_two_are_not() -> None:
    cadence = Cadence(100)
    assert steps(cadence, 1.1, 0, 126) == [100, 110, 120, 121, 122, 123, 124, 125]
    assert cadence.state == "alarm"
    crossing = Cadence(100)
    steps(crossing, 1.1, 0, 111)
    steps(crossing, 0.95, 111, 121)
    steps(crossing, 1.1, 121, 141)
    assert crossing.state == "watch"


def test_ten_readings_below_lead_back_down() -> None:
    cadence = Cadence(100)
    steps(cadence, 1.1, 0, 130)
    assert steps(cadence, 0.9, 130, 160) == [*range(130, 140), 149, 159]
    assert cadence.state == "watch"
    last = steps(cadence, 0.5, 160, 400)
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
