"""Thresholds that change from step to step, or whose momentum is corrected outside of the denominator."""

from __future__ import annotations

import math

from foreshock.stability import filters
from foreshock.stability.filters import Filter
from foreshock.stability.rule import Decay, Rule, Settings, Where
from foreshock.stability.table.adaptive import ADAM, EMA_FORMULA, averaged, fast_denominator

__all__ = ["STEPWISE", "nadam_momentum", "nadam_product", "rectification"]

NEGLIGIBLE = 1e-20  # a product of momenta this small changes no digit of the filter
LENGTH_OF_A_REAL_AVERAGE = 5.0  # RAdam divides from rho_t > 5 on (Liu et al. 2019, algorithm 2, as torch has it)
UNCORRECTED = "sqrt(v/(1-beta2^t))+eps"


def nadam_momentum(step: float, beta1: float = 0.9, momentum_decay: float = 4e-3) -> float:
    """Returns torch NAdam's momentum at a step, m_t = beta1 (1 - .5 * .96^(t momentum_decay)); step counts from 1.

    >>> round(nadam_momentum(1), 4), nadam_momentum(math.inf)
    (0.4501, 0.9)
    """
    return beta1 * (1 - 0.5 * math.pow(0.96, step * momentum_decay if momentum_decay else 0.0))


def nadam_product(step: float, beta1: float = 0.9, momentum_decay: float = 4e-3) -> float:
    """Returns M_t = m_1 m_2 ... m_t, zero where it no longer matters."""
    product, i = 1.0, 0
    while i < step and product > NEGLIGIBLE:
        i += 1
        product *= nadam_momentum(i, beta1, momentum_decay)
    return product if i >= step else 0.0


def rectification(step: float, beta2: float = 0.999) -> float | None:
    """Returns RAdam's r_t, or None where rho_t <= 5 and the step is not divided at all; step counts from 1.

    >>> [rectification(5), *(round(rectification(t), 3) for t in (6, 20, 1000))]
    [None, 0.026, 0.085, 0.645]
    """
    most = 2 / (1 - beta2) - 1
    left = beta2**step
    length = most if left == 0 else most - 2 * step * left / (1 - left)
    if length <= LENGTH_OF_A_REAL_AVERAGE:
        return None
    return math.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))


def _momentum(settings: Settings, later: int = 0) -> float:
    return nadam_momentum(settings["step"] + later, settings["beta1"], settings["momentum_decay"])


def _product(settings: Settings) -> float:
    if not math.isnan(settings["mu_product"]):
        return settings["mu_product"]
    return nadam_product(settings["step"], settings["beta1"], settings["momentum_decay"])


def _nadam_filter(settings: Settings) -> Filter:
    return filters.nadam(settings["m"], settings["m1"], settings["M"], settings["beta1"])


def _nadam(settings: Settings) -> tuple[str, ...]:
    if math.isinf(settings["step"]):
        return ("the limit of many steps: with momentum_decay 0.004 half of it is reached after 6000, and that of "
                "step 100 is a quarter of it; give the step about to be taken", *fast_denominator(settings))
    return (f"the momentum of step {settings['step']:g} stays as it is while the oscillation lasts",
            *fast_denominator(settings))


def _radam(settings: Settings) -> str:
    r = rectification(settings["step"], settings["beta2"])
    if r is None:
        return f"(1-beta1^t)I, as rho_t <= 5 at t = {settings['step']:g}"
    return f"(1-beta1^t)(sqrt(v)+eps)/(sqrt(1-beta2^t) r_t), r_t = {r:.4g}"


def _adafactor_step(settings: Settings) -> float:
    relative = min(settings["lr"], 1 / math.sqrt(settings["step"]))
    clip = max(1.0, settings["update_rms"] / settings["d"])
    return max(settings["eps2"], settings["rms"]) * relative / clip


