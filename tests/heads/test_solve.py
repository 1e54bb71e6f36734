"""The closed forms against one stacked least-squares problem, and rows held out against refits."""

from __future__ import annotations

import pytest
import torch

from foreshock.errors import UsageError
from foreshock.heads import HeadStatistics, class_means, least_squares
from tests.reference.heads import held_out, ridge


def examples(counts, d, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    features = torch.randn(len(labels), d, generator=draw, dtype=torch.float64) + 1
    features += 2 * torch.randn(len(counts), d, generator=draw, dtype=torch.float64)[labels]
    order = torch.randperm(len(labels), generator=draw)
    return features[order], labels[order]


def summed(h, y, **settings):
    statistics = HeadStatistics(h.shape[1], **settings)
    statistics.update(h, y)
    return statistics


def weights(y, balanced):
    n = torch.bincount(y).double()
    return 1 / (len(n) * n[y]) if balanced else torch.full((len(y),), 1 / len(y), dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("counts", [[12, 12, 12], [5, 30, 11, 2]])
def test_least_squares_is_the_direct_ridge_solve(counts, balanced, bias):
    h, y = examples(counts, 7)
    W, b = ridge(h, torch.nn.functional.one_hot(y), weights(y, balanced), 0.05, bias)
    found = least_squares(summed(h, y), lam=0.05, balanced=balanced, bias=bias)
    torch.testing.assert_close(found.weight, W, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.bias, b, rtol=1e-10, atol=1e-10)
    assert not found.pooled


def test_balanced_rows_are_equation_3():
    h, y = examples([9, 9, 9, 9], 5)
    means = torch.stack([h[y == c].mean(0) for c in range(4)])
    centre = h.mean(0)
    total = (h - centre).mT @ (h - centre) / len(h)
    inverse = torch.linalg.inv(total + torch.outer(centre, centre) + 0.3 * torch.eye(5, dtype=torch.float64))
    found = least_squares(summed(h, y), [2, 0], lam=0.3)
    torch.testing.assert_close(found.weight, (means @ inverse / 4)[[2, 0]], rtol=1e-10, atol=1e-12)


def test_the_extended_solve_equals_the_centred_form():
    h, y = examples([8, 8, 8], 6)
    extended = torch.cat([h, torch.ones(len(h), 1).double()], 1)
    penalty = 0.05 * torch.eye(7, dtype=torch.float64)
    penalty[-1, -1] = 0.0
    hot = torch.nn.functional.one_hot(y).double()
    both = torch.linalg.solve(extended.mT @ extended / len(h) + penalty, extended.mT @ hot / len(h))
    found = least_squares(summed(h, y), bias=True)
    torch.testing.assert_close(found.weight, both[:-1].mT, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.bias, both[-1], rtol=1e-8, atol=1e-8)


def test_a_large_ridge_makes_rows_parallel_to_class_means():
    h, y = examples([6, 9, 4], 5)
    statistics = summed(h, y)
    rows = least_squares(statistics, lam=1e8).weight
    cosines = torch.nn.functional.cosine_similarity(rows, class_means(statistics, [0, 1, 2]).weight)
    assert float(cosines.min()) > 1 - 1e-6


def test_more_features_than_examples_are_no_obstacle():
    h, y = examples([3, 4], 40)
    found = least_squares(summed(h, y), bias=True)
    W, b = ridge(h, torch.nn.functional.one_hot(y), weights(y, True), 0.05, True)
    torch.testing.assert_close(found.weight, W, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.bias, b, rtol=1e-8, atol=1e-9)
    assert found.condition is not None
    assert found.condition > 1


def test_a_solve_on_some_classes_is_that_of_their_examples():
    h, y = examples([7, 9, 5, 6], 5)
    some = y >= 2
    found = least_squares(summed(h, y), [3, 2], use=[2, 3], bias=True)
    alone = least_squares(summed(h[some], y[some]), [3, 2], bias=True)
    torch.testing.assert_close(found.weight, alone.weight, rtol=1e-10, atol=1e-12)


def test_a_scaled_ridge_follows_the_features():
    h, y = examples([7, 9, 5], 4)
    one, big = (least_squares(summed(c * h, y), bias=True, scaled=True) for c in (1.0, 100.0))
    torch.testing.assert_close(one.weight, 100 * big.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_held_out_scores_are_those_of_refits(bias, balanced):
    h, y = examples([6, 9, 4], 5)
    omega = weights(y, balanced)
    hot = torch.nn.functional.one_hot(y)
    found = least_squares(summed(h, y), balanced=balanced, bias=bias).held_out(h, y, torch.ones(len(y)).double())
    expected = held_out(h, hot, omega, 0.05, bias)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_class_means_held_out_leave_the_example_out():
    h, y = examples([4, 6], 3)
    for unit in (False, True):
        x = torch.nn.functional.normalize(h, dim=1) if unit else h
        found = class_means(summed(h, y), [1, 0], unit=unit)
        torch.testing.assert_close(found.weight[0], x[y == 1].mean(0))
        rest = (y == y[0]) & (torch.arange(len(y)) != 0)
        expected = x[rest].mean(0) @ h[0]
        own = [1, 0].index(int(y[0]))
        torch.testing.assert_close(found.held_out(h, y, torch.ones(len(y)).double())[0, own], expected)


def test_without_second_moments_by_class_balance_pools_the_covariance_within_classes():
    h, y = examples([400, 100], 3)  # one covariance in both: pooled is the truth up to sampling
    exact, pooled = (least_squares(summed(h, y, per_class=which), bias=True) for which in (True, False))
    assert pooled.pooled
    torch.testing.assert_close(pooled.weight, exact.weight, rtol=0.1, atol=0.01)
    plain = least_squares(summed(h, y, per_class=False), balanced=False)
    assert not plain.pooled


def test_a_class_without_examples_and_a_ridge_of_zero_are_refused():
    h, y = examples([4, 6], 3)
    with pytest.raises(UsageError, match=r"no examples of class \[5\]"):
        least_squares(summed(h, y), [0, 5])
    with pytest.raises(UsageError, match=r"no examples of class \[7\]"):
        class_means(summed(h, y), [7])
    with pytest.raises(UsageError, match="lam must be above 0"):
        least_squares(summed(h, y), lam=0.0)
