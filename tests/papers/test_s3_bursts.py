"""Bursts in calm trainings: the same state is struck twice, and ranks are ranks."""

from __future__ import annotations

import doctest
import math

import pytest

from foreshock.papers import s3_bursts
from foreshock.papers.s3_bursts import ARMS, KINDS, RATES, STATEMENTS, bursts, rank_correlation
from foreshock.papers.studies import silent

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_bursts, "ARMS", {name: ARMS[name] for name in ("AdamW .9/.999", "AdamW 0/.999", "S3 p 3")})
        patch.setattr(s3_bursts, "AFTER", 3)
        yield bursts(0, silent, 25, {})


def test_each_optimizer_is_struck_by_each_burst_at_both_rates(found):
    struck = found.drawn["bursts"]
    assert {(each.arm, each.rate, each.kind) for each in struck} == {
        (arm, rate, kind) for arm in ("AdamW .9/.999", "AdamW 0/.999", "S3 p 3") for rate in RATES for kind in KINDS
    }
    assert set(found.numbers) == {each.name for each in STATEMENTS}
    assert all(-1 <= value <= 1 for value in found.numbers.values())


def test_a_scaled_gradient_hurts_by_how_far_it_takes_the_optimizer(found):
    rises = {each.arm: each.rise for each in found.drawn["bursts"] if (each.rate, each.kind) == (RATES[0], KINDS[0])}
    assert rises["AdamW 0/.999"] > rises["AdamW .9/.999"] > rises["S3 p 3"] >= 0
    assert rises["AdamW .9/.999"] > 5 * rises["S3 p 3"]


def test_both_bursts_strike_the_same_state(found):
    by_arm = {}
    for each in found.drawn["bursts"]:
        by_arm.setdefault((each.arm, each.rate), []).append(each)
    for one, two in by_arm.values():
        assert (one.before, one.usual, one.lr) == (two.before, two.usual, two.lr)
    for (arm, rate), (one, _) in by_arm.items():
        usual = one.lr * one.usual / (by_arm["AdamW .9/.999", rate][0].lr * by_arm["AdamW .9/.999", rate][0].usual)
        assert rate == RATES[0] or 0.4 < usual < 2.5, arm


def test_the_size_of_a_burst_is_measured(found):
    for each in found.drawn["bursts"]:
        assert each.ratio > (300 if each.kind == KINDS[0] else 1)
        assert each.own <= each.displacement * (1 + 1e-9)


def test_ranks_are_spearmans():
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rank_correlation([1, 1, 2], [5, 6, 7]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    assert doctest.testmod(s3_bursts).failed == 0


def test_the_figure_shows_all_that_was_struck(found):
    pytest.importorskip("matplotlib")
    from foreshock.papers.s3_bursts_figure import figure

    drawn = figure({0: {"bursts": found}})
    assert [axes.get_title(loc="left") or axes.get_title() for axes in drawn.axes][:1] == ["Scaled gradient"]
    assert all(len(axes.lines) == 6 for axes in drawn.axes)
    assert figure({0: {}}) is None
