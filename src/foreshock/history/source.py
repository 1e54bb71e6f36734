"""What an experiment on an event may be given: a monitor, a history, or a window of one."""

from __future__ import annotations

from foreshock.errors import UsageError
from foreshock.history.history import History
from foreshock.history.stored import Stored
from foreshock.history.window import Window
from foreshock.monitor import Monitor
from foreshock.run.event import Event

Source = Monitor | History | Stored | Window


def window_of(source: Source, event: Event, *, call: str, before: int | None = None) -> Window:
    """Returns the window around an event.

    Args:
        source: a monitor with a history, a history, one that was loaded from disk, or the window itself.
        event: what it is to be around.
        call: name of the function that was given the source, for messages.
        before: begin at the newest snapshot at or before this step.

    Raises:
        UsageError: there is no history, or no window in it; says why.
    """
    if isinstance(source, Window):
        return source
    history = source.history if isinstance(source, Monitor) else source
    if history is None:
        raise UsageError(
            f"{call}: nothing was kept to go back to; attach a history to the monitor while it watches: "
            "`with fs.Monitor(model, optimizer) as monitor, fs.History(monitor):`, and give batches to "
            "monitor.observe(loss, batch=batch)"
        )
    if not isinstance(history, (History, Stored)):
        raise UsageError(f"{call}(source): a Monitor, a History or a Window is needed, got {type(source).__name__}")
    found = history.window(event, before=before)
    found.monitor = history.monitor
    return found
