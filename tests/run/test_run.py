from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foreshock.errors import RunError, UsageError
from foreshock.run import Event, Run, RunMemory, RunWriter, absent, is_absent

from .small_run import bits, write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write(tmp_path / "a")
    return Run.load(tmp_path / "a", strict=True)


def test_from_arrays_keeps_what_it_was_given() -> None:
    run = Run.from_arrays({"step": [3, 5, 9], "loss": [2.0, np.nan, 1], "time": [1, 2, 3], "lr": [1, 1, 1]}, name="x")
    assert (len(run), run.steps.tolist(), run.times.tolist()) == (3, [3, 5, 9], [1, 2, 3])
    assert run.columns == ("loss", "lr")
    assert run.meta == {"name": "x"}
    assert run.measured("loss")[0].tolist() == [3, 5, 9]
    assert (run.path, run.problems, run.events, run.notes, run.ranks) == (None, [], [], [], (0,))


def test_from_arrays_counts_steps_from_zero() -> None:
    assert Run.from_arrays({"loss": np.ones(3)}).steps.tolist() == [0, 1, 2]
    assert len(Run.from_arrays({})) == 0
    assert len(Run.from_arrays({"loss": []})) == 0


def test_from_arrays_tells_per_tensor_columns_from_run_wide_ones() -> None:
    run = Run.from_arrays({"grad_norm/fc": [1.0], "train/acc": [0.5], "lr/group0": [0.1], "loss": [2.0]})
    assert run.columns == ("train/acc", "lr/group0", "loss", "grad_norm/fc")
    assert list(next(run.records()).values) == ["train/acc", "lr/group0", "loss"]


def test_masked_values_are_absent() -> None:
    run = Run.from_arrays({"loss": np.ma.MaskedArray([1, 2, 3], [False, True, False])})
    assert run.measured("loss")[1].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"loss": [1, 2], "lr": [1]}, r"equally long.*'loss': 2.*'lr': 1"),
        ({"step": [0, 2, 2], "loss": [1, 2, 3]}, "strictly increasing, but 2 follows 2 at index 2"),
        ({"step": [0, 0.5], "loss": [1, 2]}, "whole numbers, got 0.5 at index 1"),
        ({"step": [0, np.nan], "loss": [1, 2]}, "whole numbers"),
        ({"loss": ["a"]}, "'loss' must hold real numbers"),
        ({"loss": 1.0}, "one-dimensional"),
        ({"loss": np.ones((2, 2))}, r"one-dimensional, got shape \(2, 2\)"),
        ({"loss": np.ones(2, complex)}, "real numbers"),
    ],
)
def test_from_arrays_names_what_is_wrong(arrays: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Run.from_arrays(arrays)  # type: ignore[arg-type]


def test_columns_are_aligned_with_the_steps(run: Run) -> None:
    assert run.columns == ("loss", "grad_norm", "grad_norm/fc.weight", "grad_norm/fc.bias")
    np.testing.assert_array_equal(run["grad_norm"], [0, 1, 2, np.nan, 4, np.nan])
    np.testing.assert_array_equal(run["grad_norm/fc.bias"], [1, np.nan, np.nan, 3, np.nan, np.nan])
    assert run["loss"].dtype == np.float64
    assert is_absent(run["grad_norm"]).tolist() == [False, False, False, True, False, True]
    assert not is_absent(run["loss"]).any()


def test_membership_and_an_unknown_name(run: Run) -> None:
    assert "loss" in run
    assert "grad_norm/fc.bias" in run
    assert "los" not in run
    with pytest.raises(UsageError, match="did you mean 'loss'") as caught:
        run["los"]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UsageError, match="it has: loss, grad_norm"):
        run["zzzzzzzz"]
    with pytest.raises(UsageError, match="no signal 0"):
        list(run)


def test_measured_keeps_a_measured_nan(run: Run) -> None:
    steps, values = run.measured("loss")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.isnan(values[2])
    assert run.measured("grad_norm")[0].tolist() == [0, 1, 2, 4]
    assert run.measured("grad_norm/fc.weight")[0].tolist() == [0, 3]


