"""A replay moves the causes to what its arms say, and never further than they say."""

from __future__ import annotations

import math

import pytest

from foreshock.diagnose.base import Cause
from foreshock.diagnose.proof import ARMS, OTHER, REMOVES, proven
from foreshock.run import Event, Run

EVENT = Event("spike", 50, 50, 52, 60, 3.0, 30.0, "loss", {"baseline": 1.0})
ALL = tuple(REMOVES)


def run_with(outcomes: dict[str, str], **more: object) -> Run:
    peaks = {"removed": 1.1, "weakened": 2.0, "stays": 4.0, "worse": 9.0}
    arms = [
        {"name": name, "what": f"change {name}", "verdict": verdict, "peak": peaks.get(verdict, math.nan), "share": 0.0}
        for name, verdict in outcomes.items()
    ]
    run = Run.from_arrays({"loss": [1.0, 2.0]})
    finding = {"kind": "replay", "event": EVENT.key, "reproducible": True, "peak": 4.0, "base": 1.0, "arms": arms}
    run.add_finding(finding | more)
    return run


def typical(cause: str) -> dict[str, str]:
    return {arm: "removed" if p > 0.5 else "stays" for arm, p in zip(ARMS, REMOVES[cause], strict=True)}


def undecided() -> list[Cause]:
    return [Cause(name, 0.3, (f"signs of {name}",)) for name in ALL]


def best(causes: list[Cause]) -> Cause:
    return max(causes, key=lambda cause: cause.score)


@pytest.mark.parametrize("cause", [each for each in ALL if each != "nonfinite"])  # that is told by its values
def test_arms_as_a_cause_wants_them_bring_it_to_the_top(cause: str) -> None:
    found = proven(run_with(typical(cause)), EVENT, undecided(), ALL)
    assert best(found).name == cause
    assert best(found).score > 0.5
    assert any("Run again with" in said for said in best(found).evidence)


def test_scores_stay_probabilities_whatever_the_arms_say() -> None:
    for verdict in ("removed", "weakened", "stays", "worse"):
        found = proven(run_with(dict.fromkeys(ARMS, verdict)), EVENT, undecided(), ALL)
        assert sum(cause.score for cause in found) < 1.0
        assert all(cause.score >= 0.0 for cause in found)


def test_arms_that_make_no_sense_or_failed_say_nothing() -> None:
    run = run_with(dict.fromkeys(ARMS, "not applicable") | {"floor": "failed"})
    assert proven(run, EVENT, undecided(), ALL) == undecided()


def test_a_change_that_makes_no_sense_can_rule_its_cause_out() -> None:
    run = Run.from_arrays({"loss": [1.0, 2.0]})
    arms = [
        {"name": "cut_lr", "what": "half the rate", "verdict": "removed", "peak": 1.0},
        {"name": "other_batches", "verdict": "not applicable", "why": "every step sees the same data"},
    ]
    run.add_finding({"kind": "replay", "event": EVENT.key, "reproducible": True, "peak": 4.0, "arms": arms})
    judged = [Cause("outlier_batch", 0.6, ("jumped",)), Cause("landscape", 0.4, ("chi",))]
    found = proven(run, EVENT, judged, ALL)
    assert best(found).name == "landscape"
    assert "same data" in " ".join(next(cause for cause in found if cause.name == "outlier_batch").contradicts)


def test_a_cause_that_could_not_be_judged_is_brought_in_by_its_cure() -> None:
    judged = [Cause("outlier_batch", 0.2, ("a sign",)), Cause("landscape", 0.2, ("another",))]
    found = proven(run_with(typical("softmax_absorption")), EVENT, judged, ALL)
    assert best(found).name == "softmax_absorption"
    assert "exact_softmax" in " ".join(best(found).evidence)
    assert OTHER not in [cause.name for cause in found]


def test_without_a_replay_nothing_moves() -> None:
    run = Run.from_arrays({"loss": [1.0]})
    assert proven(run, EVENT, undecided(), ALL) == undecided()


def test_a_later_replay_of_one_arm_leaves_the_others_standing() -> None:
    run = run_with(typical("softmax_absorption"))
    later = {"name": "own", "what": "my own", "verdict": "stays", "peak": 4.0}
    run.add_finding({"kind": "replay", "event": EVENT.key, "reproducible": True, "peak": 4.0, "arms": [later]})
    assert best(proven(run, EVENT, undecided(), ALL)).name == "softmax_absorption"


def test_a_replay_of_another_event_says_nothing() -> None:
    other = Event("spike", 70, 70, 72, 80, 3.0, 30.0, "loss")
    assert proven(run_with(typical("schedule")), other, undecided(), ALL) == undecided()


