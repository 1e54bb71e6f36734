"""Shares of frequency against closed forms and the dense filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.errors import UsageError
from foreshock.landscape import frequency, projection_spectrum, share_low, spectrum_1d, widths

GRID = np.linspace(-np.pi, np.pi, 32, endpoint=False)


def dense_share(x, df, width):
    """Returns share_low by the definition, with all matrices."""
    squares = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    gauss = np.exp(-squares / (2 * width**2))
    low = gauss @ df / gauss.sum(1, keepdims=True)
    return (low**2).sum() / ((low**2).sum() + ((df - low) ** 2).sum())


@pytest.mark.parametrize("k", [0, 1, 5, 16])
def test_a_wave_has_all_of_its_frequency(k):
    shares = spectrum_1d(np.cos(k * GRID))
    assert shares[k] == pytest.approx(1.0)
    assert shares.sum() == pytest.approx(1.0)
    assert len(shares) == 17


def test_outputs_add_up_their_powers():
    df = torch.from_numpy(np.stack([np.sin(GRID), 2 * np.sin(3 * GRID), 0 * GRID], axis=1))
    shares = spectrum_1d(df.view(32, 3, 1), GRID)
    np.testing.assert_allclose(shares[[1, 3]], [0.2, 0.8], atol=1e-12)


def test_no_change_has_no_spectrum_and_an_uneven_grid_is_refused():
    assert np.isnan(spectrum_1d(np.zeros(8))).all()
    with pytest.raises(UsageError, match="uniform grid"):
        spectrum_1d(GRID, GRID**3)
    with pytest.raises(UsageError, match="uniform grid"):
        spectrum_1d(GRID, GRID[:-1])
    with pytest.raises(UsageError, match="two points"):
        spectrum_1d(np.array([1.0]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(30,), (25, 3), (12, 2, 3)])
def test_the_filter_is_the_dense_one(seed, shape):
    draws = np.random.default_rng(seed)
    x, df = 100 + draws.standard_normal(shape), draws.standard_normal((shape[0], 2))
    scan = np.array([0.1, 0.7, 3.0])
    found = share_low(x, df, scan)
    flat = x.reshape(len(x), -1)
    np.testing.assert_allclose(found, [dense_share(flat, df, width) for width in scan], rtol=1e-9)
    assert share_low(torch.from_numpy(x), torch.from_numpy(df), 0.7) == pytest.approx(found[1])


def test_rows_are_filtered_some_at_a_time(monkeypatch):
    draws = np.random.default_rng(0)
    x, df = draws.standard_normal((50, 4)), draws.standard_normal(50)
    whole = share_low(x, df, [0.5, 2.0])
    monkeypatch.setattr(frequency, "_BYTES", 50 * 16 * 7)
    np.testing.assert_allclose(share_low(x, df, [0.5, 2.0]), whole, rtol=1e-12)


def test_narrow_filters_pass_everything_and_wide_ones_the_mean():
    draws = np.random.default_rng(0)
    x, df = draws.standard_normal((40, 2)), 0.5 + draws.standard_normal(40)
    assert share_low(x, df, 1e-4) == pytest.approx(1.0)
    mean = 40 * df.mean() ** 2
    assert share_low(x, df, 1e4) == pytest.approx(mean / (mean + ((df - df.mean()) ** 2).sum()), rel=1e-4)
    assert np.isnan(share_low(x, 0 * df, 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_slow_changes_keep_more_than_fast_ones_at_every_width_between(seed):
    x = np.random.default_rng(seed).uniform(-1, 1, (300, 3))
    e = np.array([0.6, 0.0, 0.8])
    scan = widths(x)[2:-2]
    slow, fast = (share_low(x, np.sin(k * x @ e), scan) for k in (2.0, 25.0))
    assert (slow > fast).all()


def test_widths_go_from_neighbours_to_the_extent():
    x = np.linspace(0, 1, 101)
    found = widths(np.concatenate([x, x[:5]]), 5)  # copies have neighbours at no distance
    assert found[0] == pytest.approx(0.005)
    assert found[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(found[1:] / found[:-1], found[1] / found[0])
    with pytest.raises(UsageError, match="all inputs are the same"):
        widths(np.ones((4, 2)))


def test_the_projection_finds_the_axis_and_the_wave():
    draws = np.random.default_rng(0)
    along = np.sort(draws.uniform(-2, 2, 200))
    axis = np.array([0.0, 0.6, 0.8])
    x = along[:, None] * axis + 0.01 * draws.standard_normal((200, 3))
    found = projection_spectrum(x, np.cos(2 * np.pi * 0.75 * (x - x.mean(0)) @ axis))
    assert abs(found.axis @ axis) == pytest.approx(1.0, abs=1e-4)
    assert found.explained > 0.99
    assert found.frequencies[found.shares.argmax()] == pytest.approx(0.75, abs=0.3 / 4)
    assert found.waves.tolist() == pytest.approx(list(range(33)))


def test_the_projection_is_the_definition():
    draws = np.random.default_rng(1)
    x, df = draws.standard_normal((15, 40)), draws.standard_normal((15, 2))  # fewer points than features
    found = projection_spectrum(x, df, [0.0, 0.3, 1.1])
    along = (x - x.mean(0)) @ found.axis
    c = np.exp(-2j * np.pi * np.array([0.0, 0.3, 1.1])[:, None] * along) @ df / 15
    np.testing.assert_allclose(found.powers, (np.abs(c) ** 2).sum(1), rtol=1e-9)
    values = np.linalg.svd(x - x.mean(0))[1] ** 2
    assert found.explained == pytest.approx(values[0] / values.sum())


def test_on_a_uniform_grid_the_projection_is_the_fourier_transform():
    draws = np.random.default_rng(2)
    df = draws.standard_normal(32)
    found = projection_spectrum(GRID, df, np.arange(1, 10) / (2 * np.pi))
    fourier = spectrum_1d(df)[1:10]
    np.testing.assert_allclose(found.shares, fourier / fourier.sum(), rtol=1e-9)


def test_senseless_arguments_are_refused():
    with pytest.raises(UsageError, match="widths above 0"):
        share_low(GRID, GRID, 0.0)
    with pytest.raises(UsageError, match="5 of them for 32"):
        share_low(GRID[:5], GRID, 1.0)
    with pytest.raises(UsageError, match="principal axis"):
        projection_spectrum(np.ones((8, 2)), np.ones(8))
    with pytest.raises(UsageError, match="change"):
        spectrum_1d(np.array(1.0))
