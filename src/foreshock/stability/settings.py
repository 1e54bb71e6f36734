"""An optimizer's settings as numbers: pairs unpacked, names and ranges checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import SupportsFloat

from foreshock.errors import UsageError
from foreshock.stability.rule import Rule, Settings

__all__ = ["HARMLESS", "read"]

# What a torch parameter group or its state may hold without moving any threshold: accepted for every rule, any value.
HARMLESS = frozenset({
    "params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable", "maximize", "step",
    "eps", "eps1", "t0", "initial_accumulator_value", "etas", "step_sizes", "ns_coefficients", "ns_steps",
    "state_dtype",
})
PAIRS = {
    "betas": ("beta1", "beta2", "beta3"), "nus": ("nu", "nu2"), "eps": ("eps1", "eps2"), "shape": ("rows", "columns"),
}
BELOW_ONE = frozenset({"beta", "beta1", "beta2", "beta3", "momentum"})
UP_TO_ONE = frozenset({"c", "rho", "mu_product"})
ANY_SIGN = frozenset({"dampening", "beta2_decay", "r", "nu", "nu2", "alpha"})


def read(rule: Rule, preset: Settings, given: Mapping[str, object]) -> dict[str, float]:
    """Returns all settings of a rule as numbers: its defaults, what its name stands for, and what was given.

    `given` is spelled as torch spells it: betas=(.9, .999) or beta1=.9; shape=(rows, columns) and adjust_lr_fn for
    Muon. What is None counts as not given. Settings without a default stay NaN.
    Errors: UsageError for a name the rule does not know, and for a value that is no number or out of range.
    """
    settings = {**rule.settings, **preset}
    for name, value in _flat(given):
        place = rule.synonyms.get(name, name)
        if value is None or (place not in rule.settings and name in HARMLESS):
            continue
        if place not in rule.settings:
            near = difflib.get_close_matches(name, rule.settings, n=2)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"{rule.name} has no setting {name!r}; {meant}known: {', '.join(rule.settings)}")
        settings[place] = _number(rule, place, value)
    return settings


def _flat(given: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in given.items():
        if name == "betas" and value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
            raise UsageError(f"betas is a pair such as (0.9, 0.999), or beta1=...; given {value!r}")
        if name in PAIRS and isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) > len(PAIRS[name]):
                raise UsageError(f"{name} has at most {len(PAIRS[name])} numbers; given {value!r}")
            yield from zip(PAIRS[name], value, strict=False)
        elif name == "adjust_lr_fn":
            if value not in (None, "original", "match_rms_adamw"):
                raise UsageError(f"adjust_lr_fn is 'original' or 'match_rms_adamw'; given {value!r}")
            yield "match_rms_adamw", value == "match_rms_adamw"
        else:
            yield name, value


def _number(rule: Rule, name: str, value: object) -> float:
    if isinstance(rule.settings[name], bool):
        if value not in (False, True):
            raise UsageError(f"{rule.name}: {name} is True or False; given {value!r}")
        return bool(value)
    if not isinstance(value, SupportsFloat) or isinstance(value, bool):
        raise UsageError(f"{rule.name}: {name} must be a number; given {value!r}")
    number = float(value)
    allowed = _allowed(rule, name)
    low, high = RANGES[allowed]
    inside = low <= number < high if allowed == "at least 0 and below 1" else low <= number <= high
    if not inside or (math.isinf(number) and name != "step"):
        raise UsageError(f"{rule.name}: {name} must be {allowed}; given {number:g}")
    return number


RANGES = {
    "at least 0 and below 1": (0.0, 1.0),
    "between 0 and 1": (0.0, 1.0),
    "a finite number": (-math.inf, math.inf),
    "at least 1": (1.0, math.inf),
    "at least 0": (0.0, math.inf),
}


def _allowed(rule: Rule, name: str) -> str:
    if name in BELOW_ONE or (name == "alpha" and rule.name == "RMSprop"):
        return "at least 0 and below 1"
    if name in UP_TO_ONE and rule.name != "SAM":
        return "between 0 and 1"
    if name in ANY_SIGN:
        return "a finite number"
    return "at least 1" if name == "step" else "at least 0"
