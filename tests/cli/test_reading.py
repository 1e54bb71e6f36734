"""Paths that lead nowhere are answered with those that were probably meant."""

from __future__ import annotations

import pytest

from foreshock.cli.reading import FORMATS, open_run, runs_under
from foreshock.errors import RunError, UsageError
from foreshock.run import Run, importers


def test_the_formats_offered_are_those_that_can_be_read():
    assert importers.FORMATS == FORMATS


def test_a_run_directory_opens(runs):
    assert open_run(str(runs / "calm")).meta["name"] == "calm"


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("runs/spikes", "did you mean runs/spiked?"),
        ("spiked", "did you mean runs/spiked?"),
        ("nothing/like/that", "the runs here are runs/calm, runs/spiked"),
        ("runs", "a folder that holds some: runs/calm, runs/spiked"),
    ],
)
def test_a_wrong_path_is_answered_with_the_runs_there_are(runs, typed, answer):
    with pytest.raises(RunError) as error:
        open_run(typed)
    assert answer in str(error.value)
    assert repr(typed) in str(error.value)


def test_without_any_run_the_answer_says_how_to_make_one(foreshock):
    with pytest.raises(RunError, match="`foreshock run SCRIPT`"):
        open_run("runs/a")


def test_format_options_are_refused_for_a_run_directory(runs):
    with pytest.raises(UsageError, match="is a run directory"):
        open_run("runs/calm", form="csv")


def test_runs_are_found_nearest_first_and_not_in_hidden_folders(tmp_path):
    for place in ("b", "a/inner", ".hidden", "a/deep/er/still/too"):
        Run.from_arrays({"loss": [1.0]}).save(tmp_path / place)
    assert [str(run.relative_to(tmp_path)) for run in runs_under(tmp_path)] == ["b", "a/inner"]
