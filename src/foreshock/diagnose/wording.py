"""Numbers, counts and shares as people write them."""

from __future__ import annotations

import math


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


def percent(share: float) -> str:
    r"""Returns a share as a whole percentage, with a space that does not break.

    >>> percent(0.056) == "6\N{NO-BREAK SPACE}%"
    True
    """
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
