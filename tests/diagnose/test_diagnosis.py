"""Causes ranked: each mechanism is told from the others, what the run does not tell is said, and nothing is made up."""

from __future__ import annotations

import doctest
import json
import re
from functools import cache
from operator import attrgetter
from types import ModuleType

import numpy as np
import pytest

import foreshock
from foreshock.detect import scan
from foreshock.diagnose import Cause, Diagnosis, Rule, approach, diagnose, rank, wording
from foreshock.run import Event, Run, absent

from ..detect.softmax import HEALTHY, SPIKE, constant, slingshot
from ..detect.test_stages import descent_run, quad_run, tl_run, watched


@cache
def events(run_name: str) -> tuple[Event, ...]:
    return tuple(scan({"slingshot": slingshot(), "tl": tl_run(), "quad": quad_run()}[run_name]))


def spike(at: int = SPIKE, height: float = 0.3) -> Event:
    return Event("spike", at, at, at + 1, at + 40, height, 80.0, "loss")


def leaping(factor: float, **signals: float) -> Run:
    """Returns 300 steps with a leap of the learning rate at 200 by this factor, and a spike with it."""
    at = np.arange(300)
    loss = np.where((at >= 202) & (at < 210), 3.0, 1.0)
    rate = np.where(at >= 200, 0.1 * factor, 0.1)
    return Run.from_arrays({"loss": loss, "lr": rate, **{name: np.full(300, v) for name, v in signals.items()}})


def test_the_module_can_be_called_and_its_parts_stay_reachable() -> None:
    run, event = slingshot(), spike()
    assert foreshock.diagnose(run, event).to_dict() == diagnose(run, event).to_dict()
    assert foreshock.diagnose.approach is approach


@pytest.mark.parametrize("module", [rank, wording])
def test_the_docstrings_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_a_spike_after_absorption_is_called_so_with_its_numbers() -> None:
    found = diagnose(slingshot(), spike())
    assert found.best.name == "softmax_absorption"
    assert found.best.score > 0.95
    text = " ".join(found.best.evidence)
    assert "From step 630 on, 610 steps before the loss rose" in text
    assert re.search(r"differ by 5\d\s%", text)
    assert "The order is the mechanism's: absorbed at 630, inflated at 800, more than a nat" in text
    assert any("foreshock.cross_entropy(logits, target)" in line for line in found.best.advice)
    assert any("2605.06152" in line for line in found.best.references)


def test_what_the_advice_says_to_call_exists() -> None:
    text = " ".join(diagnose(slingshot(), spike()).best.advice)
    called = set(re.findall(r"foreshock((?:\.\w+)+)\(", text))
    assert {".cross_entropy", ".numerics.exact_gradient", ".numerics.recentre_"} <= called
    for name in called:
        assert callable(attrgetter(name[1:])(foreshock)), name


def test_every_event_of_a_slingshot_is_absorption() -> None:
    run, found = slingshot(), events("slingshot")
    assert {"absorbing", "inflating", "imminent", "spike"} <= {event.kind for event in found}
    for event in found:
        if event.kind != "precursor":
            assert diagnose(run, event).best.name == "softmax_absorption", event


def test_absorption_that_has_not_inflated_is_doubted() -> None:
    run = constant(1300, absorbed=0.9, residual=0.5, error=0.5, wrong=1e-8, head_mean=0.25, head_centred=4.6,
                   cosine=-0.3, sensitivity=0.02, feature_mean=50.0)  # fmt: skip
    cause = diagnose(run, spike(1280)).causes
    assert cause[0].name == "unexplained"
    doubted = next(each for each in cause if each.name == "softmax_absorption")
    assert doubted.score < 0.3
    assert any("had not inflated" in line for line in doubted.contradicts)


def test_without_a_head_absorption_is_likely_and_no_more() -> None:
    run = constant(1300, absorbed=0.9, residual=0.5, error=0.5, wrong=1e-8)
    assert 0.6 < diagnose(run, spike(1280)).best.score < 0.9


