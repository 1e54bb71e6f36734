"""Calibration against a slow minimiser, its held-out logits against refits, and what it keeps of old classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from foreshock.heads.calibrate import _enough, _Problem, calibrated, thinned
from foreshock.heads.scene import scene


def problem(n=60, d=4, old=3, new=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % (old + new)
    h = torch.randn(n, d, generator=draw).double() + torch.randn(old + new, d, generator=draw).double()[y]
    weight = torch.randn(old + new, d, generator=draw).double()
    ids = list(range(old, old + new))
    met = scene((h, y, torch.ones(n)), lambda x: x @ weight.mT, ids, old + new)
    scores = torch.randn(n, new, generator=draw).double() * 0.3 + functional.one_hot(y)[:, old:]
    return met, scores, h, y, weight, ids


@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_losses_and_hits_are_those_of_the_whole_logits(kind):
    met, scores, h, y, weight, ids = problem()
    logits = h @ weight.mT
    logits[:, ids] = scores
    if kind == "ce":
        expected = functional.cross_entropy(logits, y, reduction="none")
    else:
        expected = 0.5 * (logits - functional.one_hot(y)).square().sum(1)
    torch.testing.assert_close(met.losses(scores, kind), expected)
    assert torch.equal(met.hits(scores), logits.argmax(1) == y)


def test_sides_and_classes_count_alike():
    met, *_ = problem(n=57)
    for label, share in ((0, 0.7 / 3), (2, 0.7 / 3), (3, 0.15), (4, 0.15)):
        examples = (met.features, met.labels, met.counts)
        uneven = scene(examples, lambda x: x.new_zeros(len(x), 5), [3, 4], 5, new_share=0.3)
        assert float(uneven.weights[met.labels == label].sum()) == pytest.approx(share)
    assert float(met.alike().weights.std()) == 0.0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("d", [4, 90])  # the latter more than examples
def test_newton_finds_the_minimum_that_autograd_confirms(bias, shared, d):
    met, scores, *_ = problem(d=d)
    task = _Problem(met, scores, bias, shared)
    theta = task.minimum(task.start()).requires_grad_()
    value = met.weights @ met.losses(task.logits(theta)) + 0.5 * theta @ (task.prior @ theta)
    (gradient,) = torch.autograd.grad(value, theta)
    assert float(gradient.norm()) < 1e-4
    with torch.no_grad():
        scale, offsets, direction = task.parts(theta.detach())
        torch.testing.assert_close(
            scale * scores + (met.features @ direction)[:, None] + offsets, task.logits(theta), rtol=1e-9, atol=1e-9
        )
        p, _ = task._probabilities(theta.detach())
    hessian = torch.autograd.functional.hessian(
        lambda t: met.weights @ met.losses(task.logits(t)) + 0.5 * t @ (task.prior @ t), theta.detach()
    )
    torch.testing.assert_close(task._hessian(p), hessian, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_held_out_logits_are_close_to_those_of_refits(bias, shared):
    met, scores, *_ = problem(n=100)
    task = _Problem(met, scores, bias, shared)
    theta = task.minimum(task.start())
    approximate = task.held_out(theta)
    here = task.logits(theta)
    moved = missed = 0.0
    for i in range(0, 100, 9):
        without = task.weighted(1.0)
        without.w = torch.where(torch.arange(100) == i, 0, task.w)
        exact = without.logits(without.minimum(theta))[i]
        moved += float((exact - here[i]).square().sum())
        missed += float((exact - approximate[i]).square().sum())
    assert moved > 0
    assert missed < 0.01 * moved


def test_old_classes_keep_what_was_asked_for():
    met, scores, *_ = problem(n=200)
    before = met.share(met.known, met.old)
    weights = []
    for keep in (0.0, 0.8, 0.95):
        found = calibrated(met, scores - 1.0, torch.zeros(2, 4).double(), length=None, bias=True, keep=keep)
        assert found.kept
        assert met.share(met.hits(found.held_out), met.old) >= keep * before
        weights.append(found.old_weight)
    assert weights[0] == 1.0
    assert weights[0] <= weights[1] <= weights[2]


@pytest.mark.parametrize("d", [4, 90])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_held_to_a_length_and_no_shorter_than_needed(shared, d):
    met, *_ = problem(n=60, d=d)
    rows = torch.randn(2, d, generator=torch.Generator().manual_seed(1)).double()
    norms = []
    for length in (None, 0.3, 1e9):
        found = calibrated(met, met.features @ rows.mT, rows, length=length, bias=True, keep=0.0, shared=shared)
        norms.append(float((found.scale * rows + found.direction).square().sum(1).mean().sqrt()))
    assert norms[0] == pytest.approx(norms[2])
    assert 0.15 < norms[1] <= 0.3 < norms[0]


def test_with_few_old_examples_none_may_be_lost():
    many, some, few = (problem(n=n)[0] for n in (500, 100, 20))
    assert _enough(many, 0.96) == (pytest.approx(0.96), 0.0)
    assert _enough(some, 0.96) == (pytest.approx(1 - (0.05 * 62 - 1) / 60), 0.0)
    assert _enough(few, 0.96) == (1.0, 1.0)


def test_separable_examples_give_finite_rows():
    met, _, _, y, *_ = problem()
    sure = 5 * functional.one_hot(y)[:, 3:].double()
    found = calibrated(met, sure, torch.zeros(2, 4).double(), length=None, bias=True, keep=0.9)
    assert torch.isfinite(torch.tensor([found.scale, *found.offsets, *found.direction])).all()
    assert met.loss(found.held_out) < met.loss(torch.zeros(len(y), 2).double())


def test_a_head_of_new_rows_alone_is_calibrated_too():
    met, scores, *_ = problem(old=0, new=3)
    found = calibrated(met, scores, torch.zeros(3, 4).double(), length=None, bias=True, keep=0.96)
    assert found.kept
    assert met.loss(found.held_out) < met.loss(scores)


def test_thinned_examples_keep_their_shares(monkeypatch):
    met, scores, *_ = problem(n=200)
    monkeypatch.setattr("foreshock.heads.calibrate._WORK", 800.0)
    fewer, kept = thinned(met, scores)
    assert len(fewer.weights) == len(kept) == 50
    assert float(fewer.weights.sum()) == pytest.approx(1.0)
    same, _ = thinned(replace(fewer, weights=fewer.weights), kept)
    assert same is not met
