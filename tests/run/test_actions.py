"""What a guard did, as a run directory keeps it: written at once, replaced by a resume, readable by later versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreshock.run import Run, RunMemory, RunWriter, is_absent
from foreshock.run.action import KINDS, Action, CutLr, Floor, Rollback, Scale, Skip
from foreshock.run.actions import Unknown, as_note, from_note

CAUSE = ("spike", "loss", 7)


def append(store: RunWriter | RunMemory, steps: range, *, skipped: tuple[int, ...] = ()) -> None:
    values = np.array([[2.0 + step / 100, float(step in skipped)] for step in steps])
    store.append("step", ("loss", "skipped"), steps, np.zeros(len(steps)), values)


def act(store: RunWriter | RunMemory, *actions: Action) -> None:
    for action in actions:
        store.note("action", **as_note(action))


@pytest.mark.parametrize("kind", KINDS.values(), ids=str)
def test_every_action_comes_back_from_the_disk_as_it_was(tmp_path: Path, kind: type[Action]) -> None:
    given = {name: 3 for name in ("factor", "limit", "before") if name in kind.__dataclass_fields__}
    action = kind(step=7, reason="loss 9.1 at a level of 2.0", cause=CAUSE, **given)
    with RunWriter(tmp_path / "a") as writer:
        act(writer, action)
    assert Run.load(tmp_path / "a", strict=True).actions == [action]


def test_they_are_ordered_by_attempt() -> None:
    store = RunMemory()
    act(store, Floor(step=9), Skip(step=4), Scale(step=9, factor=0.1))
    assert [(action.step, action.kind) for action in store.run().actions] == [
        (4, "skip"), (9, "floor"), (9, "scale_update"),
    ]  # fmt: skip


@pytest.mark.parametrize("flush_first", [True, False])
def test_a_resume_replaces_what_was_done_from_its_step_on(tmp_path: Path, flush_first: bool) -> None:
    with RunWriter(tmp_path / "a") as writer:
        append(writer, range(20))
        act(writer, Skip(step=4), Skip(step=8), Skip(step=15))
    with RunWriter(tmp_path / "a", resume=writer.id) as writer:
        writer.note("resumed", step=8)
        if flush_first:
            append(writer, range(8, 12))
        act(writer, Floor(step=11))  # a guard writes at once, the records may come later
        if not flush_first:
            append(writer, range(8, 12))
    assert [(action.kind, action.step) for action in Run.load(tmp_path / "a").actions] == [("skip", 4), ("floor", 11)]


def test_a_writer_that_goes_back_without_a_word_replaces_them_too() -> None:
    store = RunMemory()
    append(store, range(20))
    act(store, Skip(step=4), Skip(step=15))
    append(store, range(10, 12))
    assert [action.step for action in store.run().actions] == [4]
    append(store, range(12, 30))
    act(store, Skip(step=25))
    assert [action.step for action in store.run().actions] == [4, 25]


def test_what_a_killed_run_did_after_its_last_flush_is_gone_after_the_resume() -> None:
    store = RunMemory()
    append(store, range(10))
    act(store, Skip(step=12))  # no record of step 12 was written any more
    store.note("resumed", step=10)
    append(store, range(10, 20))
    assert store.run().actions == []
    assert [note["kind"] for note in store.run().notes] == ["resumed"]


def test_a_rollback_is_no_rewind_of_the_record(tmp_path: Path) -> None:
    store = RunMemory()
    append(store, range(12), skipped=(8,))
    act(store, Skip(step=5), Rollback(step=8, before=3, skip=2))
    run = store.run()
    assert len(run) == 12
    assert [action.step for action in run.actions] == [5, 8]
    run.save(tmp_path / "a")
    assert Run.load(tmp_path / "a").actions == run.actions


def test_the_accepted_loss_leaves_out_what_was_refused_or_undone() -> None:
    store = RunMemory()
    append(store, range(12), skipped=(1, 8))
    act(store, Rollback(step=8, before=5))
    run = store.run()
    assert np.flatnonzero(~run.taken).tolist() == [1, 5, 6, 7, 8]
    np.testing.assert_array_equal(is_absent(run.accepted("loss")), ~run.taken)
    np.testing.assert_array_equal(run.accepted()[run.taken], run["loss"][run.taken])
    assert not np.isnan(run["loss"]).any()


def test_a_run_without_a_guard_has_accepted_everything() -> None:
    run = Run.from_arrays({"loss": [2.0, np.nan, 1.0]})
    assert run.actions == []
    assert run.taken.all()
    assert not is_absent(run.accepted("loss")).any()
    assert Run.from_arrays({}).taken.shape == (0,)


def test_a_window_keeps_the_actions_that_reach_into_it() -> None:
    store = RunMemory()
    append(store, range(40))
    act(store, CutLr(step=5, factor=0.1, steps=10), Skip(step=12), Rollback(step=30, before=18), Skip(step=35))
    assert [action.step for action in store.run().window(14, 20).actions] == [5, 30]
    assert np.flatnonzero(~store.run().window(14, 20).taken).tolist() == [4, 5]


def test_actions_of_a_later_version_are_shown_by_their_name(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        append(writer, range(4))
        writer.note("action", step=2, action="teleport", reason="far", to="Mars")
        writer.note("action", step=3, action="scale_update", later=True)  # without its factor
        writer.note("action", step=3, action="rollback", before="the flood")
    run = Run.load(tmp_path / "a", strict=True)
    assert run.actions[0] == Unknown(step=2, reason="far", name="teleport", fields={"to": "Mars"})
    assert [action.name for action in run.actions if isinstance(action, Unknown)] == [
        "teleport", "scale_update", "rollback",
    ]  # fmt: skip
    assert run.taken.all()
    assert from_note({"kind": "action"}).step == -1
