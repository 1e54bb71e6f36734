"""The denominators by which an Adam-like optimizer divides gradients, for noise scales in its own coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WARM = 5  # steps after which second moments are worth dividing by


def inverse_squares(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor] | None:
    """Returns 1 / (sqrt(vhat) + eps)^2 of every parameter, by its name, from the state before the step.

    v is that of earlier gradients, so that it does not depend on the noise that is measured. Coordinates that have
    never had a gradient count for nothing; a parameter without a state, for what it is.

    Args:
        optimizer: with second moments, as Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad and S3 have them.
        names: of the parameters, by id.

    Returns:
        None where the optimizer has no second moments, or took fewer than 5 steps.

    Source: Qiao et al. 2021 (Pollux), arXiv 2008.12260, and its code.
    """
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param)
            if not state or id(param) not in names:
                continue
            root = _root(state, group)
            if root is None:
                return None
            inverse = (root + float(group.get("eps", 0.0))).square_().reciprocal_()
            found[names[id(param)]] = inverse.masked_fill_(root == 0.0, 0.0)
    return found or None


def _root(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """Returns sqrt(vhat), fresh; None where there is none, or it is not warm."""
    if "exp_avg_root" in state:  # S3's, in root space: no step count
        return state["exp_avg_root"].detach().float().clone()  # type: ignore[no-any-return]
    moment = next((state[name] for name in ("exp_avg_sq", "square_avg", "sum") if name in state), None)
    step = float(state.get("step", WARM))
    if not isinstance(moment, Tensor) or step < WARM:
        return None
    root = moment.detach().float().sqrt()
    betas = group.get("betas")
    if "exp_avg_sq" in state and betas is not None:
        root = root / (1.0 - float(betas[1]) ** step) ** 0.5
    if not bool(torch.isfinite(root.sum())) or not bool((root > 0).any()):
        return None
    return root
