"""Schedule-Free optimizers, which evaluate gradients at a point between their iterate and its average."""

from __future__ import annotations

from foreshock.errors import UsageError
from foreshock.stability import filters
from foreshock.stability.group import Group
from foreshock.stability.parts import Parts, fading
from foreshock.stability.registry import Reading
from foreshock.stability.rules.moments import FAST, blended, readings, rectification, root

__all__ = ["schedule", "schedule_free"]


def schedule_free(group: Group) -> list[Reading]:
    """Schedule-Free SGD, AdamW and RAdam (Defazio et al. 2024, arXiv 2405.15682): q = (1 - b) + b c/(2 - c).

    Gradients belong at y, which the package holds in train mode; decay is added to the divided gradient at y, so that
    it moves the threshold on P^-1 H by weight_decay (for c -> 0: Song et al. 2025).
    """
    settings = group.settings
    if settings.get("train_mode") is False:
        raise UsageError("Schedule-Free holds its average in eval mode; call optimizer.train() first: H belongs at y")
    step = settings.get("k", 0) + (1 if group.planned else 0)
    beta, lr, c = schedule(group, ahead=1 if group.planned else 0)
    gain = filters.schedule_free(beta, c).gain()
    shrink = lr * gain * settings.get("weight_decay", 0.0)
    notes = ("H belongs at y, which Schedule-Free optimizers hold in train mode",)
    if "betas" not in settings or not _rectified(group, step):
        ones = [1.0] * len(group.params)
        return readings(group, ones, [0.0] * len(ones), lrs=[lr] * len(ones), gain=gain, decay=shrink, notes=notes)
    beta2, eps = settings["betas"][1], settings["eps"]
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2)
    P, count = root(v, [(1 - beta2**step) ** -0.5] * len(v), [eps] * len(v)), len(v)
    return readings(
        group, P, [eps] * count, lrs=[lr] * count, gain=gain, decay=shrink, fast=1 - beta2 > FAST, notes=notes,
        parts=[Parts(1.0, eps, fading(0.0, beta2, step))] * count,
    )


def schedule(group: Group, *, ahead: int) -> tuple[float, float, float]:
    """Returns (beta, step size, averaging weight c) of the last step, or of the next with `ahead` = 1."""
    settings = group.settings
    beta = settings["betas"][0] if "betas" in settings else settings["momentum"]
    step = settings.get("k", 0) + ahead
    warmup = settings.get("warmup_steps", 0) or 0
    lr = settings["lr"] * (min(1.0, step / warmup) if warmup else 1.0)
    if "RAdam" in type(group.optimizer).__name__:
        lr = settings["lr"] * (_rectified(group, step) or float(not settings.get("silent_sgd_phase", True)))
    most = max(lr, settings.get("lr_max", lr))
    weight = step ** settings.get("r", 0.0) * most ** settings.get("weight_lr_power", 2.0)
    total = settings.get("weight_sum", 0.0) + (weight if ahead else 0.0)
    return beta, lr, weight / total if total > 0 else 0.0


def _rectified(group: Group, step: float) -> float:
    if "RAdam" not in type(group.optimizer).__name__:
        return 1.0
    return rectification(group.settings["betas"][1], step, 4.0)
