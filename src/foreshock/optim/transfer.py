"""What becomes of AdamW's learning rate and weight decay under S3, with the reasons in numbers and words.

Two optimizers make steps of different sizes at the same lr, and there is no one factor between them: it depends on what
is to be equal. There are closed forms for three answers,

- "rms": the typical step under noise. For independent Gaussian gradients RMS(u) = sqrt(sum a_k^2)/(E|z|^p)^(1/p), with
  a_k the weights of past gradients in the numerator and a denominator that has settled: .149 for S3(.95, p=3), .229 for
  Adam with beta1 = .9 (measured .1488; AdamW's p is 2);
- "burst": how far a coordinate goes in all after one dominating gradient (`foreshock.bursts`);
- "peak": how far it goes at that gradient.

The typical step is what learning speed at a small lr depends on, so "rms" is the default; the others say how much more
can be had at AdamW's own risk. lr weight_decay, the share that weights lose at each step, is kept in all cases.

The rule itself is derived; SoftSignSGD 2025, arXiv 2507.06464 reports stability at 10 times AdamW's lr and no rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foreshock.bursts import burst_response
from foreshock.errors import UsageError

__all__ = ["Transfer", "adam_rms", "moved", "s3_rms", "transfer"]

USUAL: Mapping[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-2}
"""torch's AdamW."""

ADAMS = (
    "lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "fused", "differentiable", "decoupled_weight_decay",
    "coupled",
)
"""What of Adam's groups means nothing to S3, or something else."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """S3's learning rate and decay in place of AdamW's, and why.

    Attributes:
        lr: what S3 is given; a float, or a tensor where AdamW's is one.
        weight_decay: what S3 is given: AdamW's divided by `factor`.
        factor: lr over AdamW's.
        match: what is equal: "rms", "burst", "peak", or "factor" where that was given.
        rms, burst, peak: factors that would make each of them equal; inf or 0 where one optimizer has no finite one.
        text: all this in words.
    """

    lr: Any
    weight_decay: float
    factor: float
    match: str
    rms: float
    burst: float
    peak: float
    text: str


def transfer(
    settings: Mapping[str, Any],
    *,
    match: str | float = "rms",
    beta: float = 0.95,
    p: float = 3.0,
    beta2: float | None = None,
    nesterov: bool = True,
) -> Transfer:
    """Returns lr and weight decay for S3 in place of those of AdamW.

    Args:
        settings: AdamW's `lr`, `betas` and `weight_decay`; what is missing is as in torch.
        match: "rms", "burst" or "peak", or the factor itself, say 10.
        beta, p, beta2, nesterov: S3's.

    Raises:
        UsageError: a setting or `match` that is none of these; a match that has no finite factor.

    >>> made = transfer({"lr": 3e-4, "weight_decay": 0.1})
    >>> round(made.factor, 2), round(made.lr * made.weight_decay / (3e-4 * 0.1), 6)
    (1.54, 1.0)
    >>> round(made.burst, 2), round(made.peak, 1)
    (7.98, 14.9)
    """
    given = {**USUAL, **settings}
    lr, (beta1, adam2), decay = given["lr"], map(float, given["betas"]), float(given["weight_decay"])
    adam = burst_response("adamw", betas=(beta1, adam2))
    s3 = burst_response("s3", beta=beta, p=p, beta2=beta2, nesterov=nesterov)
    typical = adam_rms(beta1), s3_rms(beta, p, nesterov=nesterov)
    factors = {
        "rms": typical[0] / typical[1],
        "burst": _ratio(adam.displacement, s3.displacement),
        "peak": _ratio(adam.peak, s3.peak),
    }
    if isinstance(match, str):
        if match not in factors:
            raise UsageError(f"match must be one of {', '.join(factors)}, or the factor itself; {match!r} was given")
        factor, how = factors[match], match
    else:
        factor, how = float(match), "factor"
    if not 0 < factor < math.inf:
        raise UsageError(
            f"match={match!r}: the factor would be {factor:g}; {adam.text} {s3.text} Take match='rms', or give a factor"
        )
    return Transfer(
        lr=lr * factor,
        weight_decay=decay / factor,
        factor=factor,
        match=how,
        **factors,
        text=_text(float(lr), decay, factor, how, factors, typical, (adam, s3), given),
    )


def moved(
    source: Any, params: Iterable[Any] | None, match: str | float, settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], tuple[Transfer, ...]]:
    """Returns S3's parameter groups in place of those of an AdamW, and each group's transfer.

    Args:
        source: AdamW or Adam, or its settings.
        params: what to train, where `source` is settings.
        match, settings: as `S3.from_adamw` takes them.
    """
    if "lr" in settings:
        raise UsageError("lr: it is what is transferred; give match, a factor for AdamW's lr, or make S3 itself")
    own = {name: settings[name] for name in ("beta", "p", "beta2", "nesterov") if name in settings}
    groups, transfers = [], []
    for group in _groups(source, params):
        made = transfer(group, match=match, **own)
        kept = {name: value for name, value in group.items() if name not in (*ADAMS, *settings)}
        if "param_names" in kept:
            kept["params"] = list(zip(kept.pop("param_names"), kept["params"], strict=True))
        if "initial_lr" in kept:  # of a schedule under way
            kept["initial_lr"] = kept["initial_lr"] * made.factor
        decay = {} if "weight_decay" in settings else {"weight_decay": made.weight_decay}
        groups.append({**kept, "lr": made.lr, **decay})
        transfers.append(made)
    return groups, tuple(transfers)


def _groups(source: Any, params: Iterable[Any] | None) -> list[dict[str, Any]]:
    """Returns AdamW's parameter groups, whole."""
    if isinstance(source, Mapping):
        given = list(params or ())
        if not given:
            raise UsageError("params: AdamW's settings came without parameters; give these as the second argument")
        parts = given if isinstance(given[0], Mapping) else [{"params": given}]
        return [{**source, **part} for part in parts]
    name = type(source).__name__.lower()
    known = "adam" in name and name not in ("nadam", "adamax")
    if not known or any("betas" not in group for group in source.param_groups):
        raise UsageError(
            f"source is a {type(source).__name__}, and the sizes of steps are known of Adam and AdamW only; make S3 "
            "with the lr and weight_decay that you want"
        )
    if params is not None:
        raise UsageError("params: an optimizer brings its own parameters and groups; leave params out")
    coupled = "adamw" not in name
    return [
        {**group, "coupled": coupled and not group.get("decoupled_weight_decay", False)}
        for group in source.param_groups
    ]


