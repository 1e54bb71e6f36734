"""Optimizers whose step size depends on norms of whole tensors or blocks: Adafactor, LAMB, Adam-mini."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.stability import filters
from foreshock.stability.group import Group, host
from foreshock.stability.parts import Fading, Parts, fading, uncorrected
from foreshock.stability.registry import Reading
from foreshock.stability.rules.moments import FAST, blended, root

__all__ = ["adafactor", "adam_mini", "lamb"]


LAMB_REFUSED = {"caution", "decoupled_decay", "corrected_weight_decay"}
LAMB_SETTINGS = LAMB_REFUSED | {
    "lr", "betas", "eps", "weight_decay", "bias_correction", "grad_averaging", "max_grad_norm", "trust_clip",
    "always_adapt", "use_nvlamb", "step", "initial_lr", "lr_scale",
}  # fmt: skip


def adafactor(group: Group) -> list[Reading]:
    """torch's Adafactor: P = sqrt(V) with V = row col/mean(row) for matrices, clamped at eps1^2; step size alpha_t/d_t.

    alpha_t = max(eps2, RMS(theta)) min(lr, t^-1/2), d_t = max(1, RMS(update)/d); decay by lr itself, not by alpha_t.
    Stored state does not hold the last update: without gradients d_t counts as 1.
    (Shazeer and Stern 2018, arXiv 1804.04235.)
    """
    group.refuse_shards()
    settings = group.settings
    eps1, eps2 = settings["eps"]
    lr, grads = settings["lr"], group.gradients()
    P, floors = [], []
    for place, (param, step) in enumerate(zip(group.params, group.steps, strict=True)):
        least = torch.finfo(param.dtype).eps if eps1 is None else eps1
        moments = _factored(group, place, grads[place] if group.planned else None, step ** settings["beta2_decay"])
        if len(moments) == 2:
            rows, columns = moments
            v = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=least))
        else:
            [v] = moments
        P.append(v.clamp_(min=least * least).sqrt_())
        floors.append(least)
    sizes = host(_rms(param.detach()) for param in group.params)
    updates = host(_rms(grad / each) for grad, each in zip(grads, P, strict=True)) if grads else [1.0] * len(P)
    result = []
    for each, floor, size, update, step in zip(P, floors, sizes, updates, group.steps, strict=True):
        alpha = max(eps2, size) * min(lr, step**-0.5)
        result.append(
            Reading(
                denominator=each,
                lr=alpha / max(1.0, update / settings["d"]),
                decay=lr * settings["weight_decay"],
                floor=floor,
                approximate=step ** settings["beta2_decay"] > FAST,
                notes=()
                if group.planned
                else ("the clipping d_t of the last Adafactor step is not stored: taken as 1",),
            )
        )
    return result


def lamb(group: Group) -> list[Reading]:
    """LAMB: Adam's P over the trust ratio |theta|/|update| of each tensor (You et al. 2019, arXiv 1904.00962).

    Conventions of timm and apex where the group has `bias_correction` (gradients clipped together to `max_grad_norm`,
    the ratio left at 1 without decay unless `always_adapt` or `use_nvlamb`), of pytorch_lamb otherwise (no bias
    correction, norm of the parameter clamped at 10).
    """
    group.refuse_shards()
    settings = group.settings
    ours = settings.keys() <= LAMB_SETTINGS and not any(settings.get(name) for name in LAMB_REFUSED)
    if not ours:
        raise UsageError(
            f"this {type(group.optimizer).__name__} has settings that the known versions of LAMB do not; register a "
            "rule for its class with foreshock.stability.register"
        )
    beta1, beta2 = settings["betas"]
    eps, decay = settings["eps"], settings.get("weight_decay", 0.0)
    corrected = bool(settings.get("bias_correction", False))
    first = [1 - beta1**step if corrected else 1.0 for step in group.steps]
    second = [1 - beta2**step if corrected else 1.0 for step in group.steps]
    shrunk = _clip(group, settings.get("max_grad_norm")) if "bias_correction" in settings else 1.0
    v = blended(group, "exp_avg_sq", beta2, (1 - beta2) * shrunk**2)
    floors = [one * eps for one in first]
    P = root(v, [one / two**0.5 for one, two in zip(first, second, strict=True)], floors)
    m = group.stored("exp_avg")
    if group.planned and m:
        gain = (1 - beta1 if settings.get("grad_averaging", True) else 1.0) * shrunk
        m = [beta1 * old + gain * grad for old, grad in zip(m, group.gradients(), strict=True)]
    updates = [old / each + decay * param.detach() for old, each, param in zip(m, P, group.params, strict=True)]
    norms = host(torch.linalg.vector_norm(each) for each in [*(param.detach() for param in group.params), *updates])
    adapts = (
        decay != 0 or settings.get("always_adapt") or settings.get("use_nvlamb") or "bias_correction" not in settings
    )
    result = []
    for place, (each, floor) in enumerate(zip(P, floors, strict=True)):
        size, update = norms[place], norms[len(P) + place]
        size = size if "bias_correction" in settings else min(size, 10.0)
        trust = size / update if adapts and size > 0 and update > 0 else 1.0
        lr = settings["lr"] * (min(trust, 1.0) if settings.get("trust_clip") else trust)
        scale = filters.ema(beta1) if settings.get("grad_averaging", True) else filters.heavy_ball(beta1)
        result.append(
            Reading(
                denominator=each,
                lr=lr,
                gain=scale.gain() * shrunk,
                decay=lr * decay,
                floor=floor,
                approximate=1 - beta2 > FAST,
                notes=("the trust ratio of LAMB is taken as frozen",),
                correction=first[place],
                parts=Parts(
                    first[place], eps,
                    fading(beta1, beta2, group.steps[place]) if corrected
                    else Fading(beta2, 0.0, uncorrected, uncorrected),
                ),
            )
        )
    return result


def adam_mini(group: Group) -> list[Reading]:
    """Adam-mini: Adam with one v for each block of a tensor (Zhang et al. 2024, arXiv 2406.16793).

    The blocks are the equal runs of entries that the stored v (`vmean`, `v` or `exp_avg_sq`) has one number for.
    """
    group.refuse_shards()
    settings = group.settings
    beta1, beta2 = settings.get("betas") or (settings["beta1"], settings["beta2"])
    eps, decay = settings["eps"], settings["lr"] * settings.get("weight_decay", 0.0)
    grads, result = group.gradients(), []
    for place, (param, state, step) in enumerate(zip(group.params, group.states, group.steps, strict=True)):
        key = next((name for name in ("vmean", "v", "exp_avg_sq") if isinstance(state.get(name), Tensor)), "")
        if not key or param.numel() % max(1, state[key].numel()):
            raise UsageError("the blocks of this Adam-mini are not known before its first step, or not equal runs")
        v = state[key].detach().to(torch.promote_types(param.dtype, torch.float32)).reshape(-1, 1)
        if group.planned:
            v = beta2 * v + (1 - beta2) * grads[place].reshape(len(v), -1).square().mean(dim=1, keepdim=True)
        first = 1 - beta1**step
        P = first * ((v / (1 - beta2**step)).sqrt() + eps)
        result.append(
            Reading(
                denominator=P.repeat(1, param.numel() // max(1, len(v))).reshape(param.shape),
                lr=settings["lr"],
                gain=filters.ema(beta1).gain(),
                decay=decay,
                floor=first * eps,
                approximate=1 - beta2 > FAST,
                correction=first,
                parts=Parts(first, eps, fading(beta1, beta2, step)),
            )
        )
    return result


def _factored(group: Group, place: int, grad: Tensor | None, admit: float) -> Sequence[Tensor]:
    """Returns (row, column) moments of a matrix or (variance,) of a vector, `grad` let in, free to be written to."""
    param, state = group.params[place], group.states[place]
    working = torch.promote_types(param.dtype, torch.float32)
    if param.dim() > 1:
        new = () if grad is None else tuple(grad.square().mean(dim=dim, keepdim=True) for dim in (-1, -2))
        keys: tuple[str, ...] = ("row_var", "col_var")
    else:
        new, keys = () if grad is None else (grad.square(),), ("variance",)
    old = [state[key].detach().to(working) if key in state else torch.zeros_like(new[i]) for i, key in enumerate(keys)]
    if grad is None:
        return [each.clone() for each in old]
    return [one.lerp(two, admit) for one, two in zip(old, new, strict=True)]


def _rms(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / float(max(1, tensor.numel()) ** 0.5)


def _clip(group: Group, most: float | None) -> float:
    """Returns the factor that clips the gradients of a group to a common norm."""
    if most is None or not group.planned or not group.params:
        return 1.0
    [norm] = host([torch.linalg.vector_norm(torch.stack(torch._foreach_norm(group.gradients())))])
    return 1.0 / max(1.0, norm / most)
