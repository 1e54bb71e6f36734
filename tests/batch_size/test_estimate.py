"""The noise scale from pairs of squared norms: unbiased, averaged before it is divided, and honest about its band."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from foreshock.batch_size import NoiseScale, adaptdl_pair, pair, ratio_band
from foreshock.batch_size.average import MovingMean
from foreshock.batch_size.collapse import collapsed
from foreshock.batch_size.ratio import student
from foreshock.errors import UsageError

TRACE, SQUARE, BIG = 4000.0, 2.47, 64
SCALE = TRACE / SQUARE
P = 1000


def draws(b: int, count: int, seed: int, square: float = SQUARE) -> Iterator[tuple[np.ndarray, float]]:
    """Yields |g_b|^2 of the small batches and |g_B|^2, of gradients that are Gaussian about one of norm^2 `square`.

    By what they add up to: n small batches have g_B + their deviations, whose squares are chi-square with P degrees of
    freedom for each of n - 1, so no gradient is drawn.
    """
    rng = np.random.default_rng(seed)
    n = BIG // b
    for _ in range(count):
        small = rng.standard_normal((n, 3)) * math.sqrt(TRACE / P / b)
        small[:, 0] += math.sqrt(square)
        rest = rng.standard_normal(P - 3)  # of the mean; the deviations in these directions are drawn by their squares
        mean_rest = float((rest**2).sum()) * TRACE / P / BIG
        inner = rng.chisquare((n - 1) * (P - 3)) * TRACE / P / b
        mean = small.mean(0)
        total = float((small**2).sum()) + n * mean_rest + inner
        yield np.full(n, total / n), float((mean**2).sum()) + mean_rest


@pytest.mark.parametrize(("b", "spread"), [(1, 23), (8, 62), (32, 178)])
def test_pairs_are_unbiased_and_their_scatter_grows_with_the_small_batch(b, spread):
    found = np.array([pair(small, big, small=b, big=BIG) for small, big in draws(b, 400, seed=b)])
    errors = found.std(0, ddof=1) / 20
    assert np.all(np.abs(found.mean(0) - [TRACE, SQUARE]) < 4 * errors)
    assert found[:, 0].std() == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("ema", [0.99, 1.0])
@pytest.mark.parametrize("b", [1, 8, 32])
def test_the_ratio_of_means_finds_the_noise_scale_where_the_mean_of_ratios_does_not(b, ema):
    scale = NoiseScale(b, BIG, ema=ema)
    ratios = []
    for small, big in draws(b, 400, seed=10 + b):
        scale.update(small, big)
        trace, square = pair(small, big, small=b, big=BIG)
        ratios.append(trace / square)
    value = scale.value()
    assert value.status == "ok"
    assert value.n == 400
    assert abs(value.noise_scale - SCALE) < 4 * value.se < 0.8 * SCALE
    assert value.low < value.noise_scale < value.high
    assert min(ratios) < 0.0  # of single steps


def test_one_step_is_never_a_number():
    for small, big in draws(32, 60, seed=3):
        scale = NoiseScale(32, BIG)
        scale.update(small, big)
        value = scale.value()
        assert value.status == "undefined"
        assert math.isnan(value.noise_scale)
        assert value.high == value.se == math.inf
        assert value.tr_sigma, value.g_sq == pair(small, big, small=32, big=BIG)


def test_a_gradient_that_is_noise_alone_has_no_noise_scale_but_a_lower_bound():
    scale = NoiseScale(8, BIG)
    for small, big in draws(8, 300, seed=4, square=0.0):
        scale.update(small, big)
        value = scale.value()
        assert value.status == "undefined" or value.g_sq > 0.0
    assert value.status == "undefined"
    assert "not distinguishable from 0" in value.reasons[0]
    assert value.low > 3 * SCALE  # so much is known
    assert value.g_sq_se > 0.0


@pytest.mark.parametrize("seed", range(3))
def test_adaptdl_s_form_is_the_pair_of_equal_small_batches(seed):
    rng = np.random.default_rng(seed)
    norms, total = rng.uniform(1, 3, size=6), rng.uniform(0.3, 1)
    ours = pair(norms, total, small=5, big=30)
    assert adaptdl_pair(norms, total, scale=30.0) == pytest.approx(ours, rel=1e-10)
    assert adaptdl_pair(norms, total).tr_sigma * 30 == pytest.approx(ours.tr_sigma, rel=1e-10)


def test_unequal_small_batches_give_the_sum_of_squares_between_them():
    rng = np.random.default_rng(0)
    sizes = np.array([3, 5, 8])
    grads = rng.standard_normal((3, 7))
    mean = (sizes[:, None] * grads).sum(0) / 16
    found = pair((grads**2).sum(1), (mean**2).sum(), small=sizes, big=16)
    between = float((sizes[:, None] * (grads - mean) ** 2).sum()) / 2
    assert found.tr_sigma == pytest.approx(between, rel=1e-12)
    assert found.g_sq == pytest.approx((mean**2).sum() - between / 16, rel=1e-12)


def test_unequal_small_batches_that_are_not_all_there_are_stay_unbiased():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        grads = np.array([2.0, 0, 0]) + rng.standard_normal((16, 3))
        norms = [(grads[i:j].mean(0) ** 2).sum() for i, j in ((0, 2), (2, 7))]
        found.append(pair(norms, (grads.mean(0) ** 2).sum(), small=[2, 5], big=16))
    table = np.array(found)
    assert np.all(np.abs(table.mean(0) - [3.0, 4.0]) < 4 * table.std(0) / math.sqrt(2000))


@pytest.mark.parametrize(
    ("small", "big"),
    [([math.nan], 1.0), ([1.0], math.inf), ([-1.0], 1.0), ([1.0], -1e-9), ([], 1.0), ([1.0, 2.0, math.inf], 1.0)],
)
def test_what_is_no_squared_norm_is_left_out_and_counted(small, big):
    scale = NoiseScale(8, 64)
    for _ in range(9):
        scale.update([3.0, 2.9], 1.0)
    before = scale.value()
    scale.update(small, big)
    assert scale.value().skipped == 1
    assert scale.value().to_dict() | {"skipped": 0} == before.to_dict()


@pytest.mark.parametrize("sizes", [{"small": -8}, {"small": 0}, {"big": 8}, {"big": math.nan}, {"small": [1, 2, 3]}])
def test_sizes_that_make_no_sense_are_left_out_in_a_step_and_refused_at_the_start(sizes):
    scale = NoiseScale(8, 64)
    scale.update([3.0, 2.0], 1.0, **sizes)
    assert (scale.value().n, scale.value().skipped) == (0, 1)
    if sizes["small" if "small" in sizes else "big"] != [1, 2, 3]:
        with pytest.raises(UsageError, match="pair"):
            NoiseScale(**{"small": 8, "big": 64} | sizes)


@pytest.mark.parametrize("wrong", [{"ema": 0.0}, {"ema": 1.5}, {"confidence": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        NoiseScale(8, 64, **wrong)
    with pytest.raises(UsageError, match="sizes are needed"):
        NoiseScale().update(1.0, 1.0)
    with pytest.raises(UsageError, match="are numbers; got 'a'"):
        NoiseScale("a", 8)


def test_a_gate_hides_the_number_and_keeps_what_comes_out():
    scale = NoiseScale(8, BIG)
    steps = list(draws(8, 120, seed=5))
    for small, big in steps:
        scale.update(small, big)
    assert scale.value().status == "ok"
    scale.gate("absorption")
    scale.update([1e30], 1e-30)
    value = scale.value()
    assert (value.status, value.reasons, value.n, value.skipped) == ("gated", ("absorption",), 120, 1)
    assert math.isnan(value.noise_scale)
    scale.gate(None)
    assert scale.value().n == 0  # what was before the gate is another place
    scale.gate("a spike", steps=2)
    for small, big in steps[:10]:
        scale.update(small, big)
    assert (scale.value().n, scale.gated) == (8, ())


def test_a_shortened_average_follows_a_change_sooner():
    ends = []
    for keep in (None, 0.1, 0.0):
        scale = NoiseScale(8, BIG)
        for small, big in draws(8, 200, seed=6):
            scale.update(small, big)
        if keep is not None:
            scale.restart(keep)
        for small, big in draws(8, 60, seed=7, square=40.0):
            scale.update(small, big)
        ends.append(scale.value())
    off = [abs(end.g_sq - 40.0) for end in ends]
    assert off[0] > 2 * off[1] > 2 * off[2]
    assert ends[1].status == ends[2].status == "ok"


def test_a_resumed_estimate_goes_on_as_if_it_had_not_stopped():
    steps = list(draws(8, 80, seed=8))
    through, first, second = NoiseScale(8, BIG), NoiseScale(8, BIG), NoiseScale(8, BIG)
    for i, (small, big) in enumerate(steps):
        through.update(small, big)
        if i == 30:
            through.gate("a spike", steps=4)
        (first if i < 32 else second).update(small, big)
        if i == 30:
            first.gate("a spike", steps=4)
        if i == 31:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.value() == through.value()
    assert second.state_dict() == through.state_dict()


def covers(seed: int, squares: np.ndarray, ema: float = 0.98) -> bool:
    scale = NoiseScale(8, 64, ema=ema)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(squares), 8, 40)) * math.sqrt(400 / 40 / 8)
    noise[:, :, 0] += np.sqrt(squares)[:, None]
    small, big = (noise**2).sum(2), (noise.mean(1) ** 2).sum(1)
    for s, b in zip(small.mean(1), big, strict=True):
        scale.update(s, b)
    value = scale.value()
    return value.low <= 400 / squares[-1] <= value.high


@pytest.mark.parametrize("course", [lambda t: 4.0 + 0 * t, lambda t: 16 * np.exp(-t / 150), lambda t: 1 + t / 60])
def test_the_band_covers_the_present_also_where_it_drifts(course):
    """Measured over 40 seeds and ten places each: .94 where nothing drifts, .94 to 1.0 where something does."""
    squares = course(np.arange(100.0))
    assert sum(covers(seed, squares) for seed in range(20)) >= 16


def test_the_covariance_of_a_mean_counts_neighbours_that_move_together():
    rng = np.random.default_rng(0)
    means, told = [], []
    for _ in range(30):
        noise, average, x = rng.standard_normal(150), MovingMean(1, 0.98), 0.0
        for each in noise:
            x = 0.6 * x + each
            average.update([x])
        means.append(average.mean[0])
        told.append(average.covariance()[0, 0])
    assert np.mean(told) == pytest.approx(np.var(means), rel=0.45)
    assert np.mean(told) > 2 * 1.5625 / average.effective  # the variance if they were independent


def test_the_band_of_a_ratio_is_closed_only_where_its_denominator_is_not_0():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x, y = rng.uniform(0.1, 5, 2)
        factor = rng.standard_normal((2, 2))
        covariance = factor @ factor.T * rng.uniform(0.001, 2)
        found = ratio_band(x, y, (covariance[0, 0], covariance[0, 1], covariance[1, 1]), 2.0)
        r = np.linspace(0, 4 * x / y, 4001)
        inside = (x - r * y) ** 2 <= 4 * (covariance[0, 0] - 2 * r * covariance[0, 1] + r**2 * covariance[1, 1])
        assert math.isfinite(found.high) == (y * y > 4 * covariance[1, 1])
        if math.isfinite(found.high):
            assert found.low <= found.value <= found.high
            low, high = r[inside].min(), r[inside].max()
            assert found.low == pytest.approx(low, abs=2 * r[1])
            assert min(found.high, r[-1]) == pytest.approx(high, abs=2 * r[1])
        elif inside.any():
            assert found.low <= r[inside].max()


@pytest.mark.parametrize(("df", "table"), [(4, 2.776), (10, 2.228), (30, 2.042), (200, 1.972)])
def test_student_s_quantile_is_that_of_the_tables(df, table):
    assert student(0.95, df) == pytest.approx(table, rel=0.005)


def test_a_collapsed_softmax_is_told_from_a_healthy_one_and_from_one_near_the_level():
    assert collapsed(0.9, 0.5)
    assert not collapsed(0.6, 0.02)
    assert not collapsed(0.3, 0.5)
    assert collapsed(0.3, 0.05, already=True)
    assert not collapsed(0.1, 0.5, already=True)