@pytest.mark.parametrize(("repeats", "word"), [(True, "hardware"), (False, "not deterministic")])
def test_a_replay_that_differs_is_the_finding(repeats: bool, word: str) -> None:
    run = run_with({}, reproducible=False, differs_at=51, repeats=repeats)
    found = proven(run, EVENT, undecided(), ALL)
    assert best(found).name == "not_reproducible"
    assert word in " ".join(best(found).evidence)
    assert max(cause.score for cause in found if cause.name != "not_reproducible") < 0.15


def test_an_event_that_comes_again_is_judged_though_not_bit_for_bit() -> None:
    run = run_with(typical("schedule"), reproducible=False, returns=True, differs_at=51, repeats=False)
    found = proven(run, EVENT, [Cause("not_reproducible", 0.3, ("a sign",)), *undecided()], ALL)
    assert best(found).name == "schedule"
    assert "comes again" in " ".join(next(each for each in found if each.name == "not_reproducible").evidence)


def test_random_numbers_that_are_lost_are_no_fault_of_the_hardware() -> None:
    run = run_with({}, reproducible=False, returns=False, drawn=True, differs_at=51, repeats=True)
    found = best(proven(run, EVENT, undecided(), ALL))
    assert found.score < 0.8
    assert "random numbers" in " ".join(found.evidence)


def test_objects_that_were_not_brought_back_are_no_fault_of_the_hardware() -> None:
    run = run_with({}, reproducible=False, returns=False, beside=["scheduler"], differs_at=51, repeats=True)
    found = {cause.name: cause for cause in proven(run, EVENT, undecided(), ALL)}["not_reproducible"]
    assert found.score < 0.5
    assert "`scheduler`" in " ".join(found.evidence)
    assert "hardware" not in " ".join(found.evidence)


def test_signs_in_the_record_make_a_replay_that_differs_surer() -> None:
    run = run_with({}, reproducible=False, returns=False, differs_at=51, repeats=True)
    seen = [Cause("not_reproducible", 0.8, ("weights moved",)), *undecided()]
    assert best(proven(run, EVENT, seen, ALL)).score > best(proven(run, EVENT, undecided(), ALL)).score


def test_a_replay_that_repeats_rules_irreproducibility_out() -> None:
    judged = [Cause("not_reproducible", 0.8, ("weights moved",)), *undecided()]
    found = {cause.name: cause for cause in proven(run_with(typical("schedule")), EVENT, judged, ALL)}
    assert found["not_reproducible"].score < 0.15


def test_batches_speak_not_against_a_schedule_of_batch_sizes() -> None:
    removed = {"other_batches": "removed", "skip": "removed", "hold_lr": "not applicable"}
    run = run_with(dict.fromkeys(ARMS, "stays") | removed)
    sized = Cause("schedule", 0.6, ("smaller batches",), signals=("batch_size",))
    rated = Cause("schedule", 0.6, ("larger rate",), signals=("lr",))
    outlier = Cause("outlier_batch", 0.3, ("a batch",))
    by_size, by_rate = (
        {cause.name: cause.score for cause in proven(run, EVENT, [each, outlier], ALL)} for each in (sized, rated)
    )
    assert by_size["schedule"] > by_rate["schedule"]


def edge_of(**found: object) -> dict[str, object]:
    return {"steps": [40, 44, 48], "chi": [0.9, 1.02, 1.05], "passed": 44, "lead": 5, "shares": {}} | found


def test_chi_read_along_the_replay_parts_denominators_and_landscape() -> None:
    for part, other in (("landscape", "preconditioner"), ("preconditioner", "landscape")):
        edge = edge_of(verdict=part, shares={part: 0.8, other: 0.2, "learning rate": 0.0})
        run = run_with({"cut_lr": "removed", "skip": "stays", "floor": "removed"}, edge=edge)
        found = proven(run, EVENT, undecided(), ALL)
        assert best(found).name == part
        assert "80\N{NO-BREAK SPACE}% from" in " ".join(best(found).evidence)


def test_chi_that_stayed_below_its_edge_speaks_against_both() -> None:
    outcomes = {"cut_lr": "weakened", "skip": "stays"}
    calm = edge_of(chi=[0.3, 0.4, 0.5], passed=None, lead=None, verdict="unexplained")
    scores = [
        sum(cause.score for cause in proven(run_with(outcomes, edge=edge), EVENT, undecided(), ALL)
            if cause.name in ("landscape", "preconditioner"))
        for edge in (None, calm)
    ]  # fmt: skip
    assert scores[1] < scores[0] / 2
