"""The table of thresholds: one rule for each optimizer, found by any spelling of its name. Never imports torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType

from foreshock.errors import UsageError
from foreshock.stability.rule import Rule
from foreshock.stability.table.adaptive import ADAPTIVE
from foreshock.stability.table.bounded import BOUNDED
from foreshock.stability.table.gradient import GRADIENT
from foreshock.stability.table.stepwise import STEPWISE

__all__ = ["RULES", "find", "names"]

RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.name: rule for rule in (*GRADIENT, *ADAPTIVE, *STEPWISE, *BOUNDED)}
)
# Known, but without a threshold: name -> the reason.
WITHOUT = {
    "lbfgs": "L-BFGS finds its step length and its metric anew at each step: there is no filter and no threshold",
}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_FOUND = {
    key: (rule, preset)
    for rule in RULES.values()
    for key, preset in ((_key(rule.name), {}), *rule.aliases.items())
}


def names() -> tuple[str, ...]:
    """Returns the names of all rules, in the order of the table."""
    return tuple(RULES)


def find(name: str) -> tuple[Rule, Mapping[str, float]]:
    """Returns the rule of an optimizer, and the settings its name stands for ("nesterov": momentum .9, nesterov).

    Capitals, hyphens, underscores and spaces do not matter. Errors: UsageError with near names for an unknown name.
    """
    key = _key(name)
    if key in _FOUND:
        return _FOUND[key]
    if key in WITHOUT:
        raise UsageError(f"{name!r} has no threshold: {WITHOUT[key]}")
    near = difflib.get_close_matches(key, _FOUND, n=3)
    meant = f"did you mean {' or '.join(repr(other) for other in near)}? " if near else ""
    raise UsageError(
        f"{name!r} is no optimizer in the table; {meant}known: {', '.join(RULES)}. A live optimizer of another kind: "
        "stability_threshold(optimizer); a linear filter: stability_threshold(filter, lr=...)"
    )
