"""What is read off a live S3, whatever its ablations, is what it divides by and where it leaves its minimum."""

from __future__ import annotations

import math

import pytest
import torch

from foreshock.optim import S3
from foreshock.stability import edge_weights, stability_threshold

SETTINGS = [
    {}, {"p": 2.0}, {"p": 1.5, "weight_decay": 0.1}, {"beta2": 0.99}, {"nesterov": False},
    {"nesterov": False, "beta2": 0.9, "p": 1.0}, {"maximize": True}, {"lr": torch.tensor(0.1), "beta": 0.8},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("steps", [0, 5])
def test_the_denominator_is_what_the_step_divides_by(settings, steps):
    draw = torch.Generator().manual_seed(0)
    param = torch.randn(60, generator=draw, dtype=torch.float64).requires_grad_()
    optimizer = S3([param], **{"lr": 0.1, **settings})
    group = optimizer.param_groups[0]
    for _ in range(steps):
        param.grad = torch.randn(60, generator=draw, dtype=torch.float64) * torch.logspace(-9, 3, 60).double()
        optimizer.step()
    grad = torch.randn(60, generator=draw, dtype=torch.float64) * torch.logspace(-9, 3, 60).double()
    weights, before = edge_weights(optimizer, [grad]), param.detach().clone()
    param.grad = grad
    optimizer.step()
    beta, lr = group["beta"], float(group["lr"])
    moved = (before * (1 - lr * group["weight_decay"]) - param.detach()) / lr
    m = optimizer.state[param]["exp_avg"]
    signed = -grad if group["maximize"] else grad
    numerator = beta * m + (1 - beta) * signed if group["nesterov"] else m
    assert torch.allclose(weights.denominators[0], numerator / moved, rtol=1e-6)
    assert weights.formal
    if not group["nesterov"]:  # what is stored is what the last step divided by
        assert torch.allclose(edge_weights(optimizer).denominators[0], weights.denominators[0], rtol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_frozen_denominator_leaves_the_minimum_at_the_threshold(settings):
    eps = 1e6  # far above the gradients: P is eps, and S3 linear
    ends = []
    for factor in (0.97, 1.03):
        param = torch.full((1,), 1e-12, dtype=torch.float64, requires_grad=True)
        optimizer = S3([param], **{"lr": 0.1, **settings}, eps=eps)
        curvature = factor * stability_threshold(optimizer)[0].value * eps
        sizes = []
        for _ in range(150):
            param.grad = curvature * param.detach() * (-1 if settings.get("maximize") else 1)
            optimizer.step()
            sizes.append(abs(float(param.detach())))
        ends.append(max(sizes[-20:]))
    assert ends[0] < 1e-12 < 1e-11 < ends[1]


def test_the_threshold_is_read_off_a_live_optimizer_as_off_its_settings():
    param = torch.zeros(2, requires_grad=True)
    live = stability_threshold(S3([param], lr=0.1, state_dtype=torch.bfloat16))[0]
    assert live.value == pytest.approx(stability_threshold("s3", lr=0.1).value)
    assert live.value == pytest.approx(26.9 / 0.1, rel=1e-3)
    plain = stability_threshold("s3", lr=0.1, nesterov=False)
    assert plain.value == pytest.approx(2 * 1.95 / (0.05 * 0.1))
    assert "2*beta" not in plain.formula


def test_another_beta_for_the_denominator_is_said_to_loosen_the_bound():
    other = stability_threshold("s3", lr=0.1, beta2=0.999)
    assert math.isclose(other.value, stability_threshold("s3", lr=0.1).value)
    assert "a few lr" in " ".join(other.assumptions)
    assert "a few lr" not in " ".join(stability_threshold("s3", lr=0.1).assumptions)
    assert "approximate: 1-beta = 0.2" in " ".join(stability_threshold("s3", lr=0.1, beta=0.8).assumptions)
