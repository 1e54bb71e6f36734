"""Thresholds of methods with a matrix denominator, and the formal ones of methods whose step is bounded by lr."""

from __future__ import annotations

import math

from foreshock.stability import filters
from foreshock.stability.filters import Filter
from foreshock.stability.rule import NEEDED, Decay, Rule, Settings, Where
from foreshock.stability.table.adaptive import ADAM, EMA_FORMULA, averaged, fast_denominator
from foreshock.stability.table.gradient import SGD, sgd_filter

__all__ = ["BOUNDED"]

FORMAL = (
    "formal: the step is bounded by lr whatever the gradient, so nothing diverges at this threshold; watch the "
    "norm-matched sharpness S_N/|g|_* against 2/lr instead"
)
_UNEQUAL = (
    "formal: with beta2 = beta the step is bounded by lr; with another beta2 by a few lr (burst_response says how many)"
)
ISLAMOV = "Islamov et al. 2026, arXiv 2603.05002 (norm-matched sharpness); the frozen form is derived"


def _formal(settings: Settings) -> tuple[str, ...]:
    return (FORMAL,)


def _muon_step(settings: Settings) -> float:
    rows, columns = settings["rows"], settings["columns"]
    if settings["match_rms_adamw"]:
        return settings["lr"] * 0.2 * math.sqrt(max(rows, columns))
    return settings["lr"] * math.sqrt(max(1.0, rows / columns))


def _muon_filter(settings: Settings) -> Filter:
    mu = settings["momentum"]
    return filters.mix(1 - mu, mu, mu) if settings["nesterov"] else filters.ema(mu)


def _muon_formula(settings: Settings) -> str:
    mixed = "(1+2*momentum)*" if settings["nesterov"] else ""
    return f"{{two}}(1+momentum)/((1-momentum)*{mixed}eta)"


def _s3_filter(settings: Settings) -> Filter:
    beta = settings["beta"]
    return filters.mix(1 - beta, beta, beta) if settings["nesterov"] else filters.ema(beta)


def _s3_formula(settings: Settings) -> str:
    mixed = "(1+2*beta)*" if settings["nesterov"] else ""
    return f"{{two}}(1+beta)/((1-beta)*{mixed}lr)"


def _s3_denominator(settings: Settings) -> str:
    if not settings["nesterov"]:
        return "s^(1/p)+eps"
    name = "beta" if math.isnan(settings["beta2"]) else "beta2"
    return f"({name} s+(1-{name})|g|^p)^(1/p)+eps"


def _s3_remarks(settings: Settings) -> tuple[str, ...]:
    beta2 = settings["beta2"]
    if math.isnan(beta2):
        return FORMAL, *(each.replace("beta2", "beta") for each in fast_denominator({"beta2": settings["beta"]}))
    return _UNEQUAL, *fast_denominator(settings)


def _shampoo_formula(settings: Settings) -> str:
    if settings["nesterov"] and settings["momentum"]:
        return "2(1+momentum)/((1+2*momentum)*eta)"
    return "2(1+momentum)/((1-dampening)*eta)" if settings["momentum"] else "2/eta"


BOUNDED = (
    Rule(
        name="Shampoo", settings={**SGD, "lr": 0.1, "grafting": 1.0}, filter=sgd_filter, formula=_shampoo_formula,
        step_size="eta", where=(Where("eta", "lr*grafting", lambda s: s["lr"] * s["grafting"]),),
        denominator="L^1/4 (x) R^1/4", decay=Decay.GRADIENT,
        assumptions=lambda s: (f"grafting multiplies the tensor's step by {s['grafting']:g}",),
        reference="Gupta et al. 2018, arXiv 1802.09568 (the method); arXiv 2207.14484 with a block P, derived",
    ),
    Rule(
        name="SOAP", settings={**ADAM, "lr": 3e-3, "beta1": 0.95, "beta2": 0.95, "weight_decay": 1e-2},
        filter=averaged, formula=EMA_FORMULA, decay=Decay.DECOUPLED, assumptions=fast_denominator,
        denominator="(1-beta1^t) Q(sqrt(v/(1-beta2^t))+eps)Q' in the Kronecker eigenbasis Q",
        reference="Vyas et al. 2024, arXiv 2409.11321 (the method); Adam's threshold, arXiv 2207.14484, with a block P",
    ),
    Rule(
        name="S3",
        settings={"lr": NEEDED, "beta": 0.95, "p": 3.0, "weight_decay": 0.0, "beta2": NEEDED, "nesterov": True},
        filter=_s3_filter, formula=_s3_formula, denominator=_s3_denominator,
        decay=Decay.DECOUPLED, formal=True, assumptions=_s3_remarks,
        reference="SoftSignSGD 2025, arXiv 2507.06464 (the method); Lee and Lee 2026 (the filter, NAdam's limit)",
        aliases={"softsignsgd": {}},
    ),
    Rule(
        name="Lion", settings={"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
        filter=lambda s: filters.lion(s["beta1"], s["beta2"]), formula="{two}(1+beta2)/((1+beta2-2*beta1)*lr)",
        denominator="|beta1 m+(1-beta1)g|", decay=Decay.DECOUPLED, formal=True, assumptions=_formal,
        reference=f"Chen et al. 2023, arXiv 2302.06675 (the method); {ISLAMOV}",
    ),
    Rule(
        name="Muon",
        settings={
            "lr": 1e-3, "momentum": 0.95, "nesterov": True, "weight_decay": 0.1, "rows": 1.0, "columns": 1.0,
            "match_rms_adamw": False,
        },
        filter=_muon_filter, formula=_muon_formula, step_size="eta",
        where=(
            Where("eta", lambda s: "lr*0.2*sqrt(max(rows,columns))" if s["match_rms_adamw"]
                  else "lr*sqrt(max(1,rows/columns))", _muon_step),
        ),
        denominator="(MM')^1/2 (x) I, M the averaged gradient before it is made orthogonal", decay=Decay.DECOUPLED,
        formal=True, assumptions=_formal,
        reference=f"Jordan et al. 2024 (the method); Chen et al. 2026 (the stochastic edge); {ISLAMOV}",
    ),
    Rule(
        name="SignSGD", settings={"lr": NEEDED, "momentum": 0.0, "weight_decay": 0.0},
        filter=lambda s: filters.ema(s["momentum"]), formula="{two}(1+momentum)/((1-momentum)*lr)",
        denominator="|m|, m the averaged gradient", decay=Decay.DECOUPLED, formal=True, assumptions=_formal,
        reference=f"Bernstein et al. 2018, arXiv 1802.04434 (the method); {ISLAMOV}",
        aliases={"signum": {"momentum": 0.9}},
    ),
    Rule(
        name="Rprop", settings={"lr": 1e-2}, filter=lambda s: filters.identity(), formula="2/lr", denominator="|g|",
        formal=True, assumptions=lambda s: (FORMAL, "lr stands for the step size that Rprop keeps for each coordinate"),
        reference=f"Riedmiller and Braun 1993 (the method); {ISLAMOV}",
    ),
)
