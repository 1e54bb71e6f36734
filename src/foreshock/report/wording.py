"""Numbers, counts and durations as people write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from foreshock.diagnose.wording import count, number

__all__ = ["count", "date", "duration", "listing", "number"]


def listing(parts: list[str], last: str = " and ") -> str:
    """Returns "a, b and c"."""
    if len(parts) <= 1:
        return "".join(parts)
    return ", ".join(parts[:-1]) + last + parts[-1]


def duration(seconds: float) -> str:
    """Returns a time span in its two largest units.

    >>> duration(0.0042), duration(75), duration(93784)
    ('4.2 ms', '1 min 15 s', '1 d 2 h')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, size, below, lower in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            big, small = whole // size, whole % size // lower
            return f"{big} {unit} {small} {below}" if small else f"{big} {unit}"
    return f"{whole} s"


def date(when: object) -> str:
    """Returns seconds since the epoch, or an ISO date, as a UTC date and time to the minute; other values as text.

    >>> date(0), date("2026-11-26T18:28:41+00:00"), date("yesterday")
    ('1970-01-01 00:00 UTC', '2026-11-26 18:28 UTC', 'yesterday')
    """
    try:
        moment = datetime.fromtimestamp(when, tz=UTC) if isinstance(when, (int, float)) else _parsed(str(when))
    except (OverflowError, OSError, ValueError):
        return str(when)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _parsed(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
