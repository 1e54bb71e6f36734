"""What goes wrong inside foreshock while training goes on: said once each, with the traceback, never raised."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foreshock.errors import ForeshockWarning

_LOG = logging.getLogger("foreshock")


class Mishaps:
    """Says each kind of mishap once.

    Args:
        note: `note(kind, **fields)` records it in the run as well.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self._said: set[str] = set()

    def say(self, kind: str, message: str) -> None:
        """Warns with `ForeshockWarning` unless this kind was said before."""
        if kind in self._said:
            return
        self._said.add(kind)
        try:
            warnings.warn(message, ForeshockWarning, stacklevel=2)
        except Warning:  # warnings are errors here; a run is not ended by what watches it
            _LOG.warning(message)

    def disabled(self, what: str, name: str, error: Exception, step: int) -> None:
        """Says that a probe or detector has failed and is not called again."""
        lines = "".join(traceback.format_exception(error))
        try:
            self._note(f"{what}_disabled", step=step, name=name, error=f"{type(error).__name__}: {error}")
        except Exception as unwritten:
            _LOG.warning("the note about %s %r could not be written: %s", what, name, unwritten)
        self.say(f"{what} {name}", f"{what} {name!r} failed at step {step} and is disabled; training goes on.\n{lines}")

    @contextmanager
    def said(self, doing: str, consequence: str = "") -> Iterator[None]:
        """Turns whatever is raised inside into a warning."""
        try:
            yield
        except Exception:
            self.failed(doing, consequence)

    def failed(self, doing: str, consequence: str = "") -> None:
        """Says what the exception being handled has stopped."""
        self.say(doing, f"{doing} failed{consequence}; training goes on.\n{traceback.format_exc()}")
