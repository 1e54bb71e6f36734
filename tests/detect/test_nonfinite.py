"""Non-finite values: seen at once, one event however long, and never an end to watching."""

from __future__ import annotations

import math

import pytest

from foreshock.detect import NonFinite, scan
from tests.detect.curves import noisy, records, slope_noise, with_


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_one_event_at_its_step(value: float) -> None:
    (event,) = scan(records(with_(noisy(100), {40: value})), [NonFinite()])
    assert (event.kind, event.signal, event.raised, event.onset, event.end) == ("nonfinite", "loss", 40, 40, 40)
    assert event.severity == math.inf
    assert event.data["value"] == str(value)


def test_the_first_step_is_watched() -> None:
    (event,) = scan(records([math.nan, 2.0, 2.0]), [NonFinite()])
    assert event.raised == 0


def test_a_run_that_stays_nan_is_one_event_open_to_its_last_step() -> None:
    (event,) = scan(records([*noisy(100), *[math.nan] * 200]), [NonFinite()])
    assert (event.raised, event.end, event.data["count"]) == (100, 299, 200)


def test_a_second_stretch_after_calm_is_a_second_event() -> None:
    loss = with_(noisy(200), {50: math.nan, 52: math.nan, 120: math.inf})
    assert [(event.raised, event.end) for event in scan(records(loss), [NonFinite()])] == [(50, 52), (120, 120)]


def test_signals_hit_one_after_the_other_share_one_event() -> None:
    gradient = with_(slope_noise(100), {60: math.nan, 61: math.nan})
    loss = with_(noisy(100), {61: math.nan})
    (event,) = scan(records(loss, grad_norm=gradient), [NonFinite()])
    assert (event.signal, event.raised) == ("grad_norm", 60)
    assert event.data["signals"] == ["grad_norm", "loss"]


def test_step_skipped_by_the_gradient_scaler_is_its_normal_search() -> None:
    gradient = with_(slope_noise(50), {5: math.inf, 30: math.inf})
    skipped = [1.0 if step == 5 else 0.0 for step in range(50)]
    (event,) = scan(records(noisy(50), grad_norm=gradient, skipped=skipped), [NonFinite()])
    assert event.raised == 30


def test_a_count_of_bad_tensors_counts_without_any_bad_norm() -> None:
    (event,) = scan(records(noisy(50), nonfinite=[3.0 if step == 20 else 0.0 for step in range(50)]), [NonFinite()])
    assert (event.signal, event.raised) == ("nonfinite", 20)


def test_a_signal_of_the_user_may_be_nan() -> None:
    assert scan(records(noisy(50), accuracy=[math.nan] * 50), [NonFinite()]) == []
