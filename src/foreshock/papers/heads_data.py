"""What new classes come to: digits behind random features, garments behind a small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.papers.digits import scans
from foreshock.papers.images import images

__all__ = ["Pool", "convolutions", "digit_features", "encoded", "garments"]

ALL_DIGITS, TAUGHT = 1797, 1400  # of which 1,400 are trained on: about 700 of five classes
WIDTH = 128  # random features of the digits
SPREAD = 0.45  # of their weights: raw class means as rows then begin at a loss of about 62, as they are known to
PER_CLASS, TEST_PER_CLASS = 1000, 200  # garments
FEATURES = 64  # of the convolutional network


@dataclass(frozen=True, slots=True)
class Pool:
    """Examples by class: `inputs` (n, ...), `labels` (n,), and the same to test with."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def rows(self, classes: Sequence[int], each: int | None = None) -> Tensor:
        """Returns the places of the examples of these classes, the first `each` of every class or all of them."""
        found = [torch.nonzero(self.labels == one).flatten()[:each] for one in classes]
        return torch.cat(found)

    def tests(self, classes: Sequence[int]) -> Tensor:
        """Returns the places of the test examples of these classes."""
        return torch.cat([torch.nonzero(self.test_labels == one).flatten() for one in classes])


def digit_features(seed: int) -> Pool:
    """Returns 1,797 digits behind a fixed random layer, (n, 128) float32: relu(W x), x pixels/16 (64), W normal.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    pixels, labels = scans(ALL_DIGITS)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=draw)
    pixels, labels = pixels[order], labels[order]
    weight = SPREAD * torch.randn(pixels.shape[1], WIDTH, generator=draw, dtype=torch.float64)
    features = torch.relu(pixels @ weight).float()
    return Pool(features[:TAUGHT], labels[:TAUGHT], features[TAUGHT:], labels[TAUGHT:])


def garments(seed: int, *, each: int = PER_CLASS, tests: int = TEST_PER_CLASS) -> Pool:
    """Returns images (n, 1, 14, 14) of Fashion-MNIST, halved, mean 0 and deviation 1, `each` of every class at most.

    Raises:
        MissingExtraError: the images are not installed.
    """
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for part, count in (("train", each), ("test", tests)):
        all_of_them = images(part)
        labels = torch.from_numpy(all_of_them.labels)
        order = torch.randperm(len(labels), generator=draw)
        kept = torch.cat([order[labels[order] == one][:count] for one in range(10)])
        kept = kept[torch.randperm(len(kept), generator=draw)]
        pixels = torch.from_numpy(all_of_them.pixels[kept.numpy()]).float().unsqueeze(1) / 255
        parts.append((functional.avg_pool2d(pixels, 2), labels[kept]))
    (taught, labels), (tested, test_labels) = parts
    mean, scale = taught.mean(), taught.std()
    return Pool((taught - mean) / scale, labels, (tested - mean) / scale, test_labels)


def convolutions(seed: int, *, width: int = FEATURES) -> nn.Sequential:
    """Returns a network of two convolutions and a layer of `width` rectified features, for images (n, 1, 14, 14).

    The global random stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(144, width), nn.ReLU(),
        )  # fmt: skip


def encoded(pool: Pool, body: nn.Module) -> Pool:
    """Returns the same examples as features of a network that stays as it is."""
    with torch.no_grad():
        taught, tested = (
            torch.cat([body(rows) for rows in torch.split(each, 1000)]) for each in (pool.inputs, pool.test_inputs)
        )
    return Pool(taught, pool.labels, tested, pool.test_labels)
