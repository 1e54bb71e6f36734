"""Divergence and drift: losses that go wrong for good, quickly or slowly."""

from __future__ import annotations

import math
import random

import pytest

from foreshock.detect import Divergence, Drift, scan
from tests.detect.curves import falling, noisy, records, with_


def kinds(loss: list[float], **signals: list[float]) -> list[tuple[str, int]]:
    events = scan(records(loss, **signals), [Divergence(), Drift()])
    return [(event.kind, event.raised) for event in events]


def collapse(step: int) -> float:
    return falling(step) + 6.0 * (1.0 - math.exp(-max(0, step - 800) / 40.0))


def test_loss_that_climbs_back_to_its_start_diverges() -> None:
    (event,) = scan(records(noisy(1400, collapse)), [Divergence()])
    assert 800 < event.onset <= event.raised < 870
    assert event.end == 1399
    assert event.height == pytest.approx(6.0, rel=0.15)
    assert event.data["lost"] > 0.7


def test_spike_that_recovers_is_no_divergence() -> None:
    bump = {800 + i: 6.0 * math.exp(-i / 40.0) for i in range(400)}
    assert kinds(with_(noisy(1400, falling), bump)) == []


def test_step_by_a_third_is_left_to_the_spike_detector() -> None:
    assert kinds(noisy(1500, lambda step: 2.0 if step < 500 else 2.6)) == []


def test_collapse_of_a_noisy_reward_is_found() -> None:
    noise = random.Random(1)
    reward = [100.0 * (1.0 - math.exp(-step / 300.0)) * (1.0 if step < 1200 else 0.3) for step in range(1800)]
    loss = [-value + noise.gauss(0.0, 5.0) for value in reward]
    found = scan(records(loss), [Divergence()])
    assert [event.onset for event in found] == [pytest.approx(1205, abs=10)]


def test_divergence_ends_when_half_is_made_good() -> None:
    loss = noisy(2000, lambda step: falling(step) + (5.0 if 800 <= step < 1200 else 0.0))
    (event,) = scan(records(loss), [Divergence()])
    assert event.end == pytest.approx(1208, abs=5)


def test_slow_climb_is_a_drift() -> None:
    loss = noisy(2000, lambda step: falling(step) + 0.6 * max(0, step - 1000) / 1000.0)
    (event,) = scan(records(loss), [Drift()])
    assert 1000 < event.onset < event.raised < 1700
    assert event.end == 1999


@pytest.mark.parametrize("seed", range(4))
def test_ordinary_curves_do_not_drift(seed: int) -> None:
    assert kinds(noisy(3000, falling, seed=seed)) == []
    assert kinds(noisy(3000, lambda step: 3.0 * (1.0 + 0.02 * math.sin(step / 40.0)), seed=seed)) == []


def test_seasons_alarm_once_at_most() -> None:
    loss = noisy(6000, lambda step: 3.0 * (1.0 + 0.08 * math.sin(step / 100.0)))
    assert len(kinds(loss)) <= 1


def test_rise_after_the_learning_rate_rose_is_planned() -> None:
    lr = [1e-4 if step < 1000 else 5e-4 for step in range(2000)]
    loss = noisy(2000, lambda step: 2.5 + 0.4 * (1.0 - math.exp(-max(0, step - 1000) / 50.0)))
    assert kinds(loss) == [("drift", pytest.approx(1060, abs=40))]
    assert kinds(loss, lr=lr) == []


def test_wandering_loss_without_a_trend_seldom_drifts() -> None:
    noise, wander, loss = random.Random(7), 0.0, []
    for _ in range(6000):
        wander = 0.97 * wander + noise.gauss(0.0, 0.03)
        loss.append(0.7 * math.exp(wander + noise.gauss(0.0, 0.05)))
    assert len(kinds(loss)) <= 2


@pytest.mark.parametrize("fall", [12.0, 20.0, 30.0])
def test_the_ring_down_of_a_full_batch_spike_is_no_drift(fall: float) -> None:
    """A spike over four decades, as Adam's preconditioner makes it: 18 records up, then oscillating down."""

    def loss(step: int) -> float:
        calm = 0.5 * math.exp(-step / 85.0) + 1e-6
        if step < 900:
            return calm
        up = min(step - 900, 18) / 18
        down = max(0, step - 918)
        wobble = 0.2 + 0.8 * math.cos(down / 3.0) ** 2
        return calm + 1e-5 * 10 ** (4.1 * up) * math.exp(-down / fall) * wobble

    assert kinds([loss(step) for step in range(1400)]) == []
