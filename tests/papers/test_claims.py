"""What a claim says about its measured values."""

from __future__ import annotations

import doctest
import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreshock.errors import RunError, UsageError
from foreshock.papers import PAPERS, claims, drawing, paper
from foreshock.papers.claims import Claim
from foreshock.papers.drawing import spread
from foreshock.papers.experiment import Experiment, Outcome, write
from foreshock.run import Run


def test_docstrings():
    assert doctest.testmod(claims).failed == 0
    assert doctest.testmod(drawing).failed == 0


@given(low=st.floats(-10, 10), width=st.floats(0, 5), value=st.floats(-20, 20))
def test_a_claim_holds_inside_its_interval_and_misses_by_the_distance_outside(low, width, value):
    claim = Claim("a", "x is", low, low + width, {0: value})
    inside = low <= value <= low + width
    assert claim.reproduced == inside
    assert abs(claim.misses[0]) == pytest.approx(max(low - value, value - (low + width), 0))
    assert claim.verdict.endswith("above") == (value > low + width)


def test_every_seed_must_hold_and_the_farthest_is_told():
    claim = Claim("a", "x is", 0.9, 1.1, {0: 1.0, 1: 1.25, 2: 0.6})
    assert not claim.reproduced
    assert claim.verdict == "not: 0.3 below"


@pytest.mark.parametrize("measured", [{}, {0: math.nan}, {0: 1.0, 1: math.nan}])
def test_a_value_that_is_not_there_is_not_a_reproduction(measured):
    claim = Claim("a", "x is", -math.inf, math.inf, measured)
    assert not claim.reproduced
    assert claim.verdict == "not: no value"


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.9, 1.1, "0.9 to 1.1"), (-math.inf, 0.8, "< 0.8"), (1, math.inf, "> 1")]
)
def test_intervals_read_well(low, high, text):
    assert Claim("a", "x is", low, high, {}).expected == text


@given(values=st.lists(st.floats(0, 2), min_size=1, max_size=8), gap=st.floats(0.01, 0.3))
def test_labels_are_spread_without_changing_their_order(values, gap):
    placed = spread(values, gap)
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert sum(placed) == pytest.approx(sum(values), abs=1e-6)


def test_an_unknown_paper_is_answered_with_a_known_one():
    with pytest.raises(UsageError, match="did you mean 'edge-of-stability'"):
        paper("edge-of-stabillity")


def test_every_paper_in_the_registry_can_be_had():
    for name, (_, about) in PAPERS.items():
        experiment = paper(name)
        assert experiment.name == name
        assert experiment.title in about
        assert experiment.trainings


def outcome(runs: dict[str, Run]) -> Outcome:
    claim = Claim("a", "x is", -math.inf, 1.0, {0: math.nan})
    return Outcome([claim], ("training", "seed"), [("gd", "0")], runs, ["short"], dict)


EXPERIMENT = Experiment("mine", "Mine", "me", "", {}, lambda request, progress: outcome({}))


def test_writing_replaces_an_older_reproduction_and_nothing_else(tmp_path):
    run = Run.from_arrays({"loss": [1.0, 2.0]}, paper="mine")
    for _ in range(2):
        write(EXPERIMENT, outcome({"gd-seed-0": run}), tmp_path / "here")
    assert Run.load(tmp_path / "here" / "gd-seed-0")["loss"].tolist() == [1.0, 2.0]
    facts = json.loads((tmp_path / "here" / "claims.json").read_text())
    assert facts["claims"][0]["low"] == "-inf"
    assert facts["claims"][0]["measured"] == {"0": "nan"}
    assert facts["trainings"] == [{"training": "gd", "seed": "0"}]
    Run.from_arrays({"loss": [1.0]}, name="somebody's").save(tmp_path / "here" / "adam-seed-0")
    with pytest.raises(RunError, match="not from an earlier reproduction"):
        write(EXPERIMENT, outcome({"gd-seed-0": run, "adam-seed-0": run}), tmp_path / "here")
    assert Run.load(tmp_path / "here" / "adam-seed-0").meta["name"] == "somebody's"
