"""The spike of a digits network whose softmax absorbs: what the paper files measured, on other seeds too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foreshock.attribution import attribute, capture

datasets = pytest.importorskip("sklearn.datasets")


def slingshot(seed: int):
    """Returns the network, its loss, and the step that took the loss from below 1e-2 to above it."""
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200] / 16, dtype=torch.float32), torch.tensor(labels[:200])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    low, step = False, None
    for i in range(2600):
        loss = F.cross_entropy(net(x), y)
        value = loss.item()
        low = low or value < 1e-6
        if low and value > 1e-2:
            return net, lambda: F.cross_entropy(net(x), y, reduction="none"), step, net[:-1], x
        optimizer.zero_grad()
        loss.backward()
        if i < 900:
            optimizer.step()
            continue
        with capture(optimizer, net) as step:
            optimizer.step()
    raise AssertionError("no spike in 2600 steps")


def test_the_slingshot_is_told_by_the_path_and_not_by_first_order():
    net, losses, step, body, x = slingshot(0)
    for param, value in zip(net.parameters(), step.before, strict=True):
        param.data.copy_(value)
    first = torch.autograd.grad(losses().mean(), list(net.parameters()))
    with torch.no_grad():
        directions = {"mu_G": ("6.weight", body(x).mean(0)), "common": ("6.weight", torch.ones(10, 1))}
    ends = step.params, step.before, step.after
    found = attribute(losses, *ends, names=net, optimizer=step, directions=directions)
    assert found.completeness <= 1e-3
    assert float(found.rows.sum()) == pytest.approx(found.total, rel=1e-3)
    sides = float(found.culprits.sum()) + found.history
    assert sides == pytest.approx(found.total, rel=1e-3)
    linear = sum(float((g * (b - a)).sum()) for g, a, b in zip(first, step.before, step.after, strict=True))
    assert linear < 0.05 * found.measured
    assert found.projections["mu_G"].share > 0.9
    assert found.projections["mu_G"].energy > 0.5
    assert abs(found.projections["common"].share) < 1e-3
    assert found.concentration <= 20
    assert max(found.columns, key=found.columns.get) == "6.weight"
