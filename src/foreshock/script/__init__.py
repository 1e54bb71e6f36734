"""Watching a script that nobody edits: run it as Python would, catch its losses and optimizers from outside."""

from __future__ import annotations

from foreshock.script.execute import embedded, find_code, run_like_python
from foreshock.script.imported import when_imported

__all__ = ["embedded", "find_code", "run_like_python", "when_imported"]
