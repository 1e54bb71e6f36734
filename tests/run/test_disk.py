"""Disks that are full or cannot be written."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foreshock.errors import RunError
from foreshock.run import Event, Run, RunWriter

RECORD = 8 + 8 + 8 + 4


def rows(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Limits how large a file of this process may grow, as a full disk does (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else before[0], before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, RECORD - 1])
def test_a_full_disk_leaves_no_partial_record_and_writing_goes_on(
    tmp_path: Path, file_limit: Callable[[int], None], room: int
) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), range(50), np.zeros(50), rows(*range(50)))
        file_limit(50 * RECORD + room)
        with pytest.raises(RunError, match=r"step\.bin"):
            writer.append("step", ("loss",), [50], [0.0], rows(50))
        file_limit(0)
        assert Run.load(tmp_path / "a", strict=True).steps.tolist() == list(range(50))
        writer.append("step", ("loss",), [51], [0.0], rows(51))
    assert Run.load(tmp_path / "a", strict=True).steps.tolist() == [*range(50), 51]


def test_whole_records_of_a_batch_are_kept_and_the_batch_may_be_repeated(
    tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), range(50), np.zeros(50), rows(*range(50)))
        writer.append("tensors", ("grad_norm/a",), [49], [0.0], rows(1))
        file_limit(52 * RECORD + 5)
        with pytest.raises(RunError, match="2 of 4 records were kept"):
            writer.append("step", ("loss",), range(50, 54), np.zeros(4), rows(50, 51, 52, 53))
        assert len(Run.load(tmp_path / "a", strict=True)) == 52
        file_limit(0)
        writer.append("step", ("loss",), range(50, 54), np.zeros(4), rows(50, 51, 52, 53))
    run = Run.load(tmp_path / "a", strict=True)
    np.testing.assert_array_equal(run["loss"], np.arange(54.0))
    assert run.measured("grad_norm/a")[0].tolist() == [49]


def test_a_full_disk_tears_no_event(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    with RunWriter(tmp_path / "a") as writer:
        writer.event(Event("spike", 1, 1, 1, None, 1.0, 2.0, "loss"))
        file_limit((tmp_path / "a/rank-0/events.jsonl").stat().st_size + 10)
        with pytest.raises(RunError, match=r"events\.jsonl"):
            writer.event(Event("spike", 2, 2, 2, None, 1.0, 2.0, "loss"))
        file_limit(0)
        writer.event(Event("spike", 3, 3, 3, None, 1.0, 2.0, "loss"))
    assert [event.raised for event in Run.load(tmp_path / "a", strict=True).events] == [1, 3]


def test_a_file_that_cannot_be_cut_back_is_cut_before_the_next_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, cut = os.write, os.ftruncate

    def no_cut(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with RunWriter(tmp_path / "a") as writer:
        writer.append("step", ("loss",), [0], [0.0], rows(0))
        monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:-3]))
        monkeypatch.setattr(os, "ftruncate", no_cut)
        with pytest.raises(RunError, match="25 of 28 bytes"):
            writer.append("step", ("loss",), [1], [0.0], rows(1))
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(RunError, match="Input/output"):
            writer.append("step", ("loss",), [1], [0.0], rows(1))
        assert Run.load(tmp_path / "a").steps.tolist() == [0]
        monkeypatch.setattr(os, "ftruncate", cut)
        writer.append("step", ("loss",), [2], [0.0], rows(2))
    assert Run.load(tmp_path / "a", strict=True).steps.tolist() == [0, 2]


def test_a_full_disk_keeps_the_old_metadata_and_refuses_a_new_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunWriter(tmp_path / "a", {"name": "x"}) as writer:
        writer.append("step", ("loss",), [0], [0.0], rows(0))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(RunError, match=r"run\.json: No space left"):
                writer.update_meta(name="y")
            with pytest.raises(RunError, match=r"step\.1\.json: No space left"):
                writer.append("step", ("lr",), [1], [0.0], rows(1))
        assert Run.load(tmp_path / "a", strict=True).meta["name"] == "x"
        writer.append("step", ("lr",), [1], [0.0], rows(1))
    assert Run.load(tmp_path / "a", strict=True).columns == ("loss", "lr")


def test_a_disk_that_fails_to_sync_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = RunWriter(tmp_path / "a").open()
    writer.append("step", ("loss",), [0], [0.0], rows(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=r"cannot force .* onto the disk"):
            writer.sync()
    writer.close()


@pytest.mark.parametrize("inside", [False, True])
def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write a run to .*Give a directory"):
        RunWriter(tmp_path / "a" / "b" if inside else tmp_path / "a").open()


def test_a_directory_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match="Permission denied"):
        RunWriter(tmp_path / "a").open()
