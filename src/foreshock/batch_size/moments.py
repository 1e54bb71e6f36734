"""What a change of the batch does to an optimizer's memory: kept, rescaled by the predicted ratio, or reset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError

__all__ = ["HANDLING", "Undo", "change", "keep", "ratio", "set_item"]

HANDLING = ("keep", "rescale", "reset")

Undo = Callable[[], object]

SQUARES = frozenset({
    "exp_avg_sq", "max_exp_avg_sq", "square_avg", "row_var", "col_var", "variance", "exp_avg_sq_row", "exp_avg_sq_col",
})  # fmt: skip
ROOTS = frozenset({"exp_avg_root", "exp_inf"})  # of which the second moment is a power: S3 and Adamax
VARIANCES = frozenset({"exp_avg_var"})  # AdaBelief's, of noise alone
# what a reset leaves in each; a memory with a name that is not here is taken away, for the optimizer to begin anew
FRESH = dict.fromkeys(
    ("step", "exp_avg", *SQUARES, *ROOTS, *VARIANCES, "momentum_buffer", "grad_avg", "acc_delta"), 0.0
) | {"mu_product": 1.0}


def ratio(tr_sigma: float, g_sq: float, old: float, new: float) -> float:
    """Returns by how much E[g^2] changes with the batch: (|G|^2 + tr Sigma/B_new) / (|G|^2 + tr Sigma/B_old).

    Where |G|^2 is not above 0 it is all noise, and the ratio that of the batches.

    >>> ratio(100.0, 1.0, 10, 1000), ratio(100.0, 0.0, 10, 1000)
    (0.1, 0.01)
    """
    square = max(0.0, g_sq)
    if not tr_sigma >= 0.0 or not square + tr_sigma > 0.0:
        raise UsageError(f"noise: tr Sigma is not negative, nor both it and |G|^2 zero; got {tr_sigma!r} and {g_sq!r}")
    return (square + tr_sigma / new) / (square + tr_sigma / old)


def change(
    optimizer: Optimizer,
    moments: str,
    factor: Callable[[Tensor], float],
    scale: float,
    undo: list[Undo],
) -> tuple[int, list[str]]:
    """Changes the optimizer's memory in place; returns of how many tensors, and what has to be said about it.

    Args:
        optimizer: of any kind.
        moments: one of `HANDLING`.
        factor: of a parameter, the ratio of its second moment.
        scale: B_new / B_old.
        undo: takes what puts each change back, bit for bit.
    """
    touched, said, left = 0, dict[str, None](), dict[str, None]()
    if moments == "keep":
        return 0, []
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param)
            if not state:
                continue
            if moments == "rescale":
                touched += _rescale(state, group, factor(param), scale, undo)
            else:
                touched += _reset(optimizer, param, state, group, undo, left)
    if moments == "rescale" and not touched:
        said[f"{type(optimizer).__name__} keeps no average of squares, or none yet: nothing was rescaled"] = None
    if left:
        said["the whole memory of parameters was taken away where it holds " + ", ".join(left)] = None
    return touched, list(said)


def _rescale(
    state: dict[str, Any], group: Mapping[str, Any], factor: float, scale: float, undo: list[Undo]
) -> int:
    touched = 0
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        by = factor if name in SQUARES else factor**0.5 if name in ROOTS else 1.0 / scale
        if name not in SQUARES | ROOTS | VARIANCES:
            continue
        keep(value, undo)
        if name in SQUARES and group.get("centered") and isinstance(state.get("grad_avg"), Tensor):
            square = state["grad_avg"].square()  # v - gbar^2 is of noise alone, and must not turn negative
            value.sub_(square).clamp_(min=0.0).div_(scale).add_(square)
        else:
            value.mul_(by)
        touched += 1
    return touched


def _reset(
    optimizer: Optimizer, param: Tensor, state: dict[str, Any], group: Mapping[str, Any], undo: list[Undo],
    left: dict[str, None],
) -> int:  # fmt: skip
    fresh: dict[str, float] = dict(FRESH)
    if "sum" in state:  # Adagrad makes it when it is made itself
        fresh["sum"] = float(group.get("initial_accumulator_value", 0.0))
    unknown = [name for name in state if name not in fresh]
    if unknown:
        left.update(dict.fromkeys(unknown))
        optimizer.state.pop(param)
        undo.append(lambda: optimizer.state.__setitem__(param, state))
        return len(state)
    for name, value in list(state.items()):
        if isinstance(value, Tensor):
            keep(value, undo)
            value.fill_(fresh[name])
        elif value is not None:
            set_item(state, name, type(value)(fresh[name]), undo)
    return len(state)


def set_item(holder: dict[str, Any], name: str, value: Any, undo: list[Undo]) -> None:
    """Sets an item, and takes down how it is put back."""
    before = holder[name]
    undo.append(lambda: holder.__setitem__(name, before))
    holder[name] = value


def keep(value: Tensor, undo: list[Undo]) -> None:
    """Takes down how a tensor that is about to be written to is put back, at the price of a copy."""
    with torch.no_grad():
        before = value.clone()
    undo.append(lambda: value.copy_(before))
