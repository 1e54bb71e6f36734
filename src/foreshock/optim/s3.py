"""S3: sign descent that is soft where gradients disagree, with a step that no gradient history makes larger than lr."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.optim.update import update

__all__ = ["S3"]


class S3(Optimizer):
    """SoftSignSGD (arXiv 2507.06464)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        beta: float = 0.95,
        p: float = 3.0,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        *,
        beta2: float | None = None,
        nesterov: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "beta": beta, "p": p, "eps": eps, "weight_decay": weight_decay, "beta2": beta2,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach, "fused": fused, "capturable": capturable,
            "state_dtype": state_dtype,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one step, and returns what the closure returns where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                state = self.state[param]
                if not state:
                    dtype = group["state_dtype"] or param.dtype
                    state["exp_avg"] = torch.zeros_like(param, dtype=dtype)
                    state["exp_avg_root"] = torch.zeros_like(param, dtype=dtype)
            update(
                params,
                [param.grad for param in params],
                [self.state[param]["exp_avg"] for param in params],
                [self.state[param]["exp_avg_root"] for param in params],
                lr=group["lr"],
                beta=group["beta"],
                beta2=group["beta"] if group["beta2"] is None else group["beta2"],
                p=group["p"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
        return loss
