"""Forcing files onto the disk beside the training, which must not wait for a slow one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from foreshock.errors import RunError
from foreshock.run.append import sync_path


class BackgroundSync:
    """Runs one fsync of several files at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None

    def start(self, paths: Sequence[Path]) -> bool:
        """Begins to force files onto the disk; returns False where the last call is not done yet.

        Raises:
            RunError: the disk failed to take the files of the last call.
        """
        self._raise()
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._sync, args=(tuple(paths),), name="foreshock-sync", daemon=True)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Returns when nothing is under way.

        Raises:
            RunError: the disk failed to take the files.
        """
        if self._thread is not None:
            self._thread.join()
        self._raise()

    def _sync(self, paths: tuple[Path, ...]) -> None:
        try:
            for path in paths:
                sync_path(path)
        except RunError as error:
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
