"""Figures hold what they were given: lines at the level, a path where the training was, maps in order."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from foreshock.errors import UsageError
from foreshock.landscape import condensation, figures, plane_of, sharpness, surface

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def valley():
    w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)

    def loss():
        return torch.exp(-w[0]) + torch.exp(w[0]) * w[1] ** 2

    plane = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), names=("drift", "u1"))
    alphas, betas = np.linspace(0, 2, 21), np.linspace(-0.5, 0.5, 11)
    path = plane.project([torch.tensor([t / 10, 0.02 * (-1.0) ** t]).double() for t in range(15)], steps=range(15))
    return surface(loss, plane, alphas, betas), sharpness(loss, plane, alphas[::4], betas[::2]), path


def written(figure):
    """Returns all text of a figure after drawing it."""
    figure.savefig(io.BytesIO(), format="png")
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_a_surface_shows_the_level_line_and_the_path(valley):
    loss, sharp, path = valley
    figure = figures.surface(loss, sharp, level=8.0, path=path, marks={"minimum": 9})
    axes = figure.axes[0]
    assert "lambda_{\\max} = 8" in written(figure)
    assert "minimum" in written(figure)
    assert axes.get_xlim() == (0.0, 2.0)
    assert axes.get_ylim() == (-0.5, 0.5)
    assert axes.get_xlabel() == "along drift"
    assert axes.get_ylabel() == "along $u_1$"
    drawn = axes.lines[0].get_xydata()
    np.testing.assert_allclose(drawn, np.stack([path.alphas, path.betas], 1))
    mark = next(line for line in axes.lines if line.get_markersize() == 4.5)
    np.testing.assert_allclose(mark.get_xydata(), [[path.alphas[9], path.betas[9]]])


def test_the_level_line_is_where_the_sharpness_is_at_the_level(valley):
    loss, sharp, _ = valley
    figure = figures.surface(loss, sharp, level=8.0)
    sets = [each for each in figure.axes[0].collections if isinstance(each, matplotlib.contour.ContourSet)]
    (line,) = [each for each in sets if list(each.levels) == [8.0]]
    points = np.concatenate(list(line.allsegs[0]))
    middle = points[np.abs(points[:, 1]).argmin()]
    # lambda_max on the axis is that along w1, 2 exp(w0)
    assert middle[0] == pytest.approx(np.log(4.0), abs=0.05)


def test_a_level_that_is_nowhere_is_said(valley):
    loss, sharp, _ = valley
    assert "below 1e+06 everywhere" in written(figures.surface(loss, sharp, level=1e6))
    assert "above 0.1 everywhere" in written(figures.surface(loss, sharp, level=0.1))


def test_surfaces_with_holes_and_negative_losses_are_drawn(valley):
    loss, _, _ = valley
    values = loss.values - 2.0
    values[3, 4] = np.nan
    written(figures.surface(type(loss)(loss.plane, loss.alphas, loss.betas, values, "loss")))


def test_what_cannot_be_drawn_is_refused(valley):
    loss, sharp, _ = valley
    with pytest.raises(UsageError, match="level"):
        figures.surface(loss, sharp)
    flat = type(loss)(loss.plane, loss.alphas, loss.betas, 0 * loss.values, "loss")
    with pytest.raises(UsageError, match="no contours"):
        figures.surface(flat)
    w = torch.zeros(2, dtype=torch.float64)
    other = plane_of([w], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(UsageError, match="different planes"):
        figures.surface(loss, type(sharp)(other, sharp.alphas, sharp.betas, sharp.values, "chi"))
    with pytest.raises(UsageError, match="2 x 2 points"):
        figures.surface(type(loss)(loss.plane, loss.alphas, loss.betas[:1], loss.values[:, :1], "loss"))
    with pytest.raises(UsageError, match="at least one"):
        figures.condensation({})
    with pytest.raises(UsageError, match="at least one"):
        figures.spectrum({})


def test_maps_are_in_order_and_say_their_numbers():
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    layers = {f"t = {t}": condensation(weight + t) for t in range(5)}
    figure = figures.condensation(layers)
    text = written(figure)
    for name, found in layers.items():
        assert name in text
        assert f"mean {found.mean:.2f}" in text
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), layers["t = 0"].map)


def test_bars_are_the_shares_and_the_rest_is_one_bar():
    shares = np.array([0.1, 0.5, 0.2, 0.15, 0.05])
    figure = figures.spectrum({"a": shares, "b": shares[:2]}, first=3)
    assert "50%" in written(figure)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(heights, [0.1, 0.5, 0.2, 0.2])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][-1] == "3+"