def test_records_leave_out_what_was_not_measured(run: Run) -> None:
    records = list(run.records())
    assert [record.step for record in records] == [0, 1, 2, 3, 4, 5]
    assert [sorted(record.values) for record in records[3:]] == [["loss"], ["grad_norm", "loss"], ["loss"]]
    assert np.isnan(records[2].values["loss"])
    assert records[4].time == 4.0
    assert type(records[0].values["loss"]) is float


def test_matrix_and_tensors(run: Run) -> None:
    assert run.tensors("grad_norm") == ("fc.weight", "fc.bias")
    steps, names, values = run.matrix("grad_norm")
    assert (steps.tolist(), names) == ([0, 3], ("fc.weight", "fc.bias"))
    np.testing.assert_array_equal(values, [[0, 1], [2, 3]])
    assert run.tensors("loss") == ()
    with pytest.raises(UsageError, match=r"no per-tensor values of 'loss'.*grad_norm"):
        run.matrix("loss")


def test_matrix_of_columns_that_are_not_neighbours() -> None:
    run = Run.from_arrays({"grad_norm/a": [1, 2], "update_rms/a": [5, 6], "grad_norm/b": [3, 4]})
    np.testing.assert_array_equal(run.matrix("grad_norm")[2], [[1, 3], [2, 4]])


def test_matrix_over_a_change_of_tensors(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("tensors", ("grad_norm/a",), [0], [0.0], np.array([[1.0]], np.float32))
        writer.append("tensors", ("grad_norm/b", "grad_norm/a"), [1], [0.0], np.array([[3.0, 2.0]], np.float32))
    run = Run.load(tmp_path / "a", strict=True)
    steps, names, values = run.matrix("grad_norm")
    assert (steps.tolist(), names) == ([0, 1], ("a", "b"))
    np.testing.assert_array_equal(values, [[1, np.nan], [2, 3]])
    assert len(run) == 0


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_per_tensor_values_kept_in_two_tables_are_one_signal(tmp_path: Path, kind: type) -> None:
    names = ("grad_norm/a", "grad_norm/b")
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), range(6), np.zeros(6), np.ones((6, 1)))
        writer.append("tensors", names, [0, 4], np.zeros(2), np.array([[1, 2], [5, np.nan]], np.float32))
        writer.append("detail", names[::-1], [3, 4, 5], np.zeros(3), np.array([[30, 3], [6, 7], [40, 4]], kind))
        writer.append("detail", names[:1], [9], np.zeros(1), np.array([[9]], kind))
    run = Run.load(tmp_path / "a", strict=True)
    assert run.measured("grad_norm/a")[0].tolist() == [0, 3, 4, 5, 9]
    assert run.measured("grad_norm/a")[1].tolist() == [1, 3, 7, 4, 9]
    np.testing.assert_array_equal(run["grad_norm/b"], [2, np.nan, np.nan, 30, 6, 40])
    steps, units, values = run.matrix("grad_norm")
    assert steps.tolist() == [0, 3, 4, 5, 9]
    np.testing.assert_array_equal(values[:, units.index("a")], [1, 3, 7, 4, 9])
    np.testing.assert_array_equal(values[:, units.index("b")], [2, 30, 6, 40, np.nan])
    assert is_absent(values).sum() == 1


def test_window_cuts_all_tables_events_and_notes(run: Run) -> None:
    part = run.window(2, 5)
    assert part.steps.tolist() == [2, 3, 4]
    assert part.matrix("grad_norm")[0].tolist() == [3]
    assert part.window(3, 4).steps.tolist() == [3]
    assert len(run.window(100, 200)) == 0
    assert [event.raised for event in run.window(0, 3).events] == [2]
    assert [event.raised for event in part.events] == [2, 4]
    assert [note["kind"] for note in run.window(4, 5).notes] == []
    assert [note["kind"] for note in part.notes] == ["probe_disabled"]
    assert len(run) == 6


