"""What was measured on TL-GD before there was this code: the landscape paper's structures, on its own network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.landscape import (
    condensation,
    drift_plane,
    floor_index,
    llas_index,
    output_change,
    real_change,
    spectrum_1d,
)
from tests.landscape import tl

OFFSETS = [-0.449, -0.270, 0.0, 0.090, 0.180, 0.539]


def test_the_run_is_the_one_that_was_measured():
    losses = tl.run()[1]
    minimum, peak = tl.spike()
    assert 5115 <= minimum <= 5145
    assert 5165 <= peak <= 5195
    assert losses[peak] / losses[minimum] > 5


def test_the_reference_run_descends_the_loss_that_the_live_network_computes():
    path, losses = tl.run()
    net = tl.Net(4000)
    loss = net.loss()
    assert loss.item() == pytest.approx(losses[4000], rel=1e-12)
    loss.backward()
    gradient = torch.cat([param.grad for param in net.params]).numpy()
    np.testing.assert_allclose(path[4001], path[4000] - 0.05 * gradient, rtol=0, atol=1e-12)


def test_lower_loss_is_sharper_along_the_descent():
    minimum, _ = tl.spike()
    steps = np.arange(3500, minimum + 1, 25)
    sharp = [tl.sharpest(int(t))[0][0] for t in steps]
    index = llas_index(tl.run()[1][steps], sharp, steps=steps)
    assert index.correlation < -0.9
    assert index.relation == "lower is sharper"
    assert not index.notes
    late = llas_index(tl.run()[1][steps], sharp, steps=steps, first=4525)
    assert late.slope == pytest.approx(-10.1, abs=0.5)


@pytest.fixture(scope="module")
def floor():
    net = tl.Net(5000)
    _, vectors = tl.sharpest(5000)
    return floor_index(net.loss, net.params, tl.at(5125) - tl.at(4525), vectors[0], OFFSETS, rise=0.1)


def test_the_floor_of_the_valley_is_sharper_where_it_is_lower(floor):
    assert (np.diff(floor.losses) < 0).all()
    assert (np.diff(floor.curvatures) > 0).all()
    assert floor.curvatures[0] < 40 < floor.curvatures[1]
    assert floor.index.relation == "lower is sharper"


def test_the_floor_is_the_one_that_was_measured(floor):
    np.testing.assert_allclose(floor.losses, [0.0528, 0.0494, 0.0446, 0.0431, 0.0418, 0.0413], atol=2e-4)
    np.testing.assert_allclose(floor.curvatures, [39.67, 40.44, 41.59, 41.95, 42.30, 43.40], atol=0.02)
    np.testing.assert_allclose(floor.widths, [0.1415, 0.1400, 0.1385, 0.1375, 0.1375, 0.1355], atol=1e-3)


def test_the_drift_is_as_long_as_it_was_measured():
    net = tl.Net(5000)
    _, vectors = tl.sharpest(5000)
    assert drift_plane(net.params, tl.at(4525), tl.at(5125), vectors[0]).lengths[0] == pytest.approx(0.539, abs=2e-3)


@pytest.mark.parametrize("t", [4600, 5000, 5160])
def test_the_sharpest_direction_changes_the_lowest_wave_and_the_fifth_does_not(t):
    net = tl.Net(t)
    _, vectors = tl.sharpest(t, 5)
    first = spectrum_1d(output_change(net.outputs, net.params, vectors[0]), net.x)
    fifth = spectrum_1d(output_change(net.outputs, net.params, vectors[4]), net.x)
    assert 0.80 < first[1] < 0.87
    assert fifth[1] < 0.07


def test_ascent_and_descent_move_the_lowest_wave_and_steady_descent_does_not():
    net = tl.Net(5000)
    minimum, peak = tl.spike()

    def share(before: int, after: int) -> float:
        return float(spectrum_1d(real_change(net.outputs, net.params, tl.at(before), tl.at(after)))[1])

    assert share(minimum, peak) > 0.8
    assert share(peak, peak + 47) > 0.8
    assert share(4000, 4400) < 0.01


def test_a_spike_leaves_the_neurons_as_aligned_as_they_were():
    minimum, peak = tl.spike()

    def mean(t: int) -> float:
        w, b = tl.at(t)[:20], tl.at(t)[20:40]
        return condensation(w, b).mean

    before = mean(minimum)
    assert before == pytest.approx(0.635, abs=2e-3)
    assert all(abs(mean(t) - before) < 0.01 for t in (peak, peak + 40, tl.UPDATES))
