"""`foreshock scan`: exit codes for pipelines, tables for people, JSON for programs."""

from __future__ import annotations

import json

import numpy as np

from foreshock.report.wording import number
from foreshock.run import Run, RunMemory
from foreshock.run.action import Skip
from foreshock.run.actions import as_note


def test_exit_code_says_whether_something_was_found(foreshock, runs):
    assert "nothing found" in foreshock("scan", "runs/calm", code=0).output
    assert "1 event" in foreshock("scan", "runs/spiked", code=1).output
    foreshock("scan", "runs/calm", "runs/spiked", code=1)
    foreshock("scan", "runs/calm", "runs/absent", code=2)
    foreshock("scan", code=2)


def test_the_table_names_the_peak_and_its_value(foreshock, runs, spiked):
    text = foreshock("scan", "runs/spiked", code=1).output
    row = next(line for line in text.splitlines() if line.startswith("spike"))
    assert "300" in row.split()
    assert number(spiked[300]) in row.split()


def test_json_is_one_object_a_run(foreshock, runs):
    lines = foreshock("scan", "runs/calm", "runs/spiked", "--json", code=1).output.splitlines()
    calm, spiked = map(json.loads, lines)
    assert calm == {"run": "runs/calm", "steps": 500, "events": []}
    assert [(event["kind"], event["peak"]) for event in spiked["events"]] == [("spike", 300)]


def test_json_has_no_bare_nan(foreshock, tmp_path, curve):
    curve[400:] = np.nan
    Run.from_arrays({"loss": curve}).save(tmp_path / "broken")
    (line,) = foreshock("scan", "broken", "--json", code=1).output.splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest_fail(name))
    assert "nonfinite" in {event["kind"] for event in found["events"]}


def pytest_fail(name):
    raise AssertionError(f"{name} is not JSON")


def test_only_the_kinds_asked_for_count(foreshock, runs):
    foreshock("scan", "runs/spiked", "--kind", "nonfinite", code=0)
    foreshock("scan", "runs/spiked", "--kind", "nonfinite", "--kind", "spike", code=1)
    assert "none of" in foreshock("scan", "runs/spiked", "--kind", "earthquake", code=2).output


def test_a_file_of_another_tool_is_scanned_as_it_is(foreshock, tmp_path, spiked):
    rows = "\n".join(f"{step},{loss}" for step, loss in enumerate(spiked))
    (tmp_path / "history.csv").write_text(f"iteration,train/ce\n{rows}\n")
    text = foreshock("scan", "history.csv", "--column", "loss=train/ce", "--column", "step=iteration", code=1).output
    assert "spike" in text
    assert "SIGNAL=COLUMN" in foreshock("scan", "history.csv", "--column", "loss", code=2).output


def test_what_a_guard_refused_counts_and_is_said_to_be_refused(foreshock, tmp_path, spiked):
    store = RunMemory({"name": "guarded"})
    skipped = np.zeros(500)
    skipped[300:303] = 1
    store.append("step", ("loss", "skipped"), range(500), np.zeros(500), np.stack([spiked, skipped], axis=1))
    for step in (300, 301, 302):
        store.note("action", **as_note(Skip(step=step, reason="too high")))
    store.run().save(tmp_path / "guarded")
    text = foreshock("scan", "guarded", code=1).output
    assert "guard: 3 steps refused" in text
    assert "refused" in next(line for line in text.splitlines() if line.startswith("spike"))
    found = json.loads(foreshock("scan", "guarded", "--json", code=1).output)
    assert [(event["refused"], event["attempts"]) for event in found["events"]] == [(3, 3)]
    assert [(action["kind"], action["step"]) for action in found["actions"]] == [("skip", s) for s in (300, 301, 302)]
    facts = json.loads(foreshock("info", "guarded", "--json").output)
    assert facts["interventions"] == {"skip": 3}
    assert facts["steps taken"] == 497
    assert "interventions" in foreshock("info", "guarded").output
    assert "What the guard did:" in foreshock("report", "guarded").output