def test_a_window_has_the_events_that_touch_it() -> None:
    memory = RunMemory()
    memory.append("step", ("loss",), range(20), np.zeros(20), np.ones((20, 1)))
    memory.event(Event("spike", 5, 4, 5, 8, 1.0, 9.0, "loss"))
    memory.event(Event("drift", 12, 6, 12, None, 1.0, 9.0, "loss"))
    run = memory.run()
    found = {bounds: [event.kind for event in run.window(*bounds).events] for bounds in [(0, 4), (8, 9), (9, 20)]}
    assert found == {(0, 4): [], (8, 9): ["spike", "drift"], (9, 20): ["drift"]}


def test_save_and_load_round_trip(run: Run, tmp_path: Path) -> None:
    assert run.save(tmp_path / "b") == tmp_path / "b"
    again = Run.load(tmp_path / "b", strict=True)
    assert again.columns == run.columns
    for name in run.columns:
        assert bits(again[name]) == bits(run[name])
    assert again.events == run.events
    assert again.notes == run.notes
    assert again.meta == run.meta
    with pytest.raises(RunError, match="already holds run 'small'"):
        run.save(tmp_path / "b")


def test_save_of_all_ranks_of_a_part_and_of_a_run_in_memory(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as first, RunWriter(tmp_path / "a", rank=1) as second:
        first.append("step", ("loss",), range(9), np.zeros(9), np.arange(9.0)[:, None])
        second.append("step", ("loss",), range(4), np.zeros(4), np.zeros((4, 1)))
    run = Run.load(tmp_path / "a")
    run.save(tmp_path / "b")
    assert len(Run.load(tmp_path / "b", strict=True).rank(1)) == 4
    run.window(2, 4).save(tmp_path / "c")
    assert Run.load(tmp_path / "c", strict=True)["loss"].tolist() == [2, 3]
    Run.from_arrays({"loss": [1.0, np.nan], "lr": absent(2)}, name="m").save(tmp_path / "d")
    again = Run.load(tmp_path / "d", strict=True)
    assert again.meta["name"] == "m"
    assert again.measured("lr")[0].tolist() == []
    Run.from_arrays({}).save(tmp_path / "e")
    assert len(Run.load(tmp_path / "e", strict=True)) == 0


def test_saving_a_rewound_run_keeps_it_as_it_stands(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), range(9), np.zeros(9), np.arange(9.0)[:, None])
        writer.append("tensors", ("grad_norm/a",), [0, 4, 8], np.zeros(3), np.ones((3, 1)))
        writer.append("step", ("loss",), [3, 4], np.zeros(2), np.array([[30.0], [40.0]]))
    run = Run.load(tmp_path / "a", strict=True)
    run.save(tmp_path / "b")
    again = Run.load(tmp_path / "b", strict=True)
    assert again["loss"].tolist() == run["loss"].tolist() == [0, 1, 2, 30, 40]
    assert again.matrix("grad_norm")[0].tolist() == run.matrix("grad_norm")[0].tolist() == [0]


def test_paths_without_a_run_are_explained(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such directory"):
        Run.load(tmp_path / "nothing")
    (tmp_path / "log.csv").write_text("step,loss\n")
    with pytest.raises(RunError, match="is a file, not a run directory; `foreshock import`"):
        Run.load(tmp_path / "log.csv")
    write(tmp_path / "runs/a")
    with pytest.raises(RunError, match=r"no run\.json; there are runs inside it: a"):
        Run.load(tmp_path / "runs")


def test_a_run_shows_what_it_is(run: Run) -> None:
    assert repr(run) == "<Run small: 6 steps, 4 signals, 2 events>"


def test_steps_cannot_be_changed_by_accident(run: Run) -> None:
    with pytest.raises(ValueError, match="read-only"):
        run.steps[0] = 7
    loss = run["loss"]
    loss[0] = 7
    assert run["loss"][0] == 1.0
