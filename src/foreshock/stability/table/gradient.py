"""Thresholds of the optimizers that do not divide: SGD with its momenta, averages of the weights, SAM."""

from __future__ import annotations

import math

from foreshock.errors import UsageError
from foreshock.stability import filters
from foreshock.stability.filters import Filter
from foreshock.stability.rule import NEEDED, Decay, Rule, Settings, Where

__all__ = ["GRADIENT", "SGD", "sgd_filter", "sgd_formula"]

SGD = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}


def sgd_filter(settings: Settings) -> Filter:
    """Returns the filter of torch's SGD: without momentum, dampening has no effect. Errors as torch's."""
    if not settings["momentum"]:
        return filters.identity()
    if settings["nesterov"] and settings["dampening"]:
        raise UsageError(f"nesterov needs dampening = 0, as in torch; given dampening = {settings['dampening']:g}")
    if settings["nesterov"]:
        return filters.nesterov(settings["momentum"])
    return filters.heavy_ball(settings["momentum"], settings["dampening"])


def sgd_formula(settings: Settings) -> str:
    """Returns the threshold of torch's SGD as text."""
    if not settings["momentum"]:
        return "2/lr"
    if settings["nesterov"]:
        return "2(1+momentum)/((1+2*momentum)*lr)"
    return "2(1+momentum)/((1-dampening)*lr)" if settings["dampening"] else "2(1+momentum)/lr"


def _dampened(settings: Settings) -> tuple[str, ...]:
    tau = settings["dampening"]
    if not settings["momentum"] or not 0 < tau < 1:
        return ()
    return (f"torch's first momentum step stores the raw gradient: step 1 is 1/(1-dampening) = {1 / (1 - tau):.4g} "
            "times longer than the filter says",)


def _asgd_step(settings: Settings) -> float:
    done = settings["lambd"] * settings["lr"] * (settings["step"] - 1)
    return settings["lr"] / math.pow(1 + done, settings["alpha"])


def _averaging_weight(settings: Settings) -> float:
    step, power = settings["step"], settings["r"]
    if not math.isnan(settings["c"]):
        return settings["c"]
    if math.isinf(step):
        return 0.0
    return 1 / math.fsum((i / step) ** power for i in range(1, int(step) + 1)) if power else 1 / step


def _schedule_free(settings: Settings) -> tuple[str, ...]:
    return (
        "H and g are taken at y, where the packages hold the parameters in train mode (in eval mode they hold x)",
        "c, the weight of the newest iterate in the average, is step^r/sum(i^r) at a constant lr unless given",
    )


def _sam_edge(settings: Settings) -> float:
    below = sgd_filter(settings).gain() * settings["lr"]
    return (2 / below if below else math.inf) - settings["weight_decay"]


def _sam(edge: float, settings: Settings) -> float:
    if math.isinf(edge):
        return edge
    return 2 * edge / (1 + math.sqrt(1 + 4 * settings["rho"] * edge / settings["grad_norm"]))


GRADIENT = (
    Rule(
        name="SGD", settings=SGD, filter=sgd_filter, formula=sgd_formula, denominator="I", decay=Decay.GRADIENT,
        reference="Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, "
        "arXiv 2103.00065",
        assumptions=_dampened,
        aliases={
            "gd": {}, "momentum": {"momentum": 0.9}, "heavyball": {"momentum": 0.9}, "sgdmomentum": {"momentum": 0.9},
            "nesterov": {"momentum": 0.9, "nesterov": True}, "nag": {"momentum": 0.9, "nesterov": True},
            "sgdnesterov": {"momentum": 0.9, "nesterov": True},
        },
    ),
    Rule(
        name="ASGD", settings={"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "weight_decay": 0.0, "step": 1.0},
        filter=lambda s: filters.identity(), formula="{two}/eta", denominator="I", decay=Decay.GRADIENT,
        step_size="eta", shrink="lambd*eta", where=(Where("eta", "lr/(1+lambd*lr*(step-1))^alpha", _asgd_step),),
        reference="Polyak and Juditsky 1992 as in torch.optim.ASGD: the decay lambd is decoupled, eta falls with steps",
    ),
    Rule(
        name="QHM", settings={"lr": NEEDED, "momentum": 0.999, "nu": 0.7, "weight_decay": 0.0},
        filter=lambda s: filters.qhm(s["nu"], s["momentum"]),
        formula="2(1+momentum)/((1+momentum*(1-2*nu))*lr)", denominator="I", decay=Decay.GRADIENT,
        reference="Ma and Yarats 2019, Quasi-hyperbolic momentum and Adam, arXiv 1810.06801; Lee and Lee 2026",
        synonyms={"beta": "momentum"},
    ),
    Rule(
        name="ScheduleFree",
        settings={"lr": NEEDED, "beta1": 0.9, "weight_decay": 0.0, "c": math.nan, "step": math.inf, "r": 0.0},
        filter=lambda s: filters.schedule_free(s["beta1"], s["c"]),
        formula="2(2-c)/(((2-c)*(1-beta1)+c*beta1)*lr)", denominator="I (SGD) or sqrt(v/(1-beta2^t))+eps (AdamW)",
        decay=Decay.DIRECTION, where=(Where("c", "", _averaging_weight),), assumptions=_schedule_free,
        reference="Song et al. 2025 for c -> 0; the method: Defazio et al. 2024, arXiv 2405.15682; finite c derived",
        aliases={"sgdschedulefree": {}, "adamwschedulefree": {}, "radamschedulefree": {}, "schedulefreesgd": {},
                 "schedulefreeadamw": {}},
        synonyms={"momentum": "beta1", "beta": "beta1", "ckp1": "c"},
    ),
    Rule(
        name="SAM", settings={**SGD, "lr": NEEDED, "rho": 0.05, "grad_norm": 1.0},
        filter=sgd_filter, formula="2*edge/(1+sqrt(1+4*rho*edge/grad_norm))", denominator="I", decay=Decay.GRADIENT,
        where=(Where("edge", lambda s: "2/(q*lr)-weight_decay" if s["weight_decay"] else "2/(q*lr)", _sam_edge),),
        warp=_sam,
        assumptions=lambda s: (f"the gradient norm stays at grad_norm = {s['grad_norm']:g}", *_dampened(s)),
        reference="the method: Foret et al. 2021, arXiv 2010.01412; the threshold is derived, plain SGD below it: "
        "(G/2rho)(sqrt(1+8rho/(lr G))-1)",
    ),
    Rule(
        name="Cascade", settings={"lr": NEEDED, "beta1": 0.7, "beta2": 0.85, "weight_decay": 0.0},
        filter=lambda s: filters.cascade(s["beta1"], s["beta2"]),
        formula="{two}(1+beta1)(1+beta2)/((1-beta1)(1-beta2)*lr)", denominator="I", decay=Decay.DECOUPLED,
        reference="Lee and Lee 2026, The Road Taken (two averages, one after the other)", aliases={"twopole": {}},
    ),
)
