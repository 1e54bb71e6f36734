"""Files that were cut or changed: what is read, and what is said about it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreshock.errors import CorruptRunError, ForeshockWarning, RunError
from foreshock.run import Run, RunWriter

from .small_run import load_quietly, write

RECORD = 8 + 8 + 2 * 4 + 4
FILES = ("run.json", "rank-0/step.json", "rank-0/step.bin", "rank-0/events.jsonl", "rank-0/notes.jsonl")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a"
    write(path)
    return path


def test_a_record_file_cut_anywhere_gives_the_records_before_the_cut(sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(sound, run)
    (run / "rank-0/step.1.json").unlink()
    (run / "rank-0/step.1.bin").unlink()
    content = (sound / "rank-0/step.bin").read_bytes()
    assert len(content) == 5 * RECORD
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # breaking off is normal: nothing is warned about
        for cut in range(len(content) + 1):
            (run / "rank-0/step.bin").write_bytes(content[:cut])
            loaded = Run.load(run)
            assert loaded.steps.tolist() == list(range(cut // RECORD))
            assert len(loaded.problems) == (cut % RECORD != 0)
            for problem in loaded.problems:
                assert str(run / "rank-0/step.bin") in str(problem)
                assert f"byte {cut // RECORD * RECORD}" in str(problem)


@pytest.mark.parametrize("name", ["events.jsonl", "notes.jsonl"])
def test_a_line_file_cut_anywhere_gives_the_lines_before_the_cut(sound: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "a"
    shutil.copytree(sound, run)
    content = (sound / "rank-0" / name).read_bytes()
    for cut in range(len(content)):
        (run / "rank-0" / name).write_bytes(content[:cut])
        loaded = Run.load(run)
        whole = content[:cut].count(b"\n")
        assert len(loaded.events if name == "events.jsonl" else loaded.notes) == whole
        assert len(loaded.problems) == (cut > 0 and content[cut - 1 : cut] != b"\n")


def test_strict_raises_for_a_record_that_breaks_off(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "a")
    file = tmp_path / "a/rank-0/step.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptRunError, match=rf"step\.bin breaks off .* byte {4 * RECORD}"):
        Run.load(tmp_path / "a", strict=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed_and_what_came_before_is_read(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: float, change: int
) -> None:
    run = tmp_path_factory.mktemp("flip") / "a"
    shutil.copytree(sound, run)
    content = bytearray((sound / name).read_bytes())
    offset = int(place * len(content))
    content[offset] ^= change
    (run / name).write_bytes(content)
    loaded = load_quietly(run)
    assert [str(run / name) in str(problem) for problem in loaded.problems] == [True] * len(loaded.problems)
    assert loaded.problems
    if name == "rank-0/step.bin":
        record = offset // RECORD
        assert loaded.steps.tolist() == [*range(record), 5]
        assert f"byte {record * RECORD}:" in str(loaded.problems[0])
    elif name != "rank-0/step.json":
        assert len(loaded) == 6
    with pytest.raises(CorruptRunError):
        Run.load(run, strict=True)
    shutil.rmtree(run)


def test_damage_is_warned_about_once_per_file(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "a")
    content = bytearray((tmp_path / "a/rank-0/step.bin").read_bytes())
    content[2 * RECORD] ^= 1
    content[4 * RECORD] ^= 1
    (tmp_path / "a/rank-0/step.bin").write_bytes(content)
    with pytest.warns(ForeshockWarning, match=rf"damaged in the record at byte {2 * RECORD}") as caught:
        Run.load(tmp_path / "a")
    assert len(caught) == 1


def test_an_event_line_that_is_damaged_leaves_the_others(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "a")
    file = tmp_path / "a/rank-0/events.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"raised": 2', b'"raised": 3', 1))
    with pytest.warns(ForeshockWarning, match=r"events\.jsonl \(byte 0\) does not match its checksum"):
        assert [event.raised for event in Run.load(tmp_path / "a").events] == [4]


@pytest.mark.parametrize(("missing", "steps"), [("rank-0/step.json", 1), ("rank-0/step.bin", 1), ("run.json", 6)])
def test_a_missing_file_costs_only_what_was_in_it(sound: Path, tmp_path: Path, missing: str, steps: int) -> None:
    shutil.copytree(sound, tmp_path / "a")
    (tmp_path / "a" / missing).unlink()
    loaded = load_quietly(tmp_path / "a")
    assert len(loaded) == steps
    assert len(loaded.problems) == (not missing.endswith(".bin"))


def test_a_resumed_run_is_read_beyond_its_damage(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "a")
    file = tmp_path / "a/rank-0/step.1.bin"
    content = bytearray(file.read_bytes())
    content[3] ^= 4
    file.write_bytes(content)
    with RunWriter(tmp_path / "a", resume=load_quietly(sound).meta["id"]) as writer:
        writer.append("step", ("loss",), [6], [0.0], np.array([[6.0]]))
    assert load_quietly(tmp_path / "a").steps.tolist() == [0, 1, 2, 3, 4, 6]


def test_a_newer_format_is_refused_by_name(sound: Path, tmp_path: Path) -> None:
    from foreshock.run import files

    shutil.copytree(sound, tmp_path / "a")
    fields = files.decode((tmp_path / "a/run.json").read_bytes())[0]
    (tmp_path / "a/run.json").write_bytes(files.encode_document(fields | {"format": 2}))
    with pytest.raises(RunError, match=r"run\.json has format 2.*Update"):
        Run.load(tmp_path / "a")
