from __future__ import annotations

import numpy as np
import pytest

from foreshock.errors import CorruptRunError
from foreshock.report import summary
from foreshock.report.sections import Section
from foreshock.report.summary import by_severity
from foreshock.report.wording import date, duration, listing, number
from foreshock.run import Event

from .runs import odd_runs, spike, spiky


def test_the_summary_tells_what_happened_where_and_what_moved_first() -> None:
    text = summary(spiky(), [spike(200), spike(420, severity=10)])
    assert text.startswith(
        "spiky\n=====\n2 spikes in 600 steps. The largest, at step 200, took the loss from 2 to 7.99"
    )
    assert "300 robust sigmas above its level" in text
    assert "layer2.weight moved most: grad_norm" in text
    assert "left its range 5 steps before" in text
    assert "Wall time     59.9 s" in text


def test_a_calm_run_is_said_to_be_calm() -> None:
    text = summary(spiky(at=()), [])
    assert "No event in 600 steps. The loss went from" in text
    assert "kind" not in text


@pytest.mark.parametrize("name", odd_runs())
def test_odd_runs_are_summarised(name: str) -> None:
    run, events = odd_runs()[name]
    assert len(summary(run, events).splitlines()) < 40


def test_damage_comes_before_warnings_whatever_their_severity() -> None:
    warning = Event("precursor", 10, 9, 10, 12, 5.0, 1e9, "grad_norm")
    drift = Event("drift", 10, 9, 10, 12, 5.0, 1e9, "loss")
    unknown = Event("spike", 5, 5, 5, 5, 1.0, float("nan"), "loss")
    bad = Event("nonfinite", 50, 50, 50, None, float("nan"), float("inf"), "loss")
    assert by_severity([warning, drift, unknown, spike(3), bad]) == [bad, spike(3), unknown, drift, warning]


def test_problems_of_the_run_directory_are_told() -> None:
    run = spiky()
    run.problems.append(CorruptRunError("rank-0/step.bin breaks off at byte 812"))
    assert "Problem: rank-0/step.bin breaks off at byte 812" in summary(run, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3e-7, "3e-7"), (1.26e-10, "1.26e-10"), (0.00123, "0.00123"), (41.04, "41"), (99999.0, "99,999"),
     (1e5, "1e5"), (-2.5, "-2.5"), (np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "NaN"), (999.7, "1,000")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_durations_dates_and_lists_read_well() -> None:
    assert [duration(x) for x in (0.0004, 0.5, 12.34, 60, 3661, 90000, np.nan)] == [
        "0.4 ms", "500 ms", "12.3 s", "1 min", "1 h 1 min", "1 d 1 h", "unknown",
    ]  # fmt: skip
    assert date(0.0) == "1970-01-01 00:00 UTC"
    assert date(1e30) == "1e+30"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_a_section_reads_as_plain_text() -> None:
    assert Section("Cause", "the batch", ("one", "two")).plain() == "Cause: the batch\n  - one\n  - two"
