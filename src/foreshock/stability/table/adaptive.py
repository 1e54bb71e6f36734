"""Thresholds of the optimizers that divide by a running size of each gradient coordinate, on S = lambda_max(P^-1 H)."""

from __future__ import annotations

from foreshock.stability import filters
from foreshock.stability.filters import Filter
from foreshock.stability.rule import Decay, Rule, Settings, Where

__all__ = ["ADAM", "ADAM_DENOMINATOR", "ADAPTIVE", "EMA_FORMULA", "averaged", "fast_denominator"]

ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0}
ADAM_DENOMINATOR = "(1-beta1^t)(sqrt(v/(1-beta2^t))+eps)"
EMA_FORMULA = "{two}(1+beta1)/((1-beta1)*lr)"
AEOS = "Cohen et al. 2022, Adaptive Gradient Methods at the Edge of Stability, arXiv 2207.14484"
ROAD = "Lee and Lee 2026, The Road Taken"
FAST = 0.05  # measured on a small net: with 1-beta2 of .001/.01/.1/.5, chi settles at .99/1.00/1.06/1.16


def averaged(settings: Settings) -> Filter:
    """Returns Adam's filter: an exponential average, whose bias correction is part of P."""
    return filters.ema(settings["beta1"])


def fast_denominator(settings: Settings) -> tuple[str, ...]:
    """Returns a remark where the denominator is too fast to count as frozen."""
    name = "alpha" if "centered" in settings else "beta2"
    loss = 1 - settings[name]
    if loss <= FAST + 1e-12:
        return ()
    return (f"approximate: 1-{name} = {loss:.3g} is above .05, so P follows the oscillation and S settles higher",)


def _rmsprop(settings: Settings) -> tuple[str, ...]:
    return (
        "v has no bias correction: over the first steps P is up to 1/sqrt(1-alpha) times too small, and S starts above "
        "the threshold", *fast_denominator(settings),
    )


def _amsgrad(settings: Settings) -> str:
    return ADAM_DENOMINATOR.replace("v", "vmax") if settings.get("amsgrad") else ADAM_DENOMINATOR


ADAPTIVE = (
    Rule(
        name="RMSprop",
        settings={"lr": 1e-2, "alpha": 0.99, "momentum": 0.0, "centered": False, "weight_decay": 0.0},
        filter=lambda s: filters.heavy_ball(s["momentum"]),
        formula=lambda s: "2(1+momentum)/lr" if s["momentum"] else "2/lr",
        denominator=lambda s: "sqrt(v-gavg^2)+eps" if s["centered"] else "sqrt(v)+eps",
        decay=Decay.GRADIENT, reference=AEOS, assumptions=_rmsprop,
    ),
    Rule(
        name="Adagrad", settings={"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "step": 1.0},
        filter=lambda s: filters.identity(), formula="2/clr", denominator="sqrt(sum)+eps", decay=Decay.GRADIENT,
        step_size="clr",
        where=(Where("clr", "lr/(1+(step-1)*lr_decay)", lambda s: s["lr"] / (1 + (s["step"] - 1) * s["lr_decay"])),),
        reference=ROAD,
    ),
    Rule(
        name="Adadelta", settings={"lr": 1.0, "rho": 0.9, "weight_decay": 0.0},
        filter=lambda s: filters.identity(), formula="2/lr", denominator="sqrt(v+eps)/sqrt(acc_delta+eps)",
        decay=Decay.GRADIENT, reference="Zeiler 2012, arXiv 1212.5701 (the method); derived",
        assumptions=lambda s: ("lr multiplies a step that has the unit of the parameters: torch's default is 1",),
    ),
    Rule(
        name="Adam", settings={**ADAM, "amsgrad": False, "decoupled_weight_decay": False}, filter=averaged,
        formula=EMA_FORMULA, denominator=_amsgrad, decay=Decay.FLAG, reference=AEOS, assumptions=fast_denominator,
        aliases={"amsgrad": {"amsgrad": True}, "sparseadam": {}, "adam8bit": {}},
    ),
    Rule(
        name="AdamW", settings={**ADAM, "weight_decay": 1e-2, "amsgrad": False}, filter=averaged,
        formula=EMA_FORMULA, denominator=_amsgrad, decay=Decay.DECOUPLED, assumptions=fast_denominator,
        reference=f"{AEOS}; the decay's share -weight_decay(1+beta1)/(1-beta1) is derived", aliases={"adamw8bit": {}},
    ),
    Rule(
        name="Adamax", settings={**ADAM, "lr": 2e-3}, filter=averaged, formula=EMA_FORMULA,
        denominator="(1-beta1^t)u, u = max(beta2 u, |g|+eps)", decay=Decay.GRADIENT, reference=AEOS,
    ),
    Rule(
        name="Padam", settings={**ADAM, "lr": 0.1, "p": 0.125}, filter=averaged, formula=EMA_FORMULA,
        denominator=lambda s: f"v^{s['p']:g}", decay=Decay.GRADIENT, reference=ROAD, assumptions=fast_denominator,
        synonyms={"partial": "p"},
    ),
    Rule(
        name="AdaBelief", settings=ADAM, filter=averaged, formula=EMA_FORMULA, decay=Decay.DECOUPLED,
        denominator="(1-beta1^t)(sqrt(s/(1-beta2^t))+eps), s the average of (g-m)^2+eps",
        reference=f"{AEOS}; Zhuang et al. 2020, arXiv 2010.07468 (the denominator)", assumptions=fast_denominator,
    ),
    Rule(
        name="Yogi", settings={**ADAM, "lr": 1e-2}, filter=averaged, formula=EMA_FORMULA, decay=Decay.GRADIENT,
        denominator="(1-beta1^t)(sqrt(v/(1-beta2^t))+eps), v moved by (1-beta2) sign(v-g^2) g^2",
        reference=f"{AEOS}; Zaheer et al. 2018 (the denominator)", assumptions=fast_denominator,
    ),
    Rule(
        name="AdamMini", settings={**ADAM, "weight_decay": 0.0}, filter=averaged, formula=EMA_FORMULA,
        denominator="(1-beta1^t)(sqrt(v/(1-beta2^t))+eps), one v for each block", decay=Decay.DECOUPLED,
        reference=f"{AEOS}; Zhang et al. 2024, arXiv 2406.16793 (the blocks)", assumptions=fast_denominator,
    ),
    Rule(
        name="LAMB", settings={**ADAM, "trust_ratio": 1.0}, filter=averaged, formula=EMA_FORMULA,
        denominator="(1-beta1^t)(sqrt(v/(1-beta2^t))+eps)/trust_ratio", decay=Decay.DECOUPLED,
        shrink="lr*trust_ratio*weight_decay", reference=f"{AEOS}; You et al. 2019, arXiv 1904.00962 (the trust ratio)",
        assumptions=lambda s: ("P of a tensor is divided by its own trust ratio", *fast_denominator(s)),
    ),
)
