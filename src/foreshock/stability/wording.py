"""Formulas of the table as text: numbers as people write them, and the numbers filled in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from foreshock.stability.rule import Rule

__all__ = ["derivation_of", "filled", "names_in", "plain"]

NAME = re.compile(r"(?<![\w.])[A-Za-z]\w*")
FUNCTIONS = frozenset({"sqrt", "max", "min"})
SMALL = 1e-3  # below this, and from a million on, numbers are written with an exponent


def plain(value: float, *, thousands: bool = True) -> str:
    """Returns a number with at most six digits.

    >>> plain(126666.667), plain(0.0003), plain(0.95), plain(2.5e7)
    ('126,667', '3e-4', '0.95', '2.5e7')
    """
    value = float(value)
    if value and math.isfinite(value) and not SMALL <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.5e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.6g}" if thousands else f"{value:.6g}"


def names_in(text: str) -> set[str]:
    """Returns the names a formula uses, functions left out."""
    return set(NAME.findall(text)) - FUNCTIONS


def filled(text: str, values: Mapping[str, float]) -> str:
    """Returns a formula with numbers in the place of names.

    >>> filled("2(1+beta1)/((1-beta1)*lr)", {"beta1": 0.9, "lr": 3e-4})
    '2(1+0.9)/((1-0.9)*3e-4)'
    """
    def number(match: re.Match[str]) -> str:
        name = match.group()
        if name in FUNCTIONS or name not in values:
            return name
        text = plain(values[name], thousands=False)
        return f"({text})" if text.startswith("-") else text

    return NAME.sub(number, text)


def derivation_of(rule: Rule, formula: str, values: Mapping[str, float], value: float) -> str:
    """Returns one line: every abbreviation the formula needs with its numbers, then the formula with its own."""
    wheres = {where.name: rule.written(where.text, values) for where in rule.where}
    texts = wheres if "q" in wheres else {"q": "", **wheres}
    texts["k"] = ""
    needed = names_in(formula)
    for name in reversed(texts):
        if name in needed:
            needed |= names_in(texts[name])
    parts = []
    for name, text in texts.items():
        if name in needed:
            steps = f"{filled(text, values)} = " if names_in(text) else ""
            parts.append(f"{name} = {steps}{plain(values[name])}")
    return "; ".join([*parts, f"{filled(formula, values)} = {plain(value)}"])
