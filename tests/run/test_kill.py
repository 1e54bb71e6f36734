"""A writer in another process: killed at any instant, and read while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from foreshock.errors import RunError
from foreshock.run import Event, Run, RunWriter

WRITER = """
import os, sys
import numpy as np
from foreshock.run import Event, RunWriter

path, first, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
writer = RunWriter(path, resume=sys.argv[4] or None).open()
columns = tuple(f"c{i}" for i in range(50))
row = np.arange(50, dtype=np.float32)
step = first
while True:
    steps = np.arange(step, step + batch)
    writer.append("step", columns, steps, np.zeros(batch), row + steps[:, None].astype(np.float32))
    if step % 50 == 0:
        writer.event(Event("spike", step, step, step, None, 1.0, 2.0, "loss"))
        writer.note("action", step=step, action="skip")
    step += batch
    os.write(1, b"%d\\n" % step)
"""


@contextmanager
def writing(path: Path, first: int = 0, batch: int = 1, resume: str = "") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(batch), resume]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def acknowledged_until(child: subprocess.Popen[bytes], records: int) -> int:
    """Kills the child once it has acknowledged that many records; returns how many it had acknowledged in the end."""
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= records:
            break
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().splitlines()
    return int(rest[-1] if rest else line)


@pytest.mark.parametrize(("batch", "records"), [(1, 1), (1, 700), (1, 2003), (100, 5000), (3000, 9000)])
def test_every_acknowledged_record_survives_a_kill_and_the_run_goes_on(
    tmp_path: Path, batch: int, records: int
) -> None:
    with writing(tmp_path / "a", batch=batch) as child:
        acknowledged = acknowledged_until(child, records)
    run = Run.load(tmp_path / "a")
    assert acknowledged <= len(run) <= acknowledged + batch
    np.testing.assert_array_equal(run.steps, np.arange(len(run)))
    np.testing.assert_array_equal(run["c49"], np.arange(len(run)) + 49.0)
    marked = [step for step in range(0, acknowledged, batch) if step % 50 == 0]
    assert len(run.events) >= len(marked)
    assert [action.step for action in run.actions][: len(marked)] == marked

    with writing(tmp_path / "a", first=acknowledged, batch=batch, resume=run.meta["id"]) as child:
        second = acknowledged_until(child, acknowledged + records)
    run = Run.load(tmp_path / "a")
    assert second <= len(run) <= second + batch
    np.testing.assert_array_equal(run.steps, np.arange(len(run)))
    np.testing.assert_array_equal(run["c49"], np.arange(len(run)) + 49.0)
    assert len(run.actions) == len({action.step for action in run.actions}) >= len(marked)


def test_a_torn_tail_is_cut_off_on_resume(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), [0, 1], [0.0, 0.0], np.array([[1.0], [2.0]]))
        writer.event(Event("spike", 1, 1, 1, None, 1.0, 2.0, "loss"))
        writer.note("x", step=1)
    folder = tmp_path / "a/rank-0"
    for name in ("step.bin", "events.jsonl", "notes.jsonl"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + content[: len(content) // 3])
    assert len(Run.load(tmp_path / "a").problems) == 3
    with RunWriter(tmp_path / "a", resume=writer.id) as again:
        assert Run.load(tmp_path / "a", strict=True).steps.tolist() == [0, 1]
        again.append("step", ("loss",), [2], [0.0], np.array([[3.0]]))
        again.event(Event("spike", 2, 2, 2, None, 1.0, 2.0, "loss"))
        again.note("y", step=2)
    run = Run.load(tmp_path / "a", strict=True)
    assert run["loss"].tolist() == [1.0, 2.0, 3.0]
    assert [event.raised for event in run.events] == [1, 2]
    assert [note["kind"] for note in run.notes] == ["x", "y"]


def test_a_reader_sees_whole_records_at_any_moment(tmp_path: Path) -> None:
    with writing(tmp_path / "a", batch=7) as child:
        assert child.stdout is not None
        seen = 0
        for line in child.stdout:
            run = Run.load(tmp_path / "a")
            assert len(run) >= int(line)
            assert len(run) >= seen
            seen = len(run)
            np.testing.assert_array_equal(run.steps, np.arange(seen))
            np.testing.assert_array_equal(run["c1"], np.arange(seen) + 1.0)
            if seen > 20_000:
                break


def test_a_run_being_written_cannot_be_resumed_by_a_second_process(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as child:
        assert child.stdout is not None
        child.stdout.readline()
        run_id = Run.load(tmp_path / "a").meta["id"]
        with pytest.raises(RunError, match=f"written by another process \\(pid {child.pid}\\)"):
            RunWriter(tmp_path / "a", resume=run_id).open()
    with RunWriter(tmp_path / "a", resume=run_id) as writer:
        assert writer.id == run_id
