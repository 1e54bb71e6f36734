"""What a replay needs of a training: states to begin from, and what happened from there to beyond an event."""

from foreshock.history.history import History
from foreshock.history.stored import Stored
from foreshock.history.window import Window

__all__ = ["History", "Stored", "Window"]