def s3_rms(beta: float, p: float, *, nesterov: bool = True) -> float:
    """Returns the root mean square of S3's step under independent Gaussian gradients, in learning rates.

    sqrt(sum a_k^2)/(E|z|^p)^(1/p): exact for a denominator that averages over many steps. It varies at beta = .95, over
    some 20, so what is measured is 1 % less at p = 3 (.148 for .149) and 3 % at p = 1.

    >>> round(s3_rms(0.95, 3.0), 3), round(s3_rms(0.95, 2.0), 3), round(s3_rms(0.95, 1.0), 3)
    (0.149, 0.174, 0.218)
    """
    if nesterov:
        rest = (1 - beta) * beta**2
        squares = (1 - beta**2) ** 2 + rest**2 / (1 - beta**2)
    else:
        squares = (1 - beta) / (1 + beta)
    log_moment = p / 2 * math.log(2) + math.lgamma((p + 1) / 2) - math.log(math.pi) / 2
    return math.sqrt(squares) / math.exp(log_moment / p)


def adam_rms(beta1: float) -> float:
    """Returns the same of Adam, sqrt((1 - beta1)/(1 + beta1)).

    >>> round(adam_rms(0.9), 3)
    0.229
    """
    return math.sqrt((1 - beta1) / (1 + beta1))


def _ratio(above: float, below: float) -> float:
    return 0.0 if below == math.inf else above / below


def _text(
    lr: float, decay: float, factor: float, how: str, factors: Mapping[str, float], typical: tuple[float, float],
    bursts: Any, given: Mapping[str, Any],
) -> str:  # fmt: skip
    adam, s3 = bursts
    beta1, beta2 = (float(each) for each in given["betas"])
    reason = {
        "rms": "so that the typical step under noise stays what it is",
        "burst": "so that one burst moves a coordinate as far as before in all",
        "peak": "so that one burst moves a coordinate as far as before at once",
        "factor": "as asked for",
    }[how]
    lines = [
        f"lr {lr:g} x {factor:.3g} = {lr * factor:.4g}, {reason}.",
        f"Typical step under noise: Adam({beta1:g}, {beta2:g}) {typical[0]:.3f} lr, S3 {typical[1]:.3f} lr: "
        f"equal at {factors['rms']:.3g} times the lr.",
        f"{adam.text} {s3.text} Equal in all at {factors['burst']:.3g} times the lr, "
        f"at once at {factors['peak']:.3g} times.",
        f"weight_decay {decay:g} / {factor:.3g} = {decay / factor:.4g}: lr x weight_decay stays {lr * decay:.3g}.",
        "S3 warms itself up: its largest step grows to lr over some 1/(1 - beta) steps. A warm-up schedule may stay.",
    ]
    if given.get("coupled") and decay:
        lines.append("Adam had its decay inside of the gradient (L2); S3's is decoupled, so the two are not the same.")
    return " ".join(lines)
