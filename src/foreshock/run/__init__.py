"""Runs: what was measured, on disk and in memory. Never imports torch."""

from __future__ import annotations

from foreshock.run.absent import ABSENT, absent, is_absent
from foreshock.run.event import KINDS, Event, latest
from foreshock.run.memory import RunMemory
from foreshock.run.record import StepRecord
from foreshock.run.run import Run
from foreshock.run.writer import RunWriter

__all__ = ["ABSENT", "KINDS", "Event", "Run", "RunMemory", "RunWriter", "StepRecord", "absent", "is_absent", "latest"]
