"""The calm rule and sustained crossings, on series whose answer is plain."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from foreshock.papers import calm_spikes
from foreshock.papers.calm_spikes import Spike, match, runs_above, spikes

CALM = [1.0] * 40


def test_the_examples_are_true():
    assert doctest.testmod(calm_spikes).failed == 0


def test_nothing_is_found_before_calm_or_in_a_smooth_decrease():
    assert spikes([9.0, 1.0] * 30) == []
    assert spikes(np.exp(-np.arange(400) / 50)) == []
    assert spikes([]) == []


def test_a_rise_out_of_calm_is_one_spike_whatever_rings_after_it():
    ringing = [1 + 9 * 0.9**i * (i % 2) for i in range(40)]
    (found,) = spikes([*CALM, *ringing, *CALM])
    assert (found.baseline, found.trigger, found.peak) == (0, 41, 41)
    assert 70 < found.end < 110


def test_the_baseline_is_the_lowest_since_calm_began_even_where_the_loss_went_on_falling():
    falling = [0.8**i for i in range(20)]
    found = spikes([*CALM, *falling, 1.0, 2.0, *CALM])
    assert [(each.baseline, each.trigger, each.peak) for each in found] == [(59, 60, 61)]


@pytest.mark.parametrize(("factor", "count"), [(1.5, 2), (2.0, 1), (4.0, 0)])
def test_the_factor_decides_what_counts(factor, count):
    losses = [*CALM, 1.6, 1.2, *CALM, 3.0, 1.2, *CALM]
    assert len(spikes(losses, factor)) == count


def test_a_loss_that_is_not_finite_is_a_spike_and_one_that_does_not_return_ends_with_the_run():
    assert [each.trigger for each in spikes([*CALM, np.nan, *CALM])] == [40]
    assert spikes([*CALM, 5.0, 50.0, 7.0]) == [Spike(0, 40, 41, 42)]


def test_runs_are_above_the_edge_at_every_place_and_long_enough():
    values = [2.0, 2.0, 1.0, 2.0, np.nan, 2.0, 2.0, 2.0]
    assert runs_above(values) == [(5, 7)]
    assert runs_above(values, 1) == [(0, 1), (3, 3), (5, 7)]
    assert runs_above(values, 2, edge=1.9) == [(0, 1), (5, 7)]
    assert runs_above([]) == []


def test_a_signal_that_never_comes_down_announces_one_spike_only():
    found = [Spike(10, 12, 15, 30), Spike(50, 52, 55, 70)]
    always = match(found, [(5, 100)])
    assert (len(always.pairs), always.missed, always.alone) == (1, [found[1]], [])
    assert always.recall == 0.5
    assert always.precision == 1.0


def test_a_run_after_the_peak_or_before_the_baseline_announces_nothing():
    found = [Spike(10, 12, 15, 30)]
    assert match(found, [(16, 20)]).recall == 0
    assert match(found, [(16, 20)]).alone == []
    early = match(found, [(2, 9)])
    assert (early.recall, early.alone) == (0, [(2, 9)])
    assert np.isnan(match([], []).recall)
