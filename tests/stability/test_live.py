"""Thresholds of live optimizers: those of their edge weights, for the step about to be taken."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from tests.reference import optimizers as others
from tests.stability.live_cases import MATRICES, OTHERS, TORCH, built, label, stepped
from torch import optim

from foreshock.errors import UsageError
from foreshock.stability import Threshold, edge_weights, stability_threshold

torch.set_num_threads(1)
MODULES = ["blocks", "frozen", "group", "live", "nyquist", "reading", "registry", "twins", "weights", "rules.moments"]


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"foreshock.stability.{module}")).failed == 0


# the trust ratio of LAMB is known with the gradients alone, and QHAdam's averages are normalised differently early on
NAMED = [case for case in TORCH + OTHERS + MATRICES if case[0].__name__ not in ("Lamb", "QHAdam")]


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("case", NAMED, ids=label)
def test_thresholds_are_those_of_the_weights_of_the_next_step(case, steps):
    if case[0] is optim.Adafactor and not steps:
        pytest.skip("its first update is clipped, by a factor that the gradients alone tell")
    optimizer, params, gradients = built(case)
    for _ in range(steps):
        stepped(optimizer, params, gradients())
    [threshold] = stability_threshold(optimizer)
    assert isinstance(threshold, Threshold)
    assert threshold.name == case[0].__name__
    weights = edge_weights(optimizer, [1e-9 * grad for grad in gradients()])
    least = min(weights.thresholds)
    if weights.l2[0] and "P^-1" not in threshold.quantity:
        least -= weights.l2[0]  # told of H itself
    if case[0] is optim.Rprop:
        assert threshold.formal
        return
    assert threshold.value == pytest.approx(least, rel=1e-6)
    assert threshold.gain == pytest.approx(weights.gains[0], rel=1e-6)
    assert threshold.formal == weights.formal


def test_each_group_has_a_threshold_of_its_own():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    other = {"params": weights[1:], "lr": torch.tensor(0.2), "betas": (0.5, 0.99)}
    groups = [{"params": weights[:1], "lr": 0.1}, other]
    values = [each.value for each in stability_threshold(optim.AdamW(groups, weight_decay=0.0))]
    assert values == pytest.approx([380.0, 30.0])


def test_a_schedule_is_read_at_call_time():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.SGD([weight], lr=1.0)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert stability_threshold(optimizer)[0].value == 2.0
    stepped(optimizer, [weight], [torch.ones(2)])
    scheduler.step()
    assert stability_threshold(optimizer)[0].value == 4.0


def test_the_least_threshold_of_a_group_of_matrices_is_told():
    tall, flat = torch.nn.Parameter(torch.ones(8, 2)), torch.nn.Parameter(torch.ones(2, 8))
    [threshold] = stability_threshold(optim.Muon([flat, tall], lr=0.1, weight_decay=0.0))
    assert threshold.value == pytest.approx(2 * 1.95 / (0.05 * 2.9) / (0.1 * 2), rel=1e-9)
    assert threshold.formal


def test_an_optimizer_without_a_threshold_is_refused():
    with pytest.raises(UsageError, match="line search"):
        stability_threshold(optim.LBFGS([torch.nn.Parameter(torch.ones(2))]))


def test_schedule_free_is_measured_in_train_mode():
    optimizer, params, gradients = built((others.SGDScheduleFree, {}))
    stepped(optimizer, params, gradients())
    optimizer.param_groups[0]["train_mode"] = False
    with pytest.raises(UsageError, match=r"optimizer\.train\(\)"):
        edge_weights(optimizer, gradients())
