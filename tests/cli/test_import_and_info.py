"""`foreshock import` and `foreshock info`."""

from __future__ import annotations

import json

import numpy as np

import foreshock as fs
from foreshock.run import Run


def as_csv(curve) -> str:
    return "step,loss\n" + "\n".join(f"{step},{loss!r}" for step, loss in enumerate(curve.tolist()))


def test_an_imported_file_becomes_a_run(foreshock, tmp_path, spiked):
    (tmp_path / "history.csv").write_text(as_csv(spiked))
    text = foreshock("import", "history.csv", "-o", "runs/old").output
    assert "runs/old: 500 steps of loss" in text
    assert np.array_equal(Run.load(tmp_path / "runs/old")["loss"], spiked)
    foreshock("scan", "runs/old", code=1)


def test_importing_into_a_run_that_exists_is_refused(foreshock, runs, tmp_path, curve):
    (tmp_path / "history.csv").write_text(as_csv(curve))
    assert foreshock("import", "history.csv", "-o", "runs/calm", code=2).output.startswith("error: ")
    assert "run directory already" in foreshock("import", "runs/calm", "-o", "runs/new", code=2).output


def test_a_file_in_no_known_format_is_an_error(foreshock, tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n")
    result = foreshock("import", "notes.txt", "-o", "runs/new", code=2)
    assert result.output.startswith("error: ")
    assert "notes.txt" in result.output


def test_info_shows_metadata_and_columns(foreshock, runs):
    text = foreshock("info", "runs/spiked").output
    assert "500" in text
    assert "loss" in text
    assert "spiked" in text
    facts = json.loads(foreshock("info", "runs/spiked", "--json").output)
    assert facts["steps"] == 500
    assert facts["columns"] == ["loss"]
    assert facts["meta"]["lr"] == 0.1
    assert facts["problems"] == []


def test_info_without_a_run_lists_versions_without_importing_torch(foreshock):
    facts = json.loads(foreshock("info", "--json").output)
    assert facts["foreshock"] == fs.__version__
    assert {"python", "platform", "torch", "numpy", "scikit-learn"} <= set(facts)
