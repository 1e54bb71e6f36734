"""Numbers, counts and durations as people write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def number(value: float, digits: int = 3) -> str:
    """Returns a number with `digits` significant digits, in e-notation outside [1e-3, 1e5).

    >>> number(0.0000003), number(12345.6), number(0.95), number(float("nan"))
    ('3e-7', '12,346', '0.95', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e5:
        if size >= 10 ** (digits - 1):
            return f"{value:,.0f}"
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Returns "1 spike" or "3 spikes".

    >>> count(1, "spike"), count(1200, "spike")
    ('1 spike', '1,200 spikes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


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
