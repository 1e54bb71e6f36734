from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from foreshock.errors import RunError, UsageError
from foreshock.run import Event, Run, RunWriter, absent, is_absent
from foreshock.run import writer as writer_module

from .small_run import COLUMNS, values, write


def one(value: float) -> np.ndarray:
    return np.array([[value]])


def test_constructor_touches_nothing(tmp_path: Path) -> None:
    RunWriter(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_layout_is_readable_by_numpy_alone(tmp_path: Path) -> None:
    write(tmp_path / "a")
    header = json.loads((tmp_path / "a/rank-0/step.json").read_text())
    record = [("step", "<i8"), ("time", "<f8"), ("values", header["values"], len(header["columns"])), ("crc", "<u4")]
    rows = np.fromfile(tmp_path / "a/rank-0/step.bin", record)
    assert header["columns"] == list(COLUMNS)
    assert rows["step"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rows["values"], np.concatenate([values(step) for step in range(5)]))


def test_an_append_is_one_write_and_the_header_is_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    real = os.write

    def write_call(descriptor: int, content: bytes) -> int:
        calls.append((tmp_path / "a/rank-0/step.json").exists())
        return real(descriptor, content)

    with RunWriter(tmp_path / "a") as writer:
        monkeypatch.setattr(os, "write", write_call)
        writer.append("step", ("loss",), [0], [0.0], one(1.0))
        assert calls == [True]
        writer.append("step", ("loss",), range(1, 100), np.zeros(99), np.ones((99, 1)))
        assert calls == [True, True]


def test_records_are_in_the_file_when_append_returns(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        for step in range(3):
            writer.append("step", ("loss",), [step], [0.0], one(step))
            assert Run.load(tmp_path / "a").steps.tolist() == list(range(step + 1))


def test_fsync_runs_on_a_timer_not_per_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    now = [100.0]
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    with RunWriter(tmp_path / "a") as writer:
        for step in range(100):
            writer.append("step", ("loss",), [step], [0.0], one(step))
        assert synced == []
        now[0] += 2 * writer_module.SYNC_SECONDS
        writer.append("step", ("loss",), [100], [0.0], one(0.0))
        writer._aside.wait()
        assert synced
        after = len(synced)
        writer.append("step", ("loss",), [101], [0.0], one(0.0))
        writer._aside.wait()
        assert len(synced) == after


def test_a_slow_disk_does_not_hold_up_an_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, release, began = [100.0], threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        began.set()
        release.wait()

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    with RunWriter(tmp_path / "a") as writer:
        for step in range(5):
            now[0] += 2 * writer_module.SYNC_SECONDS
            writer.append("step", ("loss",), [step], [0.0], one(step))
        began.wait()
        assert len(Run.load(tmp_path / "a")) == 5
        release.set()


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    run_id = write(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=rf"'small' {run_id} with 6 steps.*another directory.*resume"):
        RunWriter(tmp_path / "a").open()
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_resume_with_another_id_is_refused(tmp_path: Path) -> None:
    run_id = write(tmp_path / "a")
    with pytest.raises(RunError, match=f"holds run {run_id}, not run abc"):
        RunWriter(tmp_path / "a", resume="abc").open()


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        RunWriter(tmp_path / "a", resume="abc").open()
    assert not (tmp_path / "a").exists()


def test_resume_goes_on_in_the_same_files(tmp_path: Path) -> None:
    run_id = write(tmp_path / "a", steps=3)
    files = sorted(path.name for path in (tmp_path / "a/rank-0").iterdir())
    with RunWriter(tmp_path / "a", {"device": "cpu"}, resume=run_id) as writer:
        writer.append("step", ("loss",), [4], [0.0], one(4.0))
        assert writer.id == run_id
    run = Run.load(tmp_path / "a", strict=True)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run["loss"][-1] == 4.0
    assert (run.meta["id"], run.meta["name"], run.meta["device"]) == (run_id, "small", "cpu")
    assert sorted(path.name for path in (tmp_path / "a/rank-0").iterdir()) == files


def test_a_changed_column_set_starts_a_new_pair(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), [0], [0.0], one(1.0))
        writer.append("step", ("loss", "lr"), [1], [0.0], np.array([[2.0, 0.1]]))
        writer.append("step", ("lr",), [2], [0.0], np.array([[0.2]], np.float32))
    run = Run.load(tmp_path / "a", strict=True)
    assert {path.name for path in (tmp_path / "a/rank-0").glob("*.bin")} == {"step.bin", "step.1.bin", "step.2.bin"}
    assert run.columns == ("loss", "lr")
    np.testing.assert_array_equal(run["loss"], [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(run["lr"], [np.nan, 0.1, np.float32(0.2)])
    assert is_absent(run["lr"]).tolist() == [True, False, False]


def test_alternating_column_sets_do_not_pile_up_files(tmp_path: Path) -> None:
    sets = [("loss",), ("loss", "chi"), ("loss", "lr")]
    with RunWriter(tmp_path / "a") as writer:
        for step in range(60):
            columns = sets[step % 3]
            kind = np.float32 if step % 2 else np.float64
            writer.append("step", columns, [step], [0.0], np.full((1, len(columns)), step, kind))
    run = Run.load(tmp_path / "a", strict=True)
    assert len(list((tmp_path / "a/rank-0").glob("*.bin"))) <= 12
    np.testing.assert_array_equal(run["loss"], np.arange(60.0))
    steps, measured = run.measured("chi")
    assert steps.tolist() == list(range(1, 60, 3))
    np.testing.assert_array_equal(measured, steps)


def test_ranks_join_one_run_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with RunWriter(path, {"name": "from 1"}, rank=1) as second, RunWriter(path, {"name": "from 0"}) as first:
        assert first.id == second.id
        with RunWriter(path, {"name": "from 2"}, rank=2) as third:
            assert third.id == first.id
            third.update_meta(name="not mine")
        first.append("step", ("loss",), [0], [0.0], one(1.0))
        second.append("step", ("loss",), [0, 1], [0.0, 0.0], np.array([[2.0], [3.0]]))
    run = Run.load(path, strict=True)
    assert run.ranks == (0, 1, 2)
    assert run.meta["name"] == "from 0"
    assert (len(run), len(run.rank(1)), len(run.rank(2))) == (1, 2, 0)
    assert run.rank(1)["loss"].tolist() == [2.0, 3.0]
    with pytest.raises(UsageError, match=r"no rank 7.*0, 1, 2"):
        run.rank(7)


def test_a_rank_that_names_another_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(RunError, match="already holds"):
        RunWriter(tmp_path / "a", {"id": "mine"}, rank=1).open()


def test_metadata_is_rewritten_as_a_whole(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a", {"name": "x"}) as writer:
        writer.update_meta(device="cpu", name="y", id="ignored", best=float("nan"), shape=(1, 2), lr=np.float32(0.5))
        meta = Run.load(tmp_path / "a", strict=True).meta
        assert meta["id"] == writer.id
    assert (meta["name"], meta["device"], meta["shape"], meta["lr"]) == ("y", "cpu", [1, 2], 0.5)
    assert np.isnan(meta["best"])
    assert meta["format"] == 1
    assert [path.name for path in (tmp_path / "a").iterdir() if path.name.endswith(".tmp")] == []


def test_metadata_that_is_not_json_is_kept_as_text(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a", {"where": Path("x"), 3: {"k": {1}}, "none": None}):
        pass
    meta = Run.load(tmp_path / "a", strict=True).meta
    assert (meta["where"], meta["3"], meta["none"]) == ("x", {"k": [1]}, None)


def test_events_and_notes_survive_with_nan_and_unicode(tmp_path: Path) -> None:
    event = Event("nonfinite", 3, 3, 3, None, float("nan"), float("inf"), "größe/層", {"x": [1, None], "y": -np.inf})
    with RunWriter(tmp_path / "a") as writer:
        writer.event(event)
        writer.note("probe_disabled", step=3, probe="层", trace="line\nline")
    run = Run.load(tmp_path / "a", strict=True)
    assert len(run.events) == 1
    assert str(run.events[0]) == str(event)
    assert run.notes[0]["kind"] == "probe_disabled"
    assert (run.notes[0]["probe"], run.notes[0]["trace"]) == ("层", "line\nline")


def test_the_last_version_of_an_event_counts(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        for end in (None, 9, 12):
            writer.event(Event("spike", 5, 4, 6, end, 1.0, 10.0, "loss"))
    assert [event.end for event in Run.load(tmp_path / "a").events] == [12]


def test_a_writer_that_is_not_open_says_so(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a")
    with pytest.raises(UsageError, match="not open"):
        writer.append("step", ("loss",), [0], [0.0], one(1.0))
    with writer:
        pass
    writer.close()
    with pytest.raises(UsageError, match="not open"):
        writer.note("x")


@pytest.mark.parametrize(
    ("table", "columns", "steps", "row", "match"),
    [
        ("step", ("a", "b"), [0], np.ones((1, 3)), r"shape \(1, 2\)"),
        ("step", ("a",), [0, 1], np.ones((1, 1)), r"shape \(2, 1\)"),
        ("step", ("a",), [0], np.ones(1), "shape"),
        ("step", ("a", "a"), [0], np.ones((1, 2)), "must differ"),
        ("../x", ("a",), [0], np.ones((1, 1)), "table name"),
        ("step.1", ("a",), [0], np.ones((1, 1)), "table name"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, table: str, columns: tuple[str, ...], steps: list[int], row: np.ndarray, match: str
) -> None:
    with RunWriter(tmp_path / "a") as writer:
        with pytest.raises(UsageError, match=match):
            writer.append(table, columns, steps, [0.0] * len(steps), row)
        writer.append("step", ("a",), [0], [0.0], one(1.0))
    assert Run.load(tmp_path / "a", strict=True)["a"].tolist() == [1.0]


def test_other_number_types_are_stored_as_float64(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("a",), [0], [0.0], np.array([[3]], np.int32))
        writer.append("step", ("a",), [1], [0.0], np.array([[0.5]], np.float16))
        writer.append("step", ("a",), [2], [0.0], [[7.0]])  # type: ignore[arg-type]
    assert Run.load(tmp_path / "a", strict=True)["a"].tolist() == [3.0, 0.5, 7.0]


def test_a_wide_table_and_one_without_columns(tmp_path: Path) -> None:
    names = tuple(f"grad_norm/layer.{index}" for index in range(1700))
    row = np.arange(1700, dtype=np.float32)[None]
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", (), [0, 1], [0.0, 0.0], np.empty((2, 0)))
        for step in (0, 1):
            writer.append("tensors", names, [step], [0.0], row + step)
    run = Run.load(tmp_path / "a", strict=True)
    assert len(run) == 2
    assert run["grad_norm/layer.1699"].tolist() == [1699.0, 1700.0]
    assert run.matrix("grad_norm")[2].shape == (2, 1700)
    assert [record.values for record in run.records()] == [{}, {}]


def test_an_empty_run_loads(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a"):
        pass
    run = Run.load(tmp_path / "a", strict=True)
    assert (len(run), run.columns, run.events, run.notes, list(run.records())) == (0, (), [], [], [])
    with pytest.raises(RunError, match="with 0 steps"):
        RunWriter(tmp_path / "a").open()


def test_no_marker_is_written_for_what_is_given(tmp_path: Path) -> None:
    row = np.concatenate([absent((1, 1)), [[np.nan]]], axis=1)
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("a", "b"), [0], [0.0], row)
    run = Run.load(tmp_path / "a", strict=True)
    assert run.measured("a")[0].tolist() == []
    assert run.measured("b")[0].tolist() == [0]
    (record,) = run.records()
    assert list(record.values) == ["b"]
