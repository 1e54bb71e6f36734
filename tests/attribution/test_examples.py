"""Examples by their place, as text and as pictures."""

from __future__ import annotations

import base64
import doctest
import io
from collections import namedtuple

import numpy as np
import pytest
import torch

import foreshock.attribution.examples
import foreshock.attribution.picture
from foreshock.attribution.examples import batch_losses, example, shown
from foreshock.attribution.picture import picture
from foreshock.errors import UsageError


def test_docstrings():
    for module in (foreshock.attribution.examples, foreshock.attribution.picture):
        assert not doctest.testmod(module).failed


def pixels(address: str) -> np.ndarray:
    image = pytest.importorskip("matplotlib.image")
    return image.imread(io.BytesIO(base64.b64decode(address.partition(",")[2])), format="png")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 2)])
def test_pictures_are_read_as_they_were(shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.rint(pixels(picture(values)) * 255), values)


def test_pictures_of_floats_are_scaled_and_those_of_torch_turned():
    grey = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    assert np.allclose(pixels(picture(grey)), grey[0].numpy(), atol=1 / 250)
    wide = torch.tensor([[-3.0, 1.0], [5.0, float("nan")]])
    assert np.allclose(pixels(picture(wide)), [[0, 0.5], [1, 0]], atol=1 / 250)
    colours = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    assert np.allclose(pixels(picture(colours)), colours.permute(1, 2, 0).numpy(), atol=1 / 250)
    assert pixels(picture(np.zeros((1000, 500)))).shape == (250, 125)


def test_what_is_no_picture_is_refused():
    for values in (np.zeros(3), np.zeros((2, 2, 2)), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(UsageError, match="decode"):
            picture(values)


def test_examples_are_taken_out_of_any_batch():
    Pair = namedtuple("Pair", "x y")
    x = torch.arange(6).reshape(3, 2)
    assert example((x, ["a", "b", "c"]), 1)[1] == "b"
    assert example(Pair(x, x), 2).y.tolist() == [4, 5]
    assert example({"ids": x, "scale": torch.tensor(2.0)}, 0)["ids"].tolist() == [0, 1]
    assert example([x, np.arange(3)], 2)[1] == 2
    assert example(x, 2).tolist() == [4, 5]


def test_decoders_are_given_what_they_ask_for():
    batch = (torch.arange(4.0), torch.tensor([7, 8, 9, 10]))
    assert shown(lambda one: f"{one[0]:g} {one[1]}", batch, 1, 2) == {"text": "2 9"}
    assert shown(lambda all_, index: f"{all_[1][index]}", batch, 1, 3) == {"text": "10"}
    assert shown(lambda one, width=3: "x" * 5000, batch, 1, 0) == {"text": "x" * 2000}
    assert shown(lambda one: np.eye(3), batch, 1, 0)["image"].startswith("data:image/png;base64,")
    assert shown(lambda one: picture(np.eye(3)), batch, 1, 0)["image"] == picture(np.eye(3))
    assert shown(None, batch, 1, 0) == {}
    with pytest.raises(UsageError, match="decode"):
        shown(lambda one: 3, batch, 1, 0)


def test_micro_batches_count_through_and_weigh_the_same():
    parts = [(torch.tensor([1.0, 2.0]), ["a", "b"]), (torch.tensor([5.0]), ["c"])]
    assert shown(lambda one: one[1], parts, 2, 2) == {"text": "c"}
    assert shown(lambda batch, i: batch[1][i], parts, 2, 1) == {"text": "b"}
    found = batch_losses(lambda batch: batch[0], parts, 2)()
    assert len(found) == 3
    assert float(found.mean()) == pytest.approx((1.5 + 5.0) / 2)
