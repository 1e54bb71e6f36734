"""When an optimizer goes unstable, in closed form: `stability_threshold("adam", lr=3e-4)`. Never imports torch.

The threshold is on the preconditioned sharpness S = lambda_max(P^-1 H): below it an oscillation along the sharpest
direction decays, above it grows. In units of the edge, chi = S/threshold, the edge is 1 whatever the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, overload

from foreshock.errors import UsageError
from foreshock.stability import table
from foreshock.stability.filters import CriticalStep, Filter, critical_step
from foreshock.stability.rule import NEEDED, Decay, Rule
from foreshock.stability.settings import read
from foreshock.stability.wording import derivation_of, plain

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["Threshold", "gain", "optimizers", "stability_threshold"]

FROZEN = "P and H change slowly against the oscillation"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The sharpness at which an optimizer goes unstable, and where the number comes from.

    `value`: the threshold, in the unit of `quantity` (a curvature over a denominator). `gain`: q = Q(-1), the filter's
    gain for an oscillation of period 2. `lr`: the step size that multiplies the filter at this step; `decay`: 1 - a,
    what parameters lose per step by decoupled decay. `period`: steps per oscillation at the threshold, 2 but for
    cascades. `formal`: the step is bounded (sign, polar), so the number is not an alarm. `settings`: all of them, with
    the defaults. `derivation`: the formula with the numbers filled in.
    """

    name: str
    value: float
    quantity: str
    formula: str
    reference: str
    assumptions: tuple[str, ...]
    gain: float
    settings: Mapping[str, float]
    formal: bool = False
    derivation: str = ""
    lr: float = math.nan
    decay: float = 0.0
    period: float = 2.0

    def __str__(self) -> str:
        return f"{self.name}: {self.quantity} < {plain(self.value)} = {self.formula}"


@overload
def stability_threshold(optimizer: str | type | Filter, **settings: object) -> Threshold: ...
@overload
def stability_threshold(optimizer: Optimizer) -> tuple[Threshold, ...]: ...
def stability_threshold(
    optimizer: str | type | Filter | Optimizer, **settings: object
) -> Threshold | tuple[Threshold, ...]:
    """Returns the sharpness at which an optimizer goes unstable: k/lr, k the critical step of its momentum filter.

    With P frozen, decoupled decay a = 1 - lr weight_decay and filter gain q = Q(-1) the threshold on
    S = lambda_max(P^-1 H) is (1 + a)/(lr q), unless the root locus leaves the unit circle elsewhere before.

    Arguments: the name of an optimizer in any spelling, with its settings as torch spells them (torch's defaults fill
    in the rest; `step` counts from 1 and is the step about to be taken); or a class of that name; or a linear `Filter`
    with lr and (decoupled) weight_decay; or a live optimizer, alone: one threshold for each parameter group, for the
    step about to be taken.
    Errors: UsageError for an unknown name or setting, with near ones, and for a value out of range.

    Source: Cohen et al. 2022, arXiv 2207.14484, equation for (2 + 2 beta1)/((1 - beta1) lr); Lee and Lee 2026; each
    row's `reference`.

    >>> threshold = stability_threshold("adam", lr=3e-4, beta1=0.9)
    >>> threshold.derivation
    '2(1+0.9)/((1-0.9)*3e-4) = 126,667'
    >>> [round(stability_threshold("adamw", lr=0.1, weight_decay=w).value) for w in (0, 1, 8)]
    [380, 361, 228]
    """
    if isinstance(optimizer, Filter):
        return _of_filter(optimizer, settings)
    if isinstance(optimizer, type):
        optimizer = optimizer.__name__
    if isinstance(optimizer, str):
        rule, preset = table.find(optimizer)
        return _of_rule(rule, read(rule, preset, settings), maximize=bool(settings.get("maximize")))
    if settings:
        raise UsageError(
            f"a live optimizer brings its own settings; given besides: {', '.join(settings)}. Change them in its "
            "param_groups, or ask by name"
        )
    from foreshock.stability.live import thresholds

    return thresholds(optimizer)


