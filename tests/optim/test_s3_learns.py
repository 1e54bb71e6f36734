"""S3 on standard problems: it gets where it should, also with settings that are not usual."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from foreshock.optim import S3


def minimized(loss, start, *, steps, lr, **settings):
    """Returns where S3 ends with a learning rate that falls linearly to zero."""
    param = torch.as_tensor(start).clone().requires_grad_()
    optimizer = S3([param], lr=lr, **settings)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss(param).backward()
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize(
    "settings",
    [{}, {"p": 1.0}, {"p": 6.0}, {"nesterov": False}, {"beta2": 0.99}, {"state_dtype": torch.bfloat16}],
    ids=str,
)
def test_an_ill_conditioned_quadratic_is_minimized(settings):
    curvatures = 10.0 ** torch.linspace(-3, 3, 13)
    end = minimized(
        lambda x: 0.5 * (curvatures * (x - 1).square()).sum(), [0.0] * 13, steps=250, lr=0.05, **settings
    )
    assert (end - 1).abs().max() < 0.02  # which plain descent would need a million steps for


def test_rosenbrocks_valley_is_followed_to_its_end():
    end = minimized(
        lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, [-1.2, 1.0], steps=600, lr=0.02
    )
    assert end.tolist() == pytest.approx([1.0, 1.0], abs=0.02)


def test_logistic_regression_comes_to_the_optimum_that_newtons_method_finds():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=draw, dtype=torch.float64)
    y = (torch.rand(200, generator=draw) < torch.sigmoid(x @ torch.arange(-2.0, 3.0).double())).double()

    def loss(w):
        return nn.functional.binary_cross_entropy_with_logits(x @ w, y) + 0.01 * w.square().sum()

    best = torch.zeros(5, dtype=torch.float64)
    for _ in range(20):
        best = best - torch.linalg.solve(torch.autograd.functional.hessian(loss, best), torch.func.grad(loss)(best))
    end = minimized(loss, torch.zeros_like(best), steps=300, lr=0.05)
    assert (end - best).abs().max() < 0.01


def test_a_small_net_learns_the_digits():
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x, y = x.float() / 16, y.long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = S3(net.parameters(), lr=0.01, weight_decay=0.01)
    draw = torch.Generator().manual_seed(1)
    for _ in range(250):
        rows = torch.randint(1400, (64,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    assert (net(x[1400:]).argmax(1) == y[1400:]).float().mean() > 0.88
