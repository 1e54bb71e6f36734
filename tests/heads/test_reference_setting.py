"""The reference's own setting: five digits, then five more, behind fixed random features, 20 kept of each old class."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from torch import nn
from torch.nn import functional

from foreshock.heads import HeadStatistics, init_new_rows

OLD, NEW, WIDTH, KEPT, SEEDS, LAST = 5, range(5, 10), 128, 20, (0, 1, 2), 60


def digits(seed):
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = (torch.from_numpy(each) for each in datasets.load_digits(return_X_y=True))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=draw)
    pixels, labels = pixels[order].float(), labels[order]
    pixels = (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=1e-3)
    weight = torch.randn(64, WIDTH, generator=draw) * (2 / 64) ** 0.5
    features = torch.relu(pixels @ weight)
    return (features[:1400], labels[:1400]), (features[1400:], labels[1400:])


class Setting:
    def __init__(self, loss, seed):
        self.kind, self.seed = loss, seed
        (self.h, self.y), (self.test_h, self.test_y) = digits(seed)
        self.new = torch.nonzero(self.y >= OLD)[:, 0]
        self.kept = torch.cat([torch.nonzero(self.y == c)[:KEPT, 0] for c in range(OLD)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head, self.fresh = nn.Linear(WIDTH, OLD), nn.Linear(WIDTH, len(NEW))
        old, draw = torch.nonzero(self.y < OLD)[:, 0], torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.05)
        for _ in range(150):
            at = old[torch.randint(len(old), (64,), generator=draw)]
            self.step(head, optimizer, at)
        self.base = head.state_dict()
        both = torch.cat([self.new, self.kept])
        self.statistics = HeadStatistics(WIDTH)
        self.statistics.update(self.h[both], self.y[both])

    def loss(self, logits, y):
        if self.kind == "ce":
            return functional.cross_entropy(logits, y)
        return 0.5 * (logits - functional.one_hot(y, logits.shape[1])).square().sum(1).mean()

    def step(self, head, optimizer, at):
        value = self.loss(head(self.h[at]), self.y[at])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return float(value.detach())

    def head(self, **settings):
        """Returns a head with ten rows, those of the new digits random, or as `init_new_rows` chooses them."""
        head = nn.Linear(WIDTH, 10)
        with torch.no_grad():
            head.weight.copy_(torch.cat([self.base["weight"], self.fresh.weight]))
            head.bias.copy_(torch.cat([self.base["bias"], torch.zeros(len(NEW))]))
        if settings:
            init_new_rows(head, self.statistics, NEW, loss=self.kind, **settings)
        return head

    def batches(self):
        draw = torch.Generator().manual_seed(1000 + self.seed)
        while True:
            parts = [each[torch.randint(len(each), (32,), generator=draw)] for each in (self.new, self.kept)]
            yield torch.cat(parts)

    def first(self, head):
        """Returns the loss of the first mixed batches, 32 new and 32 kept."""
        with torch.no_grad():
            taken = [at for at, _ in zip(self.batches(), range(20), strict=False)]
            return mean(float(self.loss(head(self.h[at]), self.y[at])) for at in taken)

    def old_accuracy(self, head):
        old = self.test_y < OLD
        with torch.no_grad():
            return float((head(self.test_h[old]).argmax(1) == self.test_y[old]).double().mean())

    def losses(self, head):
        optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3, weight_decay=0.05)
        return [self.step(head, optimizer, at) for at, _ in zip(self.batches(), range(LAST), strict=False)]


@pytest.fixture(scope="module")
def entropy():
    return [Setting("ce", seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def squares():
    return [Setting("mse", seed) for seed in SEEDS]


def ratio(settings, **chosen):
    """Returns the mean over seeds of the first loss, over that of random rows."""
    found, random = (mean(each.first(each.head(**way)) for each in settings) for way in (chosen, {}))
    return found / random


def test_squared_error_begins_below_a_quarter_and_recovers_sooner(squares):
    assert ratio(squares, method="ls") < 0.25
    steps = {True: [], False: []}
    for each in squares:
        random, solved = (each.losses(each.head(**chosen)) for chosen in ({}, {"method": "ls"}))
        level = 1.25 * mean(random[-20:])
        for losses in (random, solved):
            reached = [at for at in range(4, LAST) if mean(losses[at - 4 : at + 1]) <= level]
            steps[losses is solved].append(reached[0] + 1 if reached else LAST)
    assert mean(steps[True]) * 1.5 <= mean(steps[False])


def test_cross_entropy_needs_calibration(entropy):
    assert 0.7 < ratio(entropy, calibrate=None) < 0.9
    assert ratio(entropy, method="class_mean", calibrate=None) > 10
    assert ratio(entropy, calibrate="auto") < 1 / 3


def test_raw_class_means_wipe_out_the_old_classes(entropy):
    assert mean(each.old_accuracy(each.head(method="class_mean", calibrate=None)) for each in entropy) < 0.05


def test_calibration_keeps_the_old_classes_where_the_grid_does_not(entropy):
    before = mean(each.old_accuracy(each.head(method="random")) for each in entropy)
    kept, grid = (
        mean(each.old_accuracy(each.head(calibrate=way)) for each in entropy) for way in ("auto", "grid")
    )  # fmt: skip
    assert kept >= 0.95 * before
    assert kept > grid + 0.02
