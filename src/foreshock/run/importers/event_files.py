"""TensorBoard event files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import CorruptRunError, ForeshockWarning, ImportFormatError, MissingExtraError
from foreshock.run.absent import absent
from foreshock.run.importers.build import Log, finish
from foreshock.run.importers.names import choose, listed
from foreshock.run.run import Run

MARK = "tfevents"
_FRAME = 16  # bytes around each record: length, its checksum, the record's checksum


def event_files(path: Path) -> list[Path]:
    """Returns the event files of one run, oldest first: the file itself, or those in a folder.

    Raises:
        ImportFormatError: there are none, or there are those of several runs.
    """
    if path.is_file():
        return [path]
    folders: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob(f"*{MARK}*")):
        if file.is_file():
            folders.setdefault(file.parent, []).append(file)
    if not folders:
        raise ImportFormatError(f"{path} holds no TensorBoard event files (no file name with {MARK!r})")
    if path in folders:
        return folders[path]  # folders below it are other charts of the same run, such as hparams
    if len(folders) > 1:
        raise ImportFormatError(
            f"{path} holds {len(folders)} TensorBoard runs: {listed([str(folder) for folder in folders])}. Give one."
        )
    return next(iter(folders.values()))


def read_events(path: Path, columns: Mapping[str, str] | None) -> Run:
    """Returns the run in an event file, or in the event files of a folder.

    Each tag has its own steps. Where they go back, and where a writer says that it purges, the run was resumed, and
    what comes later replaces what was there.

    Raises:
        MissingExtraError: the tensorboard package is not installed.
        ImportFormatError: no event file, no scalars, no loss, or several runs.
    """
    log = Log(path, (), {})
    tags: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for file in event_files(path):
        for step, time, tag, value in _scalars(file, log.problems):
            if tag is None:
                for known in tags.values():
                    _cut(known, step)
                continue
            series = tags.setdefault(tag, ([], [], []))
            if series[0] and step <= series[0][-1]:
                _cut(series, step)
            series[0].append(step)
            series[1].append(value)
            series[2].append(time)
    tags = {tag: series for tag, series in tags.items() if series[0]}
    if not tags:
        raise ImportFormatError(f"{path} holds no scalars: log the loss with `add_scalar` or `tf.summary.scalar`")
    chosen = choose(tags, columns, path)
    if "loss" not in chosen:
        raise ImportFormatError(
            f"{path} has no scalar that looks like the training loss; it has: {listed(tags)}. Say which one it is, "
            "e.g. columns={'loss': 'train/ce'} (on the command line: --column loss=train/ce)."
        )
    steps = np.unique(np.concatenate([np.asarray(series[0], np.int64) for series in tags.values()]))
    times = np.zeros(len(steps))
    names = {column: signal for signal, column in chosen.items() if signal not in ("step", "time")}
    values: dict[str, npt.NDArray[Any]] = {}
    for tag, series in sorted(tags.items(), key=lambda item: item[0] == chosen["loss"]):
        place = np.searchsorted(steps, series[0])
        column = values[names.get(tag, tag)] = absent(len(steps))
        column[place] = series[1]
        times[place] = series[2]
    return finish(log, "tensorboard", steps, times, values)


def _cut(series: tuple[list[int], list[float], list[float]], step: int) -> None:
    """Removes what a tag has from a step on."""
    keep = len(series[0])
    while keep and series[0][keep - 1] >= step:
        keep -= 1
    for values in series:
        del values[keep:]


def _scalars(file: Path, problems: list[CorruptRunError]) -> Iterator[tuple[int, float, str | None, float]]:
    """Yields step, time, tag and value of each scalar; no tag where everything from that step on is purged."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise MissingExtraError(
            "reading TensorBoard event files needs the tensorboard package: pip install 'foreshock[tensorboard]'"
        ) from error
    size, offset = file.stat().st_size, 0
    for record in RawEventFileLoader(str(file)).Load():
        offset += len(record) + _FRAME
        event = Event.FromString(record)
        if event.HasField("session_log") and event.session_log.status == SessionLog.START and event.step > 0:
            yield event.step, event.wall_time, None, 0.0
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                yield event.step, event.wall_time, value.tag, value.simple_value
            elif kind == "tensor" and value.tensor.dtype in _REAL:
                array = make_ndarray(value.tensor)
                if array.size == 1:
                    yield event.step, event.wall_time, value.tag, float(array.reshape(()))
    if offset == 0:
        raise ImportFormatError(f"{file} is not a TensorBoard event file, or it is empty")
    if offset < size:
        _report_rest(file, offset, size, problems)


_REAL = {1, 2, 3, 6, 9, 14, 19}  # float, double, int32, int8, int64, bfloat16, half in types.proto


def _report_rest(file: Path, offset: int, size: int, problems: list[CorruptRunError]) -> None:
    """Lists what was not read; a record longer than the rest of the file is a torn tail, anything else is damage."""
    with file.open("rb") as stream:
        stream.seek(offset)
        length = int.from_bytes(stream.read(8), "little")
    if size - offset < _FRAME or offset + _FRAME + length > size:
        problems.append(CorruptRunError(f"{file} breaks off inside the event at byte {offset}"))
        return
    problem = CorruptRunError(f"{file} is damaged in the event at byte {offset}; the events before it were read")
    problems.append(problem)
    warnings.warn(str(problem), ForeshockWarning, stacklevel=5)
