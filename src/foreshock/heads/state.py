"""Optimizer state beside new rows: theirs begins anew, that of the old rows stays as it is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError

SIZES = frozenset(
    {
        "exp_avg_sq", "max_exp_avg_sq", "exp_avg_root", "exp_avg_p", "exp_inf", "exp_avg_var", "max_exp_avg_var",
        "square_avg", "sum", "acc_delta", "row_var", "s",
    }
)  # fmt: skip
"""State that holds sizes of gradients, never negative; all other state by row holds directions."""


@torch.no_grad()
def fresh_state(
    optimizer: torch.optim.Optimizer, head: nn.Module | Iterable[Tensor], new: Iterable[int], *, zero: bool = False
) -> int:
    """Gives new rows fresh state in an optimizer, and returns how many tensors that changed.

    Directions (momentum) become zero. Sizes (second moments) become the mean of the old rows': torch keeps one step
    count for a tensor, so bias correction has long faded when rows come with zeros, and their first updates are
    (1 - beta1) / sqrt(1 - beta2) learning rates long, 3.16 at .9 and .999. The mean bounds the first update by the same
    and makes it shorter wherever the old rows' gradients were not negligible beside the new ones'.

    Args:
        optimizer: of any class whose state by row has the parameter's first dimension.
        head: the layer whose parameters have the rows, or the parameters.
        new: ids of the rows.
        zero: sizes become zero as well.
    """
    ids = sorted(set(new))
    params = list(head.parameters()) if isinstance(head, nn.Module) else list(head)
    changed = 0
    for param in params:
        state = optimizer.state.get(param, {})
        rows = param.shape[0] if param.ndim else 0
        if not rows or ids[-1] >= rows:
            continue
        others = torch.ones(rows, dtype=torch.bool, device=param.device)
        others[ids] = False
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.ndim != param.ndim or value.shape[0] != rows:
                continue
            mean = value[others].double().mean(0) if name in SIZES and not zero and bool(others.any()) else 0.0
            value[ids] = mean.to(value.dtype) if isinstance(mean, Tensor) else mean
            changed += 1
    return changed


@torch.no_grad()
def grown_state(optimizer: torch.optim.Optimizer, old: nn.Parameter, grown: nn.Parameter) -> None:
    """Puts a parameter with more rows in the place of another, with that one's state; the new rows' is fresh.

    Args:
        optimizer: that holds `old` in one of its groups; one that does not is left alone.
        old: (n, ...).
        grown: (m, ...), m >= n, whose first n rows are those of `old`.

    Raises:
        UsageError: the other dimensions differ, or there are fewer rows.
    """
    if old.shape[1:] != grown.shape[1:] or grown.shape[0] < old.shape[0]:
        raise UsageError(f"a parameter of {tuple(old.shape)} cannot grow to {tuple(grown.shape)}: rows alone are added")
    held = False
    for group in optimizer.param_groups:
        for place, param in enumerate(group["params"]):
            if param is old:
                group["params"][place], held = grown, True
    if not held or old not in optimizer.state:
        return
    state, n = optimizer.state.pop(old), old.shape[0]
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim == old.ndim and value.shape[0] == n and value.ndim:
            longer = value.new_zeros(grown.shape[0], *value.shape[1:])
            longer[:n] = value
            state[name] = longer
    optimizer.state[grown] = state
    if grown.shape[0] > n:
        fresh_state(optimizer, [grown], range(n, grown.shape[0]))
