"""What a replay needs of a training: states to begin from, and what happened from there to beyond an event."""

from foreshock.history.history import History
from foreshock.history.source import Source, window_of
from foreshock.history.stored import Stored
from foreshock.history.window import Window

__all__ = ["History", "Source", "Stored", "Window", "window_of"]
