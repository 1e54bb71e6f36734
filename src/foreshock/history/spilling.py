"""Keeps a directory in step with the windows that are held."""

from __future__ import annotations

from pathlib import Path

from foreshock.guard import spill
from foreshock.history import disk
from foreshock.history.pins import Pins
from foreshock.mishaps import Mishaps


class Spilling:
    """Writes the windows that are held to a directory, and deletes those that are not any more.

    Args:
        folder: the directory.
        mishaps: where what goes wrong is said.

    Raises:
        MissingExtraError: safetensors is not installed.
    """

    def __init__(self, folder: Path, mishaps: Mishaps) -> None:
        spill.library()
        self._folder, self._mishaps = folder, mishaps
        self._names: set[str] = set()  # of the files
        self._clean = False  # whether what a killed process left half written was deleted

    def write(self, pins: Pins, *, all_of_them: bool = False) -> None:
        """Writes windows that are new, or whole now, or all that have changed; waits for the disk."""
        for pin in pins:
            if pin.written or not (all_of_them or pin.whole or disk.name_of(pin) not in self._names):
                continue
            self._names.add(disk.name_of(pin))
            pin.written = True  # should it fail, it is tried again when there is more to write
            with self._mishaps.said("writing a window to disk", "; it is in memory only"):
                if not self._clean:
                    disk.clear_drafts(self._folder)
                    self._clean = True
                disk.write(self._folder, pin)
        if len(self._names) > len(pins):
            kept = {disk.name_of(pin) for pin in pins}
            for name in self._names - kept:
                (self._folder / name).unlink(missing_ok=True)
            self._names &= kept