@pytest.mark.parametrize("name", [name for name in HEALTHY if name not in ("label smoothing", "regression")])
def test_a_spike_of_a_run_that_does_not_absorb_is_not_called_so(name: str) -> None:
    found = diagnose(constant(1300, **HEALTHY[name]), spike(1280))
    assert found.best.name == "unexplained"
    assert found["softmax_absorption"].score < 0.05
    assert "softmax" in found.summary


def test_a_rise_of_a_rounded_loss_is_rounding() -> None:
    run = slingshot()
    flicker = Event("spike", 900, 890, 900, 910, 2e-9, 5.0, "loss")
    assert run["loss"][900] < 1e-8
    cause = diagnose(run, flicker).best
    assert cause.name == "softmax_absorption"
    assert "so small a rise is rounding itself" in " ".join(cause.evidence)


def test_second_moment_and_landscape_are_told_apart() -> None:
    parabola = diagnose(quad_run(), watched(quad_run())[0])
    assert parabola.best.name == "preconditioner"
    assert parabola["landscape"].score < 0.15
    assert any(line.startswith("eps >=") for line in parabola.best.advice)
    descent = diagnose(descent_run(), next(event for event in watched(descent_run()) if event.onset > 4400))
    assert descent.best.name == "landscape"
    assert descent["preconditioner"].score == 0.0
    assert any(line.startswith("learning rate <=") for line in descent.best.advice)


def test_a_run_without_softmax_is_never_called_absorption() -> None:
    for event in events("tl"):
        found = diagnose(tl_run(), event)
        assert all(cause.name != "softmax_absorption" for cause in (*found.causes, *found.ruled_out))
        assert found.unjudged[0].cause == "softmax_absorption"
        assert found.unjudged[0].signals == ("softmax_absorbed", "softmax_residual")


def test_curvature_that_absorption_brings_about_does_not_win() -> None:
    """chi grows with the features and passes 1 before the loss turns, as it does when it is read at every step."""
    run = slingshot()
    at = np.arange(len(run))
    since = np.where(at < SPIKE + 5, np.maximum(SPIKE - at, 0), np.inf)
    chi = np.clip(1.3 * np.exp(-since / 150), 1e-3, None)
    columns = {name: run[name] for name in run.columns if name not in ("step", "time")} | {"chi": chi}
    meta = {"optimizers": [{"class": "Adam", "groups": [{"lr": 1e-3, "betas": [0.9, 0.95]}]}]}
    mixed = Run.from_arrays({name: _absent_again(run, name, values) for name, values in columns.items()}, **meta)
    found = diagnose(mixed, spike())
    assert found.best.name == "softmax_absorption"
    assert all(cause.score < 0.15 for cause in found.ruled_out)
    assert {cause.name for cause in found.ruled_out} >= {"preconditioner", "landscape"}
    alone = diagnose(Run.from_arrays({"loss": run["loss"], "chi": chi}, **meta), spike())
    assert {cause.name for cause in alone.causes} >= {"preconditioner", "landscape"}


def _absent_again(run: Run, name: str, values: np.ndarray) -> np.ndarray:
    if name == "chi":
        return values
    kept = absent(len(run))
    steps, measured = run.measured(name)
    kept[np.searchsorted(run.steps, steps)] = measured
    return kept


@pytest.mark.parametrize(("factor", "name"), [(4.0, "schedule"), (1.0, "unexplained")])
def test_a_leap_of_the_learning_rate_is_the_schedule(factor: float, name: str) -> None:
    found = diagnose(leaping(factor), Event("spike", 202, 202, 202, 210, 2.0, 50.0, "loss"))
    assert found.best.name == name
    if name == "schedule":
        assert "went up 4-fold" in found.best.evidence[0]