STEPWISE = (
    Rule(
        name="NAdam",
        settings={
            **ADAM, "lr": 2e-3, "momentum_decay": 4e-3, "step": math.inf, "mu_product": math.nan,
            "decoupled_weight_decay": False,
        },
        filter=_nadam_filter, formula="{two}/(q*lr)",
        denominator=UNCORRECTED, decay=Decay.FLAG, assumptions=_nadam,
        where=(
            Where("m", "beta1*(1-0.5*0.96^(step*momentum_decay))", _momentum),
            Where("m1", "beta1*(1-0.5*0.96^((step+1)*momentum_decay))", lambda s: _momentum(s, later=1)),
            Where("M", "", _product),
            Where("q", "(1-m)/(1-M)+m1/(1-M*m1)*(1-beta1)/(1+beta1)", lambda s: _nadam_filter(s).gain()),
        ),
        reference="Lee and Lee 2026, The Road Taken (the limit, 13.57 at beta1 .9); the form at step t follows "
        "torch.optim.NAdam, M being the product of m up to t",
    ),
    Rule(
        name="RAdam",
        settings={**ADAM, "step": math.inf, "decoupled_weight_decay": False}, filter=averaged, formula=EMA_FORMULA,
        denominator=_radam, decay=Decay.FLAG, assumptions=fast_denominator,
        reference="Liu et al. 2019, arXiv 1908.03265 (r_t); the threshold is Adam's, arXiv 2207.14484",
    ),
    Rule(
        name="Adafactor",
        settings={
            "lr": 1e-2, "weight_decay": 0.0, "step": 1.0, "rms": 1.0, "update_rms": 1.0, "d": 1.0, "eps2": 1e-3,
            "beta2_decay": -0.8,
        },
        filter=lambda s: filters.identity(), formula="{two}/eta", step_size="eta", decay=Decay.DECOUPLED,
        denominator="sqrt(vhat), vhat = row*col/mean(row) for matrices",
        where=(
            Where("eta", "max(eps2,rms)*min(lr,1/sqrt(step))/max(1,update_rms/d)", _adafactor_step),
        ),
        assumptions=lambda s: (
            f"the tensor's RMS is rms = {s['rms']:g}, and its update's before clipping is update_rms = "
            f"{s['update_rms']:g}: each tensor has a threshold of its own",
        ),
        reference="Shazeer and Stern 2018, arXiv 1804.04235, as in torch.optim.Adafactor; Lee and Lee 2026",
    ),
    Rule(
        name="QHAdam", settings={**ADAM, "nu": 0.7, "nu2": 1.0, "step": math.inf},
        filter=lambda s: filters.mix(1 - s["nu"], s["c"], s["beta1"]),
        formula="2(1+beta1)/(((1-nu)*(1+beta1)+c*(1-beta1))*lr)",
        where=(Where("c", "nu/(1-beta1^step)", lambda s: s["nu"] / (1 - s["beta1"] ** s["step"])),),
        denominator="sqrt(nu2 v/(1-beta2^t)+(1-nu2)g^2)+eps", decay=Decay.GRADIENT, assumptions=fast_denominator,
        synonyms={"nu1": "nu"},
        reference="Ma and Yarats 2019, arXiv 1810.06801; Lee and Lee 2026",
    ),
    Rule(
        name="AdEMAMix",
        settings={**ADAM, "beta3": 0.9999, "alpha": 5.0, "step": math.inf},
        filter=lambda s: s["c"] * filters.ema(s["beta1"]) + s["alpha"] * filters.ema(s["beta3"]),
        formula="{two}/((c*(1-beta1)/(1+beta1)+alpha*(1-beta3)/(1+beta3))*lr)",
        where=(Where("c", "1/(1-beta1^step)", lambda s: 1 / (1 - s["beta1"] ** s["step"])),),
        denominator=UNCORRECTED, decay=Decay.DECOUPLED, assumptions=fast_denominator,
        reference="Pagliardini et al. 2024, arXiv 2409.03137 (the method); Lee and Lee 2026 (mixtures of averages)",
    ),
)
