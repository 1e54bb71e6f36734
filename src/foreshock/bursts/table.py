"""The table of responses: one rule for each optimizer, found by any spelling of its name."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

from foreshock.bursts import averages, others
from foreshock.bursts.rule import Rule, Settings, geometric, over
from foreshock.errors import UsageError

__all__ = ["RULES", "find", "known"]

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
S3_PAPER = "SoftSignSGD 2025, arXiv 2507.06464"
DERIVED = f"{S3_PAPER} (the question); derived"
PROPORTIONAL = "learning rates times the usual gradient"


def _adam_first(s: Settings) -> float:
    return over(1 - s["beta1"], math.sqrt(1 - s["beta2"]))


def _adam_total(s: Settings) -> float:
    return _adam_first(s) * geometric(averages.slower(s))


def _adam_decay(s: Settings) -> float:
    return s["beta1"] if s["amsgrad"] else averages.slower(s)


def _s3_formulas(s: Settings) -> Mapping[str, str]:
    if s["beta"] != s["beta2"]:
        return {}
    if not s["nesterov"]:
        return {"first": "(1-beta)^(1-1/p)", "displacement": "(1-beta)^(1-1/p)/(1-beta^(1-1/p))", "sup": "1"}
    late = "(1-beta)^(1-1/p)*beta^(2-2/p)/(1-beta^(1-1/p))"
    return {"first": "(1-beta^2)^(1-1/p)", "displacement": f"(1-beta^2)^(1-1/p)+{late}", "sup": "1"}


def _rmsprop_formulas(s: Settings) -> Mapping[str, str]:
    first = "1/sqrt(alpha*(1-alpha))" if s["centered"] else "1/sqrt(1-alpha)"
    total = f"{first}/(1-momentum)" if s["momentum"] else first
    return {"first": first, "displacement": total, **({} if s["centered"] else {"sup": total})}


ADAM_FORMULAS = {
    "first": "(1-beta1)/sqrt(1-beta2)",
    "displacement": "(1-beta1)/sqrt(1-beta2)/(1-beta1/sqrt(beta2))",
    "sup": "(1-beta1)/sqrt((1-beta2)*(1-beta1^2/beta2))",
}
AVERAGES = (
    Rule(
        name="Adam", settings={**ADAM, "amsgrad": False},
        course=lambda s, burst: (averages.amsgrad if s["amsgrad"] else averages.adam)(s, burst),
        decay=lambda s: s["beta1"] if s["amsgrad"] else averages.slower(s), fade=averages.fade,
        first=_adam_first, displacement=lambda s: _adam_first(s) * geometric(_adam_decay(s)),
        sup=averages.adam_sup, reference=DERIVED,
        formulas=lambda s: {**ADAM_FORMULAS, **({"displacement": "1/sqrt(1-beta2)"} if s["amsgrad"] else {})},
        aliases={
            "amsgrad": {"amsgrad": True}, "adamw": {}, "sparseadam": {}, "adam8bit": {}, "adamw8bit": {},
            "pagedadam": {}, "pagedadamw": {}, "pagedadamw8bit": {}, "fusedadam": {}, "fusedadamw": {},
            "deepspeedcpuadam": {}, "adamwfp8": {}, "adamw4bit": {}, "adamwscale": {},
        },
    ),
    Rule(
        name="Adamax", settings=ADAM, course=averages.adamax, decay=lambda s: over(s["beta1"], s["beta2"]),
        fade=averages.fade, first=lambda s: 1 - s["beta1"],
        displacement=lambda s: (1 - s["beta1"]) * geometric(over(s["beta1"], s["beta2"])), sup=averages.adamax_sup,
        formulas=lambda s: {"first": "1-beta1", **dict.fromkeys(("displacement", "sup"), "(1-beta1)/(1-beta1/beta2)")},
        reference=DERIVED,
    ),
    Rule(
        name="NAdam", settings={**ADAM, "momentum_decay": 4e-3}, course=averages.nadam, decay=averages.slower,
        fade=averages.fade, first=lambda s: _adam_first(s) * (1 + s["beta1"]),
        displacement=lambda s: _adam_first(s) * (1 + s["beta1"] * geometric(averages.slower(s))),
        sup=averages.nadam_sup, reference=DERIVED,
        formulas=lambda s: {
            "first": "(1-beta1^2)/sqrt(1-beta2)",
            "displacement": "(1-beta1)/sqrt(1-beta2)*(1+beta1/(1-beta1/sqrt(beta2)))",
        },
    ),
    Rule(
        name="RAdam", settings=ADAM, course=averages.radam, decay=averages.slower, fade=averages.fade,
        first=_adam_first, displacement=_adam_total, sup=averages.radam_sup, formulas=lambda s: ADAM_FORMULAS,
        reference=DERIVED,
    ),
    Rule(
        name="LAMB", settings=ADAM, course=averages.adam, decay=averages.slower, fade=averages.fade,
        first=_adam_first, displacement=_adam_total, sup=averages.adam_sup, formulas=lambda s: ADAM_FORMULAS,
        unit="learning rates times the trust ratio", reference=f"{DERIVED}; You et al. 2019, arXiv 1904.00962",
        aliases={"fusedlamb": {}},
    ),
    Rule(
        name="AdamMini", settings=ADAM, course=averages.adam, decay=averages.slower, fade=averages.fade,
        first=_adam_first, displacement=_adam_total, sup=averages.adam_sup, formulas=lambda s: ADAM_FORMULAS,
        reference=f"{DERIVED}, for a burst of a whole block; Zhang et al. 2024, arXiv 2406.16793",
    ),
    Rule(
        name="Padam", settings={**ADAM, "p": 0.125}, course=averages.padam, fade=averages.fade,
        decay=lambda s: over(s["beta1"], s["beta2"] ** s["p"]), sup=lambda s, step: math.inf,
        power=lambda s: 1 - 2 * s["p"], unit=PROPORTIONAL, shown=("beta1", "beta2", "p"),
        reference="Chen et al. 2018, arXiv 1806.06763 (the method); derived",
    ),
    Rule(
        name="QHAdam", settings={**ADAM, "nu": 0.7, "nu2": 1.0}, course=averages.qhadam, fade=averages.fade,
        decay=averages.slower, first=lambda s: over(
            1 - s["nu"] * s["beta1"], math.sqrt(1 - s["nu2"] * s["beta2"])
        ),
        sup=averages.qhadam_sup, shown=("beta1", "beta2", "nu"),
        formulas=lambda s: {"first": "(1-nu*beta1)/sqrt(1-nu2*beta2)"},
        reference="Ma and Yarats 2019, arXiv 1810.06801 (the method); derived",
    ),
    Rule(
        name="AdEMAMix", settings={**ADAM, "beta3": 0.9999, "alpha": 5.0}, course=averages.ademamix,
        decay=lambda s: over(max(s["beta1"], s["beta3"] if s["alpha"] else 0.0), math.sqrt(s["beta2"])),
        fade=lambda s: max(s["beta1"], s["beta3"]), sup=averages.ademamix_sup,
        first=lambda s: over(1 - s["beta1"] + s["alpha"] * (1 - s["beta3"]), math.sqrt(1 - s["beta2"])),
        formulas=lambda s: {"first": "(1-beta1+alpha*(1-beta3))/sqrt(1-beta2)"}, shown=("beta1", "beta2", "beta3"),
        reference="Pagliardini et al. 2024, arXiv 2409.03137 (the method); derived",
    ),
    Rule(
        name="S3", settings={"beta": 0.95, "p": 3.0, "beta2": math.nan, "nesterov": True, "eps": 1e-12},
        course=averages.s3, decay=lambda s: over(s["beta"], s["beta2"] ** (1 / s["p"])), fade=lambda s: s["beta"],
        first=averages.s3_first, displacement=averages.s3_total, sup=averages.s3_sup,
        formulas=_s3_formulas,
        reference=DERIVED, aliases={"softsignsgd": {}}, shown=("beta", "p"),
    ),
)
OTHERS = (
    Rule(
        name="RMSprop", settings={"alpha": 0.99, "momentum": 0.0, "centered": False, "eps": 1e-8},
        course=others.rmsprop, decay=lambda s: s["momentum"], fade=lambda s: s["momentum"],
        first=lambda s: 1 / math.sqrt((1 - s["alpha"]) * (s["alpha"] if s["centered"] else 1.0)),
        displacement=lambda s: 1 / math.sqrt((1 - s["alpha"]) * (s["alpha"] if s["centered"] else 1.0))
        / (1 - s["momentum"]), sup=others.rmsprop_sup, shown=("alpha", "momentum"), reference=DERIVED,
        formulas=_rmsprop_formulas,
    ),
    Rule(
        name="Adagrad", settings={"eps": 1e-10}, course=others.adagrad, first=lambda s: 1.0,
        displacement=lambda s: 1.0, sup=lambda s, step: 1.0, shown=(), reference=DERIVED,
    ),
    Rule(
        name="Adadelta", settings={"rho": 0.9, "eps": 1e-6}, course=others.adadelta, sup=others.adadelta_sup,
        first=others.adadelta_sup, displacement=others.adadelta_sup, unit="usual moves", shown=("rho",),
        formulas=lambda s: {"first": "1/sqrt(1-rho)", "displacement": "1/sqrt(1-rho)", "sup": "1/sqrt(1-rho)"},
        reference="Zeiler 2012, arXiv 1212.5701 (the method); derived",
    ),
    Rule(
        name="Adafactor", settings={"d": 1.0, "beta2_decay": -0.8}, course=others.adafactor, shown=("d",),
        first=others.adafactor_sup, displacement=others.adafactor_sup, sup=others.adafactor_sup,
        unit="relative steps of the tensor", reference="Shazeer and Stern 2018, arXiv 1804.04235 (the method); derived",
    ),
    Rule(
        name="AdaBelief", settings={**ADAM, "eps": 1e-16}, course=others.adabelief, decay=averages.slower,
        fade=averages.fade, first=lambda s: over(_adam_first(s), s["beta1"]), sup=lambda s, step: math.inf,
        formulas=lambda s: {"first": "(1-beta1)/(beta1*sqrt(1-beta2))"},
        reference="Zhuang et al. 2020, arXiv 2010.07468 (the method); derived",
    ),
    Rule(
        name="Yogi", settings={**ADAM, "eps": 1e-3}, course=others.yogi, decay=averages.fade, fade=averages.fade,
        first=_adam_first, displacement=lambda s: over(1.0, math.sqrt(1 - s["beta2"])),
        formulas=lambda s: {"first": "(1-beta1)/sqrt(1-beta2)", "displacement": "1/sqrt(1-beta2)"},
        reference="Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization (the method); derived",
    ),
    Rule(
        name="Adan", settings={"beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8}, course=others.adan,
        decay=others.adan_decay, fade=lambda s: max(s["beta1"], s["beta2"]), sup=others.adan_sup,
        first=lambda s: (1 - s["beta1"] + s["beta2"] * (1 - s["beta2"])) / (1 + s["beta2"]) / math.sqrt(1 - s["beta3"]),
        formulas=lambda s: {"first": "(1-beta1+beta2*(1-beta2))/((1+beta2)*sqrt(1-beta3))"},
        shown=("beta1", "beta2", "beta3"),
        reference="Xie et al. 2022, arXiv 2208.06677 (the method); derived",
    ),
    Rule(
        name="Lion", settings={"beta1": 0.9, "beta2": 0.99}, course=others.lion, fade=lambda s: s["beta2"],
        decay=lambda s: 1.0 if s["beta1"] * s["beta2"] else 0.0, first=lambda s: 1.0, sup=lambda s, step: 1.0,
        reference="Chen et al. 2023, arXiv 2302.06675 (the method); derived",
    ),
    Rule(
        name="SignSGD", settings={"momentum": 0.0}, course=others.signsgd, fade=lambda s: s["momentum"],
        decay=lambda s: 1.0 if s["momentum"] else 0.0, first=lambda s: 1.0, sup=lambda s, step: 1.0,
        shown=("momentum",), aliases={"signum": {"momentum": 0.9}},
        reference="Bernstein et al. 2018, arXiv 1802.04434 (the method); derived",
    ),
    Rule(
        name="SGD", settings={"momentum": 0.0, "dampening": 0.0, "nesterov": False}, course=others.sgd,
        decay=lambda s: s["momentum"], fade=lambda s: s["momentum"], sup=lambda s, step: math.inf,
        power=lambda s: 1.0, unit=PROPORTIONAL, shown=("momentum",), reference="derived",
        aliases={"heavyball": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True},
                 "nag": {"momentum": 0.9, "nesterov": True}, "asgd": {}},
    ),
    Rule(
        name="QHM", settings={"momentum": 0.9, "nu": 0.7}, course=others.qhm, decay=lambda s: s["momentum"],
        fade=lambda s: s["momentum"], sup=lambda s, step: math.inf, power=lambda s: 1.0, unit=PROPORTIONAL,
        shown=("momentum", "nu"), reference="Ma and Yarats 2019, arXiv 1810.06801 (the method); derived",
    ),
)


RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in (*AVERAGES, *OTHERS)})
# Names of classes that are written otherwise than their rule.
WRITTEN = {"adamw": "AdamW", "amsgrad": "AMSGrad", "signum": "Signum", "softsignsgd": "S3", "asgd": "ASGD"}
# Known, but without a response of their own: name -> the reason.
WITHOUT = {
    "lbfgs": "L-BFGS searches for the length of each step: a gradient alone does not say how far it goes",
    "sam": "SAM takes its gradient elsewhere, then steps with another optimizer: ask for that one",
}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_FOUND = {
    key: (rule, preset)
    for rule in RULES.values()
    for key, preset in ((_key(rule.name), {}), *rule.aliases.items())
}


def known() -> tuple[str, ...]:
    """Returns the names of all rules, in the order of the table."""
    return tuple(RULES)


def find(name: str) -> tuple[str, Rule, Settings]:
    """Returns (how it is written, its rule, the settings that the name stands for).

    Capitals, hyphens, underscores and spaces do not matter. Errors: UsageError with near names for an unknown one.

    >>> find("amsgrad")[0], find("adam_w")[1].name
    ('AMSGrad', 'Adam')
    """
    key = _key(name)
    if key in _FOUND:
        rule, preset = _FOUND[key]
        written = WRITTEN.get(key) or (rule.name if key == _key(rule.name) or preset else name)
        return written, rule, preset
    if key in WITHOUT:
        raise UsageError(f"{name!r} has no response to a burst: {WITHOUT[key]}")
    near = difflib.get_close_matches(key, _FOUND, n=3)
    meant = f"did you mean {' or '.join(repr(other) for other in near)}? " if near else ""
    raise UsageError(
        f"{name!r} is no optimizer whose response is known in closed form; {meant}known: {', '.join(RULES)}. One of "
        "another kind is measured: burst_response(optimizer) of a live one"
    )
