"""The errors foreshock raises. Each message names what was given, what is allowed and what to do next."""

from __future__ import annotations


class ForeshockError(Exception):
    """Base of every error foreshock raises on purpose."""


class UsageError(ForeshockError, ValueError):
    """A call that cannot work: a wrong argument, a missing piece, two calls in the wrong order."""


class RunError(ForeshockError):
    """A run directory that cannot be read or written as asked."""


class CorruptRunError(RunError):
    """A run directory whose files break off or disagree; the message names the file and the byte offset."""


class ImportFormatError(ForeshockError, ValueError):
    """A file given to an importer that is not in the format it was said, or guessed, to be in."""


class MissingExtraError(ForeshockError, ImportError):
    """An optional dependency that is not installed; the message holds the `pip install` line."""


class StoppedError(ForeshockError):
    """A guarded training went on after its policy had said stop; the message says why that was."""


class ForeshockWarning(UserWarning):
    """Something went wrong inside foreshock while training goes on: said once, then silence."""
