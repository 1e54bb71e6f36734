"""Findings stay with a run: in memory, on disk, damaged or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.run import Event, Run, RunMemory
from foreshock.run.files import encode_document

EVENT = Event("spike", 5, 4, 6, 8, 3.0, 9.0, "loss")
REPLAY = {"kind": "replay", "event": EVENT.key, "cures": ["floor"], "peak": float("nan")}


def run_in(folder: Path) -> Run:
    return Run.load(Run.from_arrays({"loss": [1.0, 2.0]}).save(folder / "a"))


def test_a_finding_is_read_back_from_the_directory(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.add_finding(REPLAY)
    run.add_finding({"kind": "attribution", "event": EVENT.key, "step": 5})
    again = Run.load(tmp_path / "a")
    assert [each["kind"] for each in again.findings] == ["replay", "attribution"]
    assert again.findings_of(EVENT, "replay")[0]["cures"] == ["floor"]
    assert again.findings_of(Event("spike", 6, 4, 6, 8, 3.0, 9.0, "loss")) == []
    assert again.window(0, 1).findings_of(EVENT, "attribution")[0]["step"] == 5


def test_saving_a_run_takes_its_findings_along(tmp_path: Path) -> None:
    run = Run.from_arrays({"loss": [1.0, 2.0]})
    run.add_finding(REPLAY)
    assert Run.load(run.save(tmp_path / "b")).findings_of(EVENT)[0]["version"] == 1


def test_a_run_in_memory_shares_them_with_what_it_shows_later() -> None:
    memory = RunMemory()
    memory.run().add_finding(REPLAY)
    assert memory.run().findings_of(EVENT, "replay")[0]["cures"] == ["floor"]


def test_halves_of_characters_can_be_written(tmp_path: Path) -> None:
    run_in(tmp_path).add_finding(REPLAY | {"victims": [{"text": "ü\ud83d"}]})
    assert Run.load(tmp_path / "a").findings[0]["victims"] == [{"text": "ü?"}]


def test_a_finding_that_says_nothing_is_about_nothing(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.add_finding(REPLAY)
    for place, odd in enumerate(({"cures": []}, {"kind": 3, "event": "spike"}), 7):
        (tmp_path / "a" / "findings" / f"{place:04d}-replay.json").write_bytes(encode_document(odd))
    assert len(Run.load(tmp_path / "a").findings_of(EVENT)) == 1


def test_a_damaged_finding_is_left_out_with_a_warning(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.add_finding(REPLAY)
    path = next((tmp_path / "a" / "findings").iterdir())
    path.write_bytes(path.read_bytes().replace(b"floor", b"flooR"))
    with pytest.warns(ForeshockWarning, match="does not match its checksum"):
        assert Run.load(tmp_path / "a").findings == []


@pytest.mark.parametrize("wrong", [{"event": EVENT.key}, {"kind": "replay"}, {"kind": "a/b", "event": EVENT.key}])
def test_a_finding_says_what_it_is_and_about_what(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="a finding says"):
        Run.from_arrays({"loss": [1.0]}).add_finding(wrong)
