"""One writer at a time: a lock that the system releases when the process dies, however it dies."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from foreshock.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: writers are told apart by the directory alone
    fcntl = None  # type: ignore[assignment]


def take(path: Path) -> int:
    """Returns a descriptor that holds the lock until it is closed, -1 where the file system has no locks.

    A POSIX record lock: forked data-loader workers do not inherit it, so none of them can outlive the trainer and
    keep its run locked.

    Raises:
        RunError: another process holds it.
    """
    if fcntl is None:
        return -1
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise RunError(
            f"{path.parent} is being written by another process (pid {owner}). Stop that one first, or start a new run."
        ) from error
    except OSError:
        os.close(descriptor)
        return -1
    with contextlib.suppress(OSError):  # a full disk costs the name of the owner, not the lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
