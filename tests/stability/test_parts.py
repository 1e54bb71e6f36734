"""How eps enters a denominator and how it fades, against the optimizers' own steps."""

from __future__ import annotations

import doctest
import pickle

import pytest
import torch
from tests.nightly import thinned
from tests.reference import optimizers as others
from tests.stability.live_cases import OTHERS, TORCH, built, label, stepped
from torch import Tensor, optim

from foreshock.stability import edge_weights, parts
from foreshock.stability.weights import EdgeWeights

torch.set_num_threads(1)
CASES = [*TORCH, *OTHERS, (others.SOAP, {"lr": 0.01}), (optim.RMSprop, {"lr": 0.01, "momentum": 0.9})]


def dense(weights: EdgeWeights) -> list[Tensor]:
    return [each if isinstance(each, Tensor) else each.dense() for each in weights.denominators]


def one(P: Tensor, case) -> Tensor:
    """Returns what eps multiplies: the identity, as a matrix where the denominator is one."""
    return torch.eye(len(P), dtype=P.dtype) if case[0] is others.SOAP else torch.ones_like(P)


def plain(case, steps: int):
    """Returns an optimizer without weight decay after some steps, its parameters and the next gradients."""
    optimizer, params, gradients = built(case)
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    for _ in range(steps):
        stepped(optimizer, params, gradients())
    return optimizer, params, gradients()


@pytest.mark.parametrize("steps", thinned([12, 2]))
@pytest.mark.parametrize("case", CASES, ids=label)
def test_denominators_fade_as_steps_without_gradient_make_them(case, steps: int) -> None:
    optimizer, params, grads = plain(case, steps)
    now = edge_weights(optimizer, grads)
    stepped(optimizer, params, grads)
    if not any(each and each.fading for each in now.parts):
        pytest.skip("no second moment that fades by one factor")
    zeros = [torch.zeros_like(each) for each in grads]
    done = 0
    for ahead in (0, 1, 4, 60):
        for _ in range(ahead - done):
            stepped(optimizer, params, zeros)
        done = ahead
        for P, made_of, later in zip(dense(now), now.parts, dense(edge_weights(optimizer)), strict=True):
            eps = made_of.eps * one(P, case)
            front, share = made_of.fading.after(ahead)
            told = front * ((P / made_of.front - eps) * share + eps)
            torch.testing.assert_close(told, later, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_eps_is_where_the_optimizer_adds_it(case) -> None:
    optimizer, _, grads = plain(case, 7)
    now = edge_weights(optimizer, grads)
    if not any(now.parts):
        pytest.skip("eps enters in another way")
    [group] = optimizer.param_groups
    group["eps"] = group["eps"] + 0.1
    for P, made_of, raised in zip(dense(now), now.parts, dense(edge_weights(optimizer, grads)), strict=True):
        torch.testing.assert_close(P + made_of.front * 0.1 * one(P, case), raised, rtol=1e-5, atol=1e-12)
    assert now.floors == pytest.approx([each.front * each.eps for each in now.parts])


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_correction_of_the_momentum_is_a_factor_of_the_denominator(case) -> None:
    optimizer, _, grads = plain(case, 2)
    now = edge_weights(optimizer, grads)
    with_bias = (optim.Adam, optim.AdamW, optim.Adamax, others.Yogi, others.Padam, others.SOAP, others.Lamb)
    if case[0] in with_bias:
        count = 2 if case[0] is others.SOAP else 3  # whose first call moves nothing
        expected = 1 - optimizer.param_groups[0]["betas"][0] ** count
    else:
        expected = 1.0
    if case[0] not in (optim.RAdam, others.AdaBelief):
        assert now.corrections == pytest.approx([expected] * len(now.params))


def test_without_a_second_moment_that_fades_there_is_nothing_to_foretell() -> None:
    for case in TORCH:
        optimizer, _, grads = plain(case, 12)
        fades = any(each and each.fading for each in edge_weights(optimizer, grads).parts)
        name, settings = case[0].__name__, case[1]
        expected = name in ("RMSprop", "Adam", "AdamW", "NAdam", "RAdam")
        assert fades == (expected and not settings.get("amsgrad") and not settings.get("centered"))


def test_what_it_says_can_be_stored() -> None:
    optimizer, _, grads = plain((optim.RAdam, {"lr": 0.01, "betas": (0.9, 0.99)}), 12)
    [made_of, *_] = edge_weights(optimizer, grads).parts
    assert pickle.loads(pickle.dumps(made_of)).fading.after(3) == made_of.fading.after(3)


def test_the_docstrings_hold() -> None:
    assert doctest.testmod(parts).failed == 0
