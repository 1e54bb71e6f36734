"""An optimizer's settings as numbers: pairs unpacked, names and ranges checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import SupportsFloat

from foreshock.bursts.rule import Rule, Settings
from foreshock.errors import UsageError

__all__ = ["label", "read"]

# What a parameter group may hold without any bearing on the response, for every rule and with any value.
HARMLESS = frozenset({
    "lr", "weight_decay", "decoupled_weight_decay", "params", "param_names", "initial_lr", "foreach", "fused",
    "capturable", "differentiable", "maximize", "eps", "lr_decay", "initial_accumulator_value", "lambd", "alpha", "t0",
    "decoupled", "weight_decouple", "fixed_decay", "name", "initial_accumulator", "state_dtype",
})  # fmt: skip
PAIRS = {"betas": ("beta1", "beta2", "beta3"), "nus": ("nu", "nu2")}
SYNONYMS = {"nu1": "nu", "partial": "p"}
RANGES = {
    "at least 0 and below 1": (0.0, math.nextafter(1.0, 0.0)),
    "between 0 and 1": (0.0, 1.0),
    "at least 1": (1.0, math.inf),
    "above 0 and at most 0.5": (math.nextafter(0.0, 1.0), 0.5),
    "at most 0": (-math.inf, 0.0),
    "at least 0": (0.0, math.inf),
    "a finite number": (-math.inf, math.inf),
}
ALLOWED = {
    **dict.fromkeys(("beta", "beta1", "beta2", "beta3", "momentum", "rho"), "at least 0 and below 1"),
    "nu2": "between 0 and 1", "nu": "between 0 and 1", "beta2_decay": "at most 0", "dampening": "a finite number",
}  # fmt: skip


def read(rule: Rule, preset: Settings, given: Mapping[str, object]) -> dict[str, float]:
    """Returns all settings of a rule as numbers: its usual ones, what its name stands for, and what was given.

    `given` is spelled as torch spells it: betas=(.9, .999) or beta1=.9. What is None counts as not given.
    Errors: UsageError for a name that the rule does not know, and for a value that is no number or out of range.
    """
    settings = {**rule.settings, **preset}
    for name, value in _flat(given):
        place = SYNONYMS.get(name, name)
        if value is None or (place not in settings and name in HARMLESS):
            continue
        if place not in settings:
            near = difflib.get_close_matches(name, settings, n=2)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"{rule.name} has no setting {name!r}; {meant}known: {', '.join(settings)}")
        settings[place] = _number(rule, place, value)
    if "beta" in settings and math.isnan(settings["beta2"]):
        settings["beta2"] = settings["beta"]
    return settings


def _flat(given: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in given.items():
        if name in PAIRS and value is not None:
            if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > len(PAIRS[name]):
                raise UsageError(f"{name} is a pair such as (0.9, 0.999), or {PAIRS[name][0]}=...; given {value!r}")
            yield from zip(PAIRS[name], value, strict=False)
        elif name == "eps" and isinstance(value, Sequence) and not isinstance(value, str):
            continue  # those of Adafactor and its like, which hold up nothing but a gradient of zero
        else:
            yield name, value


def _number(rule: Rule, name: str, value: object) -> float:
    if isinstance(rule.settings[name], bool):
        if value not in (False, True):
            raise UsageError(f"{rule.name}: {name} is True or False; given {value!r}")
        return bool(value)
    if not isinstance(value, SupportsFloat) or isinstance(value, (bool, str)):
        raise UsageError(f"{rule.name}: {name} must be a number; given {value!r}")
    number, allowed = float(value), _allowed(rule, name)
    low, high = RANGES[allowed]
    if not low <= number <= high or math.isinf(number):
        raise UsageError(f"{rule.name}: {name} must be {allowed}; given {number:g}")
    return number


def _allowed(rule: Rule, name: str) -> str:
    if name == "p":
        return "at least 1" if rule.name == "S3" else "above 0 and at most 0.5"
    if name == "alpha" and rule.name == "RMSprop":
        return "at least 0 and below 1"
    return ALLOWED.get(name, "at least 0")


def label(written: str, rule: Rule, preset: Settings, settings: Settings) -> str:
    """Returns an optimizer as one would write it down: name, betas, and what else tells two of them apart.

    >>> from foreshock.bursts.table import RULES
    >>> label("S3", RULES["S3"], {}, {**RULES["S3"].settings, "beta2": 0.999, "nesterov": False})
    'S3(0.95, p=3, beta2=0.999, no nesterov)'
    """
    parts, usually = [], {**rule.settings, **(preset if written != rule.name else {})}
    for name in rule.shown:
        positional = name.startswith("beta")
        if settings[name] or positional or name == "alpha":
            parts.append(f"{settings[name]:g}" if positional else f"{name}={settings[name]:g}")
    for name, value in settings.items():
        usual = settings["beta"] if name == "beta2" and "beta" in settings else usually[name]
        if name in rule.shown or name == "eps" or value == usual:
            continue
        parts.append((name if value else f"no {name}") if isinstance(usual, bool) else f"{name}={value:g}")
    return f"{written}({', '.join(parts)})" if parts else written