def gain(name: str, **settings: object) -> float:
    """Returns q = Q(-1), the gain of an optimizer's momentum filter for an oscillation of period 2.

    Arguments and errors as for `stability_threshold`; lr is not needed.

    >>> round(gain("adam", betas=(0.9, 0.999)), 6), gain("sgd")
    (0.052632, 1.0)
    """
    rule, preset = table.find(name)
    known = _with_abbreviations(rule, read(rule, preset, settings))
    return rule.filter(known).gain()


def optimizers() -> tuple[str, ...]:
    """Returns the names of the optimizers whose threshold is known in closed form."""
    return table.names()


def _of_filter(filter: Filter, settings: Mapping[str, object]) -> Threshold:
    rule = Rule(
        name="Filter", settings={"lr": NEEDED, "weight_decay": 0.0}, filter=lambda s: filter, formula="{two}/(q*lr)",
        denominator="I", decay=Decay.DECOUPLED, reference="Lee and Lee 2026, The Road Taken (the root locus)",
    )
    return _of_rule(rule, read(rule, {}, settings))


def _of_rule(rule: Rule, settings: dict[str, float], *, maximize: bool = False) -> Threshold:
    if math.isnan(settings["lr"]):
        raise UsageError(f"{rule.name} has no usual lr: give lr=...")
    known = _with_abbreviations(rule, settings)
    filter, step_size, (_, decay), coupled = (
        rule.filter(known), known[rule.step_size], rule.shrinkage(known), rule.coupled(known)
    )
    found = critical_step(filter, decay)
    known["q"], known["k"] = filter.gain(), found.k
    denominator = rule.written(rule.denominator, known)
    subtracted = coupled if denominator == "I" or rule.decay is Decay.DIRECTION else 0.0
    value = (found.k / step_size if step_size else math.inf) - subtracted
    formula = rule.written(rule.formula, known) if found.alternating else f"k/{rule.step_size}"
    if rule.warp:
        value = rule.warp(value, known)
    elif subtracted:
        formula += "-weight_decay"
    return Threshold(
        name=rule.name, value=value,
        quantity=_quantity("-H" if maximize else "H", denominator, coupled - subtracted),
        formula=formula, reference=rule.reference,
        assumptions=(*_assumptions(denominator, found, known), *_of_value(value, step_size), *rule.assumptions(known)),
        gain=known["q"],
        settings=MappingProxyType({name: number for name, number in settings.items() if not math.isnan(number)}),
        formal=rule.formal, derivation=derivation_of(rule, formula, known, value),
        lr=step_size, decay=decay, period=found.period,
    )


def _with_abbreviations(rule: Rule, settings: Mapping[str, float]) -> dict[str, float]:
    known = dict(settings)
    for where in rule.where:
        known[where.name] = where.value(known)
    return known


def _quantity(hessian: str, denominator: str, l2: float) -> str:
    if l2:
        hessian = f"({hessian} + {plain(l2)} I)"
    if denominator == "I":
        return f"lambda_max({hessian})"
    if hessian.startswith("-"):
        hessian = f"({hessian})"
    return f"lambda_max(P^-1 {hessian}), P = {denominator}"


def _of_value(value: float, step_size: float) -> tuple[str, ...]:
    if step_size == 0:
        return ("the step size is 0: nothing moves, and nothing becomes unstable",)
    return ("the weight decay alone overshoots: no step is stable unless H is negative",) if value < 0 else ()


def _assumptions(denominator: str, found: CriticalStep, known: Mapping[str, float]) -> tuple[str, ...]:
    result = ["H changes slowly against the oscillation" if denominator == "I" else FROZEN]
    if math.isinf(found.k):
        result.append("the filter passes nothing at all")
    elif found.k == 0:
        result.append("no step is stable: the decay alone overshoots, or the filter points uphill")
    elif not found.alternating:
        closed = f"; 2/q, the closed form for period 2, would say {plain(2 / known['q'])}" if known["q"] > 0 else ""
        result.append(
            f"the locus leaves the unit circle with period {found.period:.4g} steps, at k = {plain(found.k)}{closed}"
        )
    return tuple(result)
