"""The early sign: before the loss, not with it, and not for every loud gradient."""

from __future__ import annotations

import math
import random

import pytest

from foreshock.detect import Precursor, scan
from tests.detect.curves import noisy, records, slope_noise, with_


def found(gradient: list[float], loss: list[float] | None = None) -> list:
    return scan(records(loss or noisy(len(gradient)), grad_norm=gradient), [Precursor()])


def times(gradient: list[float], factor: dict[int, float]) -> list[float]:
    return [value * factor.get(step, 1.0) for step, value in enumerate(gradient)]


def test_a_leap_is_raised_at_its_own_step() -> None:
    (event,) = found(times(slope_noise(600), dict.fromkeys(range(400, 420), 5.0)))
    assert (event.kind, event.signal, event.raised) == ("precursor", "grad_norm", 400)
    assert event.end == 419
    assert event.data["ratio"] == pytest.approx(6.0, rel=0.3)
    assert event.data["baseline"] == pytest.approx(0.4, rel=0.15)


def test_a_climb_is_raised_before_it_is_over() -> None:
    (event,) = found(times(slope_noise(600), {400 + i: 1.25 ** (i + 1) for i in range(12)}))
    assert 400 <= event.onset <= event.raised <= 407


def test_a_leap_with_the_loss_is_no_early_sign() -> None:
    gradient = times(slope_noise(600), {400: 8.0, 401: 8.0})
    assert found(gradient, with_(noisy(600), {400: 1.0, 401: 1.0})) == []
    assert [event.raised for event in found(gradient, with_(noisy(600), {401: 1.0}))] == [400]


def test_gradients_twice_as_large_from_one_step_on_are_a_new_level() -> None:
    for seed in range(6):
        gradient = slope_noise(1200, seed)
        assert len(found(times(gradient, dict.fromkeys(range(700, 1200), 1.8)))) == 0


def test_gradients_five_times_as_large_from_one_step_on_are_one_event() -> None:
    assert len(found(times(slope_noise(1200), dict.fromkeys(range(700, 1200), 5.0)))) == 1


def test_heavy_tailed_gradients_are_noise() -> None:
    noise = random.Random(3)
    gradient = [math.exp(0.15 * noise.gauss(0, 1) / math.sqrt(noise.gammavariate(1.3, 2) / 2.6)) for _ in range(4000)]
    assert len(found(gradient)) <= 4


def test_a_run_without_the_signal_raises_nothing() -> None:
    assert scan(records(with_(noisy(400), {300: 3.0})), [Precursor()]) == []


def test_another_signal_can_be_watched() -> None:
    ratio = times(slope_noise(500), {300: 20.0, 301: 30.0})
    (event,) = scan(records(noisy(500), grad_sq_over_v_max=ratio), [Precursor("grad_sq_over_v_max")])
    assert (event.signal, event.raised) == ("grad_sq_over_v_max", 300)
