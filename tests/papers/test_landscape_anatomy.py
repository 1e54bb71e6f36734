"""Spikes found in made-up curves whose every event is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshock.papers.landscape_anatomy import Spike, anatomy, crossings, filled


def curves(*, minimum=100, peak=130, back=160, up=60, down=125, height=9.0, length=200):
    """A loss that falls by 1e-4 a step but for one spike, with lambda_max and chi_grad that tell of it; edge 40."""
    t = np.arange(length)
    loss = 1.0 - 1e-4 * t
    for first, last, ends in ((minimum, peak, (0.0, 1.0)), (peak, back, (1.0, 0.0))):
        inside = (t > first) & (t < last) if last == back else (t > first) & (t <= last)
        loss[inside] *= height ** np.interp(t[inside], [first, last], ends)
    sharp = np.where((t >= up) & (t < down), 41.0, 39.0)
    along = np.where((t >= minimum) & (t < peak), 1.05, 0.3)
    return loss, sharp, along


def test_every_event_of_a_spike_is_found():
    loss, sharp, along = curves()
    (spike,) = anatomy(loss, sharp, along, 40.0)
    # doubled where 9^(k/30) passes 2, k = 9.46, so at step 110
    assert spike == Spike(
        up=60, confirmed=100, minimum=100, trigger=110, peak=130, down=125, back=160, low=loss[100], high=loss[130],
        sharp=41.0, flat=39.0,
    )
    assert spike.height == pytest.approx(9.0, rel=0.01)


def test_a_spike_below_the_edge_is_of_another_kind_and_a_small_rise_is_none():
    loss, sharp, along = curves()
    assert anatomy(loss, np.full(200, 39.0), along, 40.0) == []
    low, sharp, along = curves(height=1.9)
    assert anatomy(low, sharp, along, 40.0) == []
    assert len(anatomy(low, sharp, along, 40.0, rise=1.5)) == 1


def test_what_has_not_come_yet_is_none():
    loss, sharp, along = (values[:120] for values in curves())
    (spike,) = anatomy(loss, sharp, along, 40.0)
    assert (spike.back, spike.down, spike.peak) == (None, None, 119)
    (spike,) = anatomy(loss, sharp, np.full(120, 0.3), 40.0)
    assert spike.confirmed is None
    loss[115:] = np.inf
    assert anatomy(loss, sharp, along, 40.0)[0].high == np.inf


def test_spikes_in_a_row_are_told_apart_and_flicker_of_lambda_max_ends_no_crossing():
    parts = [curves(), curves(height=4.0, up=80)]
    loss = np.concatenate([parts[0][0], parts[1][0] * 0.9])
    sharp, along = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    sharp[70:76:2] = 39.0
    first, second = anatomy(loss, sharp, along, 40.0)
    assert (first.up, first.minimum, first.back) == (60, 100, 160)
    assert (second.up, second.minimum, second.peak) == (280, 300, 330)


def test_readings_in_between_are_filled_in():
    loss, sharp, along = curves()
    seldom = np.where(np.arange(200) % 10 == 0, sharp, np.nan)
    (spike,) = anatomy(loss, seldom, along, 40.0)
    assert 50 <= spike.up <= 60
    assert filled(np.array([np.nan, 1.0, np.nan, 3.0])).tolist() == [1.0, 1.0, 2.0, 3.0]
    assert np.isnan(filled(np.array([np.nan, np.nan]))).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 4))
def test_crossings_cover_what_is_above_with_gaps_of_the_given_length(above, gap):
    values = np.where(above, 3.0, 1.0)
    found = crossings(values, 2.0, gap=gap)
    covered = np.zeros(len(values), bool)
    for first, last in found:
        assert above[first]
        assert above[last]
        covered[first : last + 1] = True
    assert covered[above].all()
    for (_, last), (first, _) in pairwise(found):
        assert first - last - 1 > gap
    inside = [first for first, last in crossings(np.where(covered, 3.0, 1.0), 2.0, gap=0)]
    assert inside == [first for first, _ in found]
