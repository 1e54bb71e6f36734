"""The index is a correlation, weakened by ascents, of which it warns."""

from __future__ import annotations

import numpy as np
import pytest

from foreshock.errors import UsageError
from foreshock.landscape import llas_index


@pytest.mark.parametrize("seed", range(3))
def test_the_index_is_numpys_correlation_and_line(seed):
    draws = np.random.default_rng(seed)
    loss = np.exp(draws.standard_normal(40)).cumsum()[::-1]
    sharp = draws.standard_normal(40) - 2 * np.log(loss)
    found = llas_index(loss, sharp)
    assert found.correlation == pytest.approx(np.corrcoef(np.log(loss), sharp)[0, 1])
    assert found.slope == pytest.approx(np.polyfit(np.log(loss), sharp, 1)[0])
    assert found.relation == "lower is sharper"
    assert llas_index(loss, -sharp).relation == "lower is flatter"


def test_unrelated_numbers_are_neither():
    draws = np.random.default_rng(0)
    assert llas_index(1 + draws.random(200), draws.random(200)).relation == "neither"


def test_one_outlier_does_not_make_a_relation():
    draws = np.random.default_rng(1)
    loss, sharp = 1 + draws.random(50), draws.random(50)
    loss[7], sharp[7] = 100.0, -1000.0
    found = llas_index(loss, sharp)
    assert found.correlation < -0.9
    assert found.relation == "neither"


def test_only_steps_that_were_measured_count():
    loss = np.exp(-np.arange(10.0))
    sharp = np.where(np.arange(10) % 3 == 0, np.arange(10.0), np.nan)
    found = llas_index(loss, sharp)
    assert found.count == 4
    assert found.slope == pytest.approx(-1.0)


def test_a_window_is_in_steps():
    steps = np.array([0, 10, 20, 30, 40, 50])
    loss, sharp = np.exp([0.0, -1, -2, -3, -4, 5]), np.array([9.0, 1, 2, 3, 4, 9])
    found = llas_index(loss, sharp, steps=steps, first=10, last=40)
    assert (found.count, found.notes) == (4, ())
    assert found.correlation == pytest.approx(-1.0)


def test_an_ascent_in_the_window_is_said():
    loss = np.array([4.0, 2.0, 1.0, 1.05, 8.0, 3.0])
    (note,) = llas_index(loss, -np.log(loss), steps=[0, 5, 10, 15, 20, 25]).notes
    assert "x8 from step 10 to 20" in note
    assert llas_index(loss[:4], -np.log(loss[:4])).notes == ()


def test_an_ascent_between_readings_is_seen_too():
    loss = np.array([4.0, 9.0, 3.0, 2.0, 1.0])
    assert llas_index(loss, [1.0, np.nan, 2.0, 3.0, 4.0]).notes


def test_constant_numbers_have_no_correlation():
    found = llas_index([3.0, 2.0, 1.0], [5.0, 5.0, 5.0])
    assert np.isnan(found.correlation)
    assert found.relation == "neither"


def test_senseless_arguments_are_refused():
    with pytest.raises(UsageError, match="losses for"):
        llas_index([1.0, 2.0], [1.0])
    with pytest.raises(UsageError, match="at least 3"):
        llas_index([1.0, 2.0, 3.0], [1.0, np.nan, 2.0])
    with pytest.raises(UsageError, match="above 0"):
        llas_index([1.0, 0.0, 3.0], [1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="steps"):
        llas_index([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], steps=[1])
