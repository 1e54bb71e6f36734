"""Modular arithmetic: its tables, the losses and gradients of the grokking literature, and trainings."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from foreshock.errors import UsageError
from foreshock.papers import modular, modular_arms
from foreshock.papers.modular import split, table
from foreshock.papers.modular_arms import ARMS, perpendicular_, stablemax_cross_entropy
from foreshock.papers.modular_figure import figure
from foreshock.papers.modular_statements import GROKKING
from foreshock.papers.modular_study import PLAN, grokking
from foreshock.papers.modular_training import RECTIFIED, SQUARES, network, train
from foreshock.papers.studies import Found, judge, silent

SMALL = replace(SQUARES, prime=7, hidden=(16,), steps=60)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("module", [modular, modular_arms])
def test_the_examples_are_true(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("prime", [2, 3, 5, 13, 31])
def test_a_quotient_times_its_divisor_is_the_dividend_and_every_result_comes_equally_often(prime):
    pairs, results = table(prime, "division")
    assert len(pairs) == prime * (prime - 1)
    assert torch.equal(results * pairs[:, 1] % prime, pairs[:, 0])
    assert torch.equal(results.bincount(minlength=prime), torch.full((prime,), prime - 1))
    pairs, results = table(prime, "addition")
    assert len(pairs.unique(dim=0)) == len(pairs) == prime**2
    assert torch.equal(results, (pairs[:, 0] + pairs[:, 1]) % prime)


@pytest.mark.parametrize("prime", [-3, 0, 1, 4, 9, 91])
def test_what_is_no_prime_is_refused(prime):
    with pytest.raises(UsageError, match=str(prime)):
        table(prime, "addition")


def test_another_operation_and_a_part_without_questions_are_refused():
    with pytest.raises(UsageError, match="multiplication"):
        table(5, "multiplication")
    for share in (0.0, 1.0, -0.5, 0.01, math.nan):
        with pytest.raises(UsageError, match="share"):
            split(5, "addition", share, torch.Generator())


@pytest.mark.parametrize("operation", modular.OPERATIONS)
def test_a_split_holds_every_question_once_and_its_generator_alone_decides_which(operation):
    before = torch.get_rng_state()
    parts = [split(11, operation, 0.3, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    pairs, results = table(11, operation)
    whole = torch.cat([parts[0].inputs, parts[0].test_inputs])
    asked = whole.view(-1, 2, 11).argmax(dim=2)
    assert torch.equal(whole.sum(dim=1), torch.full((len(pairs),), 2.0))
    order = (asked[:, 0] * 11 + asked[:, 1]).argsort()
    assert torch.equal(asked[order], pairs)
    assert torch.equal(torch.cat([parts[0].labels, parts[0].test_labels])[order], results)
    assert len(parts[0].inputs) == int(0.3 * len(pairs))
    assert torch.equal(parts[0].inputs, parts[1].inputs)
    assert not torch.equal(parts[0].inputs, parts[2].inputs)


def test_stablemax_is_a_softmax_of_the_logarithms_of_its_sizes():
    logits, labels = 5 * drawn(40, 7), torch.arange(40) % 7
    sizes = torch.tensor([[x + 1 if x >= 0 else 1 / (1 - x) for x in row] for row in logits.tolist()]).double()
    assert stablemax_cross_entropy(logits, labels).item() == pytest.approx(
        functional.cross_entropy(sizes.log(), labels).item(), rel=1e-6
    )
    assert torch.autograd.gradcheck(lambda z: stablemax_cross_entropy(z, labels), logits.requires_grad_())


def test_stablemax_absorbs_nothing_at_a_gap_where_a_softmax_in_float32_does():
    logits = torch.tensor([[30.0, 0.0, -20.0]], requires_grad=True)
    for loss, lost in ((functional.cross_entropy, True), (stablemax_cross_entropy, False)):
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor([0])), logits)
        assert (gradient[0, 0] == 0) == lost


def test_a_perpendicular_gradient_is_that_and_as_long_and_in_the_same_plane_as_before():
    weight, gradient = drawn(6, 5), drawn(6, 5, seed=1)
    weight.grad = gradient.clone()
    perpendicular_([weight, drawn(3)])
    assert abs((weight * weight.grad).sum()) < 1e-12
    assert weight.grad.norm().item() == pytest.approx(gradient.norm().item(), rel=1e-12)
    inside = torch.linalg.lstsq(torch.stack([weight.ravel(), gradient.ravel()], dim=1), weight.grad.ravel()).solution
    assert torch.allclose(inside[0] * weight + inside[1] * gradient, weight.grad)
    assert inside[1] > 0


def test_of_a_gradient_along_its_tensor_nothing_is_left_and_one_at_a_tensor_of_zeros_stays():
    for weight, gradient, expected in (
        (torch.tensor([2.0]), torch.tensor([3.0]), 0.0), (torch.ones(7), torch.full((7,), 0.1), 0.0),
        (torch.zeros(4), torch.ones(4), 1.0), (torch.ones(4), torch.zeros(4), 0.0),
    ):  # fmt: skip
        weight.grad = gradient
        perpendicular_([weight])
        assert torch.equal(weight.grad, torch.full_like(weight, expected))


@pytest.mark.parametrize("setting", [SQUARES, RECTIFIED])
def test_networks_start_from_the_same_point_in_each_precision_and_leave_the_global_stream_alone(setting):
    before = torch.get_rng_state()
    single, double = network(setting, 3), network(setting, 3, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(one.double(), other)
    assert single(torch.zeros(2, 2 * setting.prime)).shape == (2, setting.prime)


def test_the_first_steps_are_those_of_float64_and_a_training_repeats_itself_bit_for_bit():
    traces = {name: train(SMALL, ARMS[name], 0) for name in ("stock", "exact", "float64")}
    for name in ("stock", "exact"):
        assert np.allclose(traces[name].truth, traces["float64"].truth, rtol=1e-3)
    assert np.array_equal(train(SMALL, ARMS["exact"], 0).losses, traces["exact"].losses)
    assert traces["exact"].steps.tolist() == [0, 20, 40, 59]
    assert not np.array_equal(train(SMALL, ARMS["exact"], 1).losses, traces["exact"].losses)


def test_a_perpendicular_training_keeps_the_lengths_of_weights_nearly():
    long = train(SMALL, ARMS["perpendicular"], 0)
    assert long.end.head_centred < train(SMALL, ARMS["stock"], 0).end.head_centred


@pytest.mark.slow
def test_a_short_study_judges_nothing_but_can_be_drawn():
    pytest.importorskip("matplotlib")
    found = grokking(0, silent, 21, {})
    assert judge(GROKKING, {0: [found]}) == []
    assert len(found.rows) == len(found.runs) == sum(map(len, PLAN.values()))
    assert all("test_accuracy" in run for run in found.runs.values())
    assert all(("softmax_absorbed" in run) == ("stablemax" not in name) for name, run in found.runs.items())
    drawing = figure(found.drawn["modular"])
    drawing.draw_without_rendering()
    assert len(drawing.axes) == 4 * len(PLAN)


@pytest.fixture(scope="module")
def study() -> Found:
    return grokking(3, silent, 0, {})


@pytest.mark.slow
def test_what_is_claimed_holds_for_a_seed_that_was_not_looked_at(study):
    claims = judge(GROKKING, {3: [study]})
    assert {each.name for each in claims} == {each.name for each in GROKKING}
    assert [each.name for each in claims if not each.reproduced] == []
