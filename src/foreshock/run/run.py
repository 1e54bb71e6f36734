"""A run as it is read: records, metadata, events and other happenings."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import CorruptRunError, ForeshockWarning, UsageError
from foreshock.run import actions, combine, findings
from foreshock.run.absent import absent
from foreshock.run.action import Action, Rollback
from foreshock.run.arrays import tables_from_arrays
from foreshock.run.event import Event, latest
from foreshock.run.findings import Finding
from foreshock.run.load import RankData, load
from foreshock.run.record import StepRecord
from foreshock.run.save import save
from foreshock.run.table import Floats, Steps, Table


class UnknownColumnError(UsageError, KeyError):
    """A column the run does not have; also a KeyError, as for any mapping."""

    __str__ = Exception.__str__


class Run:
    """A run: what was measured at each step, with metadata, events and notes; made by `load` and `from_arrays`.

    Attributes:
        path: the directory it was read from; None for a run in memory.
        meta: the metadata.
        problems: what was damaged or broke off, each naming file and byte offset; empty for a sound run.
        ranks: the ranks that wrote, ascending; this object shows the first, `rank(r)` another.
    """

    def __init__(
        self, data: Mapping[int, RankData], meta: Mapping[str, Any], *, path: Path | None = None,
        problems: Sequence[CorruptRunError] = (), shown: int | None = None, found: list[Finding] | None = None,
    ) -> None:
        self.path = path
        self.meta: dict[str, Any] = dict(meta)
        self.problems = list(problems)
        self.ranks: tuple[int, ...] = tuple(sorted(data))
        self._data = dict(data)
        self._shown = min(data) if shown is None else shown
        self._tables = self._data[self._shown].tables
        self._actions: list[Action] | None = None
        self._taken: npt.NDArray[np.bool_] | None = None
        self._found = found

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, strict: bool = False) -> Run:
        """Returns the run in a directory, which may still be written to while it is read.

        A record that breaks off at the end of a file (what a kill leaves) is left out and listed in `problems`.
        Damage is listed there too and warned about; everything before it in that file is read.

        Args:
            path: the run directory.
            strict: raise the first problem instead.

        Raises:
            RunError: there is no run at that path.
            CorruptRunError: with `strict`, anything that is damaged or breaks off.
        """
        root = Path(path)
        loaded = load(root)
        problems = [*loaded.corrupt, *loaded.torn]
        if strict and problems:
            raise problems[0]
        for problem in loaded.corrupt:
            warnings.warn(str(problem), ForeshockWarning, stacklevel=2)
        return cls(loaded.ranks, loaded.meta, path=root, problems=problems)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.ArrayLike], **meta: Any) -> Run:
        """Returns a run in memory, made of one array a signal.

        Args:
            arrays: signal name -> (n,) numbers; "step" (strictly increasing integers; 0, 1, ... where it is not
                given) and "time" (seconds since the epoch) are the records' own. NaN counts as measured; use
                `absent` for what was not.
            meta: metadata.

        Raises:
            UsageError: lengths differ, steps do not increase, or something is not a number.

        >>> Run.from_arrays({"loss": [2.0, 1.5]}, name="a")["loss"].tolist()
        [2.0, 1.5]
        """
        return cls({0: RankData(tables_from_arrays(arrays))}, meta)

    def rank(self, rank: int) -> Run:
        """Returns the run as that rank recorded it."""
        if rank not in self._data:
            raise UsageError(f"no rank {rank} in this run; it has {', '.join(map(str, self.ranks))}")
        return Run(self._data, self.meta, path=self.path, problems=self.problems, shown=rank, found=self.findings)

    @property
    def steps(self) -> Steps:
        """Step numbers of the records, strictly increasing; a step written twice counts as written last."""
        return self._tables["step"].steps if "step" in self._tables else np.empty(0, np.int64)

    @property
    def times(self) -> Floats:
        """Seconds since the epoch of each record, 0 where unknown; aligned with `steps`."""
        return self._tables["step"].times if "step" in self._tables else np.empty(0, np.float64)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all signals: run-wide ones, then those with a cadence of their own (per tensor)."""
        return tuple(dict.fromkeys(column for table in self._ordered() for column in table.columns))

    @property
    def events(self) -> list[Event]:
        """The last version of each event that was recorded, ordered by the step at which it was raised."""
        return latest(list(self._data[self._shown].events))

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Other happenings, each with "step", "time" and "kind", as written; no actions that a resume went back on."""
        return [dict(note) for note in self._data[self._shown].notes]

    @property
    def actions(self) -> list[Action]:
        """What a guard did, in order of the attempts; those of a later version come as `Unknown`, with their name."""
        if self._actions is None:
            self._actions = actions.actions(self._data[self._shown].notes)
        return list(self._actions)

    @property
    def findings(self) -> list[Finding]:
        """What experiments found out about its events, oldest first: replays and attributions, as plain values."""
        if self._found is None:
            self._found = findings.read(self.path) if self.path is not None else []
        return self._found

    def findings_of(self, event: Event, kind: str | None = None) -> list[Finding]:
        """Returns the findings about an event, the newest last; of one kind ("replay", ...) where that is given."""
        return findings.about(self.findings, event, kind)

    def add_finding(self, finding: Mapping[str, Any]) -> None:
        """Keeps what was found out about an event with the run; in its directory, where it has one.

        Args:
            finding: plain values, with "kind" and with "event", the key of the event that it is about.

        Raises:
            UsageError: it lacks one of them.
            RunError: the directory cannot be written.
        """
        plain, known = findings.checked(finding), self.findings
        if self.path is not None:
            findings.write(self.path, plain)
        known.append(plain)

    @property
    def taken(self) -> npt.NDArray[np.bool_]:
        """Whether the training took each step and kept it, aligned with `steps`.

        False where the step was refused, by a guard or by a loss scaler (signal `skipped`), and where a rollback undid
        it: from the step of the snapshot to the attempt that was answered so.
        """
        if self._taken is None:
            kept = ~(self["skipped"] > 0) if "skipped" in self else np.ones(len(self), np.bool_)
            for action in self.actions:
                if isinstance(action, Rollback):
                    kept[slice(*np.searchsorted(self.steps, [action.before, max(action.before, action.step)]))] = False
            self._taken = kept
        return self._taken.copy()

    def accepted(self, name: str = "loss") -> Floats:
        """Returns a signal as `run[name]` does, absent also where the training did not take the step (see `taken`).

        `run["loss"]` is the raw loss of every batch that was tried, this the loss of those the training learnt from.

        >>> run = Run.from_arrays({"loss": [2.0, 9.0, 1.9], "skipped": [0, 1, 0]})
        >>> run.accepted("loss").tolist()
        [2.0, nan, 1.9]
        """
        values = self[name].copy()
        refused = ~self.taken
        values[refused] = absent(int(refused.sum()))
        return values

    def __len__(self) -> int:
        return len(self.steps)

    def __contains__(self, name: object) -> bool:
        return any(name in table.columns for table in self._tables.values())

    def __getitem__(self, name: str) -> Floats:
        """Returns a signal as (len(run),) float64, aligned with `steps`; NaN where it was not measured."""
        tables = self._tables_of(name)
        if tables == [self._tables.get("step")]:
            return tables[0].column(name)
        return combine.aligned(self.steps, *combine.measured(tables, name))

    def measured(self, name: str) -> tuple[Steps, Floats]:
        """Returns the steps at which a signal was measured and its values there; a measured NaN stays."""
        return combine.measured(self._tables_of(name), name)

    def window(self, start: float, stop: float) -> Run:
        """Returns the part of the run with start <= step < stop, and the events and notes that touch it."""
        whole = self._data[self._shown]
        tables = {name: table.window(start, stop) for name, table in whole.tables.items()}
        events = [
            event for event in whole.events
            if min(event.onset, event.raised) < stop and (event.end is None or event.end >= start)
        ]
        reached = ((note, *actions.reach(note)) for note in whole.notes)
        notes = [note for note, first, last in reached if first < stop and last >= start]
        data = {self._shown: RankData(tables, events, notes)}
        return Run(data, self.meta, path=self.path, problems=self.problems, found=self.findings)

    def records(self) -> Iterator[StepRecord]:
        """Returns an iterator over one record a step, with the run-wide signals that were measured there."""
        return self._tables["step"].records() if "step" in self._tables else iter(())

    def tensors(self, signal: str) -> tuple[str, ...]:
        """Returns the tensors (or modules, or groups) for which a signal was recorded, in stored order."""
        prefix = f"{signal}/"
        return tuple(column[len(prefix) :] for column in self.columns if column.startswith(prefix))

    def matrix(self, signal: str) -> tuple[Steps, tuple[str, ...], npt.NDArray[Any]]:
        """Returns a per-tensor signal as (steps (T,), tensor names (U,), values (T, U)); NaN where not measured.

        The values may be a read-only view of the file in its own precision, so that a long run can be thinned out
        before it is read.
        """
        names = self.tensors(signal)
        if not names:
            signals = dict.fromkeys(column.partition("/")[0] for column in self.columns if "/" in column)
            raise UnknownColumnError(
                f"no per-tensor values of {signal!r} in this run; it has them for: {', '.join(signals) or 'nothing'}"
            )
        columns = [f"{signal}/{name}" for name in names]
        tables = [table for table in self._ordered() if not set(columns).isdisjoint(table.columns)]
        steps, values = combine.matrix(tables, columns)
        return steps, names, values

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the run into a new directory and returns its path.

        Raises:
            RunError: the directory holds a run already or cannot be written.
        """
        save(Path(path), self._data, self.meta)
        for each in self.findings:
            findings.write(Path(path), each)
        return Path(path)

    def __repr__(self) -> str:
        name = self.meta.get("name") or (self.path.name if self.path else "in memory")
        return f"<Run {name}: {len(self)} steps, {len(self.columns)} signals, {len(self.events)} events>"

    def _ordered(self) -> list[Table]:
        """Returns the tables, the step table first."""
        return [self._tables[name] for name in sorted(self._tables, key=lambda name: name != "step")]

    def _tables_of(self, name: str) -> list[Table]:
        tables = [table for table in self._ordered() if name in table.columns]
        if tables:
            return tables
        near = difflib.get_close_matches(str(name), self.columns, n=3, cutoff=0.5)
        some = ", ".join(self.columns[:8]) + (", ..." if len(self.columns) > 8 else "")
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has: {some or 'none'}"
        raise UnknownColumnError(f"no signal {name!r} in this run; {hint}")