def test_an_imported_run_with_a_loss_alone_says_what_to_record() -> None:
    found = diagnose(Run.from_arrays({"loss": leaping(1.0)["loss"]}), Event("spike", 202, 202, 202, 210, 2, 50, "loss"))
    assert found.best.name == "unexplained"
    assert found.best.score > 0.7
    assert {cause.name for cause in found.causes} <= {"unexplained", "outlier_batch"}
    unjudged = {each.cause for each in found.unjudged}
    assert unjudged >= {"softmax_absorption", "preconditioner", "landscape", "schedule", "update_burst"}
    assert {"softmax_absorbed", "chi", "lr", "grad_norm"} <= {name for each in found.unjudged for name in each.signals}
    assert "`softmax_absorbed`" in found.best.advice[-1]
    assert "Not judged" in found.summary


def test_an_unexplained_event_says_what_was_ruled_out_with_numbers() -> None:
    run = leaping(1.0, chi=0.4, softmax_absorbed=0.0, softmax_residual=1e-7)
    found = diagnose(run, Event("spike", 202, 202, 202, 210, 2.0, 50.0, "loss"))
    assert found.best.name == "unexplained"
    names = {"softmax_absorption", "preconditioner", "landscape", "schedule"}
    assert {cause.name for cause in found.ruled_out} >= names
    text = " ".join(found.best.evidence)
    assert "chi was 0.4 at most" in text
    assert re.search(r"at most 0\s% of the rows", text)


def test_readings_too_far_from_the_event_are_not_judged() -> None:
    run = slingshot(steps=5000)
    columns = {name: _absent_again(run, name, run[name]) for name in run.columns if name not in ("step", "time")}
    for name in columns:
        if name != "loss":
            columns[name][900:] = absent(4100)
    far = diagnose(Run.from_arrays(columns), spike(4000))
    assert far.best.name == "unexplained"
    assert "not read close enough" in next(each for each in far.unjudged if each.cause == "softmax_absorption").why
    assert any("`max_overhead`" in line and "`softmax_absorbed`" in line for line in far.best.advice)


@pytest.mark.parametrize("kind", ["nonfinite", "drift", "divergence", "precursor", "transient", "absorbing"])
def test_every_kind_of_event_gets_an_answer(kind: str) -> None:
    for run in (slingshot(), leaping(1.0, chi=0.4), Run.from_arrays({"loss": [1.0, np.nan, 3.0]})):
        last = int(run.steps[-1])
        found = diagnose(run, Event(kind, last, max(0, last - 2), last, None, np.inf, np.inf, "loss"))
        assert isinstance(found, Diagnosis)
        assert found.causes
        json.dumps(found.to_dict(), allow_nan=True)


def test_scores_are_shares_and_ranked() -> None:
    for run, found in ((slingshot(), events("slingshot")), (tl_run(), events("tl"))):
        for event in found:
            scores = [cause.score for cause in diagnose(run, event).causes]
            assert scores == sorted(scores, reverse=True)
            assert all(0 <= score <= 1 for score in scores)


def test_it_becomes_plain_values() -> None:
    found = diagnose(slingshot(), spike()).to_dict()
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    assert found["causes"][0]["name"] == "softmax_absorption"
    assert found["causes"][0]["score"] == round(found["causes"][0]["score"], 3)
    assert found["event"]["kind"] == "spike"


def test_rules_of_ones_own_are_ranked_too() -> None:
    cause = Cause("cosmic_ray", 0.7, ("A bit flipped.",))
    mine = Rule("cosmic_ray", lambda run, event: cause, frozenset({"spike"}), ())
    found = diagnose(leaping(1.0), Event("spike", 202, 202, 202, 210, 2.0, 50.0, "loss"), rules=(mine,))
    assert found.best.title == "cosmic ray"
    assert "A bit flipped." in found.summary
    with pytest.raises(KeyError, match="cosmic_ray"):
        found["landscape"]
