"""Event files made by TensorBoard's own writer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from foreshock.errors import ForeshockWarning, ImportFormatError, MissingExtraError
from foreshock.run.importers import import_run


class Writer:
    """Writes what `SummaryWriter.add_scalar` writes."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self._writer = EventFileWriter(str(folder), filename_suffix=suffix)

    def scalar(self, tag: str, value: float, step: int, *, time: float = 1.7e9) -> None:
        self._add(Summary.Value(tag=tag, simple_value=value), step, time)

    def tensor(self, tag: str, value: object, step: int) -> None:
        """Writes a scalar as TensorFlow 2 does: a tensor with the metadata of the scalars plugin."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
        self._add(Summary.Value(tag=tag, tensor=make_tensor_proto(value), metadata=metadata), step, 1.7e9)

    def purge(self, step: int) -> None:
        self._writer.add_event(Event(wall_time=1.7e9, step=step, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        self._writer.close()

    def _add(self, value: Summary.Value, step: int, time: float) -> None:
        self._writer.add_event(Event(wall_time=time + step, step=step, summary=Summary(value=[value])))


def single(folder: Path) -> Path:
    (file,) = folder.glob("*tfevents*")
    return file


def test_scalars_of_different_cadence(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in range(4):
        writer.scalar("train/loss", 2.0 - step, step)
        writer.scalar("train/learning_rate", 0.5, step)
    writer.scalar("eval/acc", 0.25, 3)
    writer.scalar("train/loss", float("nan"), 4)
    writer.scalar("train/loss", float("inf"), 5)
    writer.close()
    for path in (tmp_path, single(tmp_path)):
        run = import_run(path)
        assert run.columns == ("loss", "lr", "eval/acc")
        assert run.steps.tolist() == [0, 1, 2, 3, 4, 5]
        np.testing.assert_array_equal(run["loss"], [2, 1, 0, -1, np.nan, np.inf])
        assert run.measured("loss")[0].tolist() == [0, 1, 2, 3, 4, 5]
        assert run.measured("eval/acc")[0].tolist() == [3]
        assert run.times.tolist() == [1.7e9 + step for step in range(6)]
        assert run.problems == []
        assert run.meta["imported"]["format"] == "tensorboard"


def test_tensor_scalars(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step, value in enumerate([np.float32(2.5), np.float64(2.25), np.int64(2), np.float16(1.5)]):
        writer.tensor("loss", value, step)
    writer.tensor("histogram", np.ones((3, 3), np.float32), 1)
    writer.tensor("text", np.array(["hello"], object), 1)
    writer.close()
    run = import_run(tmp_path)
    assert (run.columns, run["loss"].tolist()) == (("loss",), [2.5, 2.25, 2.0, 1.5])


def test_a_run_that_was_restarted_in_a_second_file(tmp_path: Path) -> None:
    for name, first, value in (("1", 0, 1.0), ("2", 6, 2.0)):
        writer = Writer(tmp_path, f".{name}")
        for step in range(first, 9 if name == "2" else 20):
            writer.scalar("loss", value, step)
        writer.close()
    for place, file in enumerate(sorted(tmp_path.glob("*tfevents*"), key=lambda file: file.name[-1])):
        file.rename(tmp_path / f"events.out.tfevents.{place}")
    run = import_run(tmp_path)
    assert run["loss"].tolist() == [1.0] * 6 + [2.0] * 3


def test_a_writer_that_purges_removes_every_tag_from_there(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in range(10):
        writer.scalar("loss", 1.0, step)
    writer.scalar("acc", 0.5, 8)
    writer.purge(5)
    writer.scalar("loss", 2.0, 5)
    writer.close()
    run = import_run(tmp_path)
    assert run["loss"].tolist() == [1.0] * 5 + [2.0]
    assert "acc" not in run


def test_one_run_below_a_folder_is_found_and_several_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        writer = Writer(tmp_path / "logs" / name)
        writer.scalar("loss", 1.0, 0)
        writer.close()
    assert len(import_run(tmp_path / "logs/a")) == 1
    with pytest.raises(ImportFormatError, match=r"2 TensorBoard runs.*logs/a.*logs/b.*Give one"):
        import_run(tmp_path / "logs")
    (tmp_path / "up/x").mkdir(parents=True)
    single(tmp_path / "logs/a").rename(tmp_path / "up/x/events.out.tfevents.1")
    assert len(import_run(tmp_path / "up")) == 1


def test_a_file_that_breaks_off_gives_the_events_before(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in range(10):
        writer.scalar("loss", 1.0, step)
    writer.close()
    file = single(tmp_path)
    content = file.read_bytes()
    width = (len(content) - content.index(b"loss")) // 10
    file.write_bytes(content[:-5])
    run = import_run(tmp_path)
    assert run.steps.tolist() == list(range(9))
    assert f"{file} breaks off inside the event at byte" in str(run.problems[0])
    damaged = bytearray(content)
    damaged[len(content) - 3 * width - width // 2] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.warns(ForeshockWarning, match="is damaged in the event at byte"):
        run = import_run(tmp_path)
    assert 5 <= len(run) <= 7
    assert len(run.problems) == 1


@pytest.mark.parametrize(("tag", "match"), [("acc", "no scalar that looks like the training loss; it has: 'acc'")])
def test_no_loss_is_explained(tmp_path: Path, tag: str, match: str) -> None:
    writer = Writer(tmp_path)
    writer.scalar(tag, 1.0, 0)
    writer.close()
    with pytest.raises(ImportFormatError, match=match):
        import_run(tmp_path)
    assert import_run(tmp_path, columns={"loss": tag})["loss"].tolist() == [1.0]


def test_no_event_files_no_scalars_and_rubbish(tmp_path: Path) -> None:
    with pytest.raises(ImportFormatError, match="holds no TensorBoard event files"):
        import_run(tmp_path, format="tensorboard")
    writer = Writer(tmp_path / "a")
    writer.close()
    with pytest.raises(ImportFormatError, match="holds no scalars"):
        import_run(tmp_path / "a")
    (tmp_path / "x.tfevents").write_bytes(b"rubbish" * 20)
    with pytest.raises(ImportFormatError, match="is not a TensorBoard event file"):
        import_run(tmp_path / "x.tfevents")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r"pip install 'foreshock\[tensorboard\]'"):
        import_run(tmp_path)
