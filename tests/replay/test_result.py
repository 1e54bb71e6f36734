"""What is left of an event is told from a loss that is merely still on its way down."""

from __future__ import annotations

import math

from foreshock.replay.result import judged, largest, lowest


def verdict(losses: list[float], onset: int, base: float, peak: float) -> str:
    steps = dict(enumerate(losses))
    return judged(largest(steps, onset), base, peak, level=lowest(steps, onset))[1]


def test_a_loss_that_still_falls_has_no_event_though_it_is_above_the_level() -> None:
    assert verdict([2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8], 3, 0.3, 1.5) == "removed"


def test_a_rise_from_a_higher_level_is_a_rise() -> None:
    assert verdict([1.0, 0.9, 0.8, 0.7, 1.9, 1.0, 0.8], 3, 0.3, 1.5) == "stays"


def test_what_was_high_before_the_onset_does_not_hide_what_it_began_with() -> None:
    assert verdict([0.3, 1.6, 1.6, 1.5, 1.4, 1.2], 3, 0.3, 1.5) == "stays"


def test_a_course_without_a_number_is_not_gone() -> None:
    assert verdict([0.3, 0.3, 0.3, math.nan], 3, 0.3, 1.5) == "worse"
    assert verdict([0.3, 0.3, 0.3, math.nan], 3, 0.3, math.inf) == "stays"
