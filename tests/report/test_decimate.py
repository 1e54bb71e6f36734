from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foreshock.report.decimate import edges, keep, thin


@given(hnp.arrays(np.float64, st.integers(0, 300)), st.integers(1, 20))
def test_every_bucket_keeps_its_extremes_and_the_ends(values: np.ndarray, buckets: int) -> None:
    kept = keep(values, buckets)
    assert len(kept) <= 2 * buckets + 2
    assert np.all(np.diff(kept) > 0)
    finite = values[np.isfinite(values)]
    if len(values):
        assert kept[0] == 0
        assert kept[-1] == len(values) - 1
    if len(finite):
        chosen = values[kept][np.isfinite(values[kept])]
        assert chosen.min() == finite.min()
        assert chosen.max() == finite.max()


def test_a_spike_of_one_step_survives_in_a_million() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[654_321] = 50.0
    kept = keep(values, 500)
    assert 654_321 in kept
    assert len(kept) <= 1002


def test_short_curves_are_kept_whole() -> None:
    assert keep(np.arange(10.0), 5).tolist() == list(range(10))


def test_a_stretch_without_finite_values_stays_a_gap() -> None:
    values = np.concatenate((np.arange(400.0), np.full(400, np.nan), np.arange(400.0)))
    assert np.isnan(values[keep(values, 12)]).sum() >= 4


def test_thin_keeps_both_ends() -> None:
    assert thin(np.arange(1000), 5).tolist() == [0, 250, 500, 749, 999]
    assert thin(np.arange(3), 5).tolist() == [0, 1, 2]


def test_edges_cut_rows_into_nearly_equal_groups() -> None:
    assert edges(10, 3).tolist() == [0, 3, 7, 10]
    assert edges(2, 5).tolist() == [0, 1, 2]
