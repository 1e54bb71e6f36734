"""Runs that go back: resumed from a checkpoint, or rolled back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foreshock.run import Run, RunMemory, RunWriter


def flush(store: RunWriter | RunMemory, steps: range, value: float) -> None:
    """Appends as the monitor does: every step, and per-tensor values at each fifth."""
    store.append("step", ("loss",), steps, np.zeros(len(steps)), np.full((len(steps), 1), value))
    some = [step for step in steps if step % 5 == 0]
    store.append("tensors", ("grad_norm/a",), some, np.zeros(len(some)), np.full((len(some), 1), value))


def test_later_records_replace_everything_from_where_they_start() -> None:
    store = RunMemory()
    flush(store, range(20), 1.0)
    flush(store, range(8, 14), 2.0)
    run = store.run()
    assert run.steps.tolist() == list(range(14))
    assert run["loss"].tolist() == [1.0] * 8 + [2.0] * 6
    assert run.matrix("grad_norm")[0].tolist() == [0, 5, 10]
    np.testing.assert_array_equal(run["grad_norm/a"][[0, 5, 10]], [1, 1, 2])


def test_going_back_over_a_change_of_columns() -> None:
    store = RunMemory()
    store.append("step", ("loss",), range(4), np.zeros(4), np.ones((4, 1)))
    store.append("step", ("loss", "lr"), [2, 3], np.zeros(2), np.full((2, 2), 2.0))
    run = store.run()
    np.testing.assert_array_equal(run["loss"], [1, 1, 2, 2])
    np.testing.assert_array_equal(run["lr"], [np.nan, np.nan, 2, 2])


def test_per_tensor_values_of_steps_that_were_undone_are_gone(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        flush(writer, range(20), 1.0)
    with RunWriter(tmp_path / "a", resume=writer.id) as writer:
        flush(writer, range(11, 14), 2.0)
    run = Run.load(tmp_path / "a", strict=True)
    assert run.matrix("grad_norm")[0].tolist() == [0, 5, 10]
    assert [(note["kind"], note["step"]) for note in run.notes] == [("rewind", 11)]


def test_a_kill_between_the_note_and_its_record_undoes_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        flush(writer, range(20), 1.0)
        writer.note("rewind", step=7, records={"step": 20, "tensors": 4})
    assert Run.load(tmp_path / "a", strict=True).matrix("grad_norm")[0].tolist() == [0, 5, 10, 15]
    with RunWriter(tmp_path / "a", resume=writer.id) as writer:
        flush(writer, range(20, 22), 2.0)
    run = Run.load(tmp_path / "a", strict=True)
    assert run.matrix("grad_norm")[0].tolist() == [0, 5, 10, 15, 20]
    assert len(run) == 22


def test_a_view_taken_before_going_back_stays_as_it_was() -> None:
    store = RunMemory()
    flush(store, range(10), 1.0)
    before = store.run()
    flush(store, range(5, 8), 2.0)
    flush(store, range(8, 200), 3.0)
    assert before["loss"].tolist() == [1.0] * 10
    assert before.matrix("grad_norm")[0].tolist() == [0, 5]
    assert len(store.run()) == 200


def test_memory_is_a_context_manager_with_metadata_events_and_notes() -> None:
    with RunMemory({"name": "m", "id": "x"}) as store:
        store.update_meta(device="cpu", id="other")
        store.note("probe_disabled", step=1, probe="chi")
        store.sync()
    run = store.run()
    assert (store.id, run.meta["id"], run.meta["name"], run.meta["device"]) == ("x", "x", "m", "cpu")
    assert run.notes[0]["probe"] == "chi"
    assert store.open() is store
