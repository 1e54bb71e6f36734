"""Slow, obvious versions of the free signals: one tensor at a time, in float64, from copies taken around the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_MOMENT = {"exp_avg_sq": "exp_avg_sq", "square_avg": "square_avg", "sum": "sum"}


def second_moments(optimizer: Optimizer, params: Sequence[Tensor]) -> list[Tensor | None]:
    """Returns a float64 copy of each tensor's second moment, None where the optimizer has none yet."""
    found: list[Tensor | None] = []
    for param in params:
        state = optimizer.state.get(param, {})
        keys = [key for key in _MOMENT if key in state]
        found.append(state[keys[0]].detach().double().clone() if keys else None)
    return found


class Reference:
    """Computes the signals of one step after another; call `before`, then step the optimizer, then `after`."""

    def __init__(self, named: Sequence[tuple[str, Tensor]], optimizer: Optimizer) -> None:
        self.names = [name for name, _ in named]
        self.params = [param for _, param in named]
        self.optimizer = optimizer
        self.group = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.last: list[Tensor] | None = None
        self.steps = 0

    def before(self) -> None:
        self.theta = [param.detach().double().clone() for param in self.params]
        self.v = second_moments(self.optimizer, self.params)

    def after(self) -> dict[str, float]:
        self.steps += 1
        grads = [torch.zeros_like(p).double() if p.grad is None else p.grad.detach().double().clone()
                 for p in self.params]
        now = [param.detach().double() for param in self.params]
        signals: dict[str, float] = {}
        self._norms(signals, "grad_norm", grads)
        self._norms(signals, "param_norm", now)
        moved = [new - old for new, old in zip(now, self.theta, strict=True)]
        self._norms(signals, "update_norm", moved)
        for name, delta in zip(self.names, moved, strict=True):
            signals[f"update_rms/{name}"] = float(delta.norm()) / math.sqrt(delta.numel())
        total = sum(delta.numel() for delta in moved)
        signals["update_rms"] = signals["update_norm"] / math.sqrt(total)
        if self.last is not None:
            dots = [float((a * b).sum()) for a, b in zip(grads, self.last, strict=True)]
            sizes = [float(a.norm() * b.norm()) for a, b in zip(grads, self.last, strict=True)]
            for name, dot, size in zip(self.names, dots, sizes, strict=True):
                if size:
                    signals[f"grad_cosine/{name}"] = dot / size
            whole = math.sqrt(sum(float(g.square().sum()) for g in grads))
            before = math.sqrt(sum(float(g.square().sum()) for g in self.last))
            signals["grad_cosine"] = sum(dots) / (whole * before)
        self.last = grads
        self._moments(signals, grads)
        return signals

    def _norms(self, signals: dict[str, float], name: str, tensors: Sequence[Tensor]) -> None:
        for tensor_name, tensor in zip(self.names, tensors, strict=True):
            signals[f"{name}/{tensor_name}"] = float(tensor.norm())
        signals[name] = math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))

    def _moments(self, signals: dict[str, float], grads: Sequence[Tensor]) -> None:
        new = second_moments(self.optimizer, self.params)
        ratios, growths, steps = [], [], []
        falling, all_of_them = 0, 0
        for name, param, theta, g, old, v in zip(
            self.names, self.params, self.theta, grads, self.v, new, strict=True
        ):
            if v is None:
                continue
            group: dict[str, Any] = self.group[id(param)]
            eps, kind = group["eps"], type(self.optimizer).__name__
            decay = 0.0 if group.get("decoupled_weight_decay") or kind == "AdamW" else group.get("weight_decay", 0.0)
            seen = (-g if group.get("maximize") else g) + decay * theta
            keep = group["betas"][1] if "betas" in group else group.get("alpha", group.get("rho", 1.0))
            corrected = "betas" in group
            if float(v.sum()) == 0:
                continue
            if old is not None and float(old.norm()) > 0:
                signals[f"v_ratio/{name}"] = float(v.norm() / old.norm())
                growths.append((float(v.square().sum()), float(old.square().sum())))
                if keep < 1:
                    all_of_them += v.numel()
                    falling += v.numel() if signals[f"v_ratio/{name}"] < keep**0.9 else 0
            if old is not None and self.steps > 1:
                bias = 1 - keep ** (self.steps - 1) if corrected else 1.0
                ratio = seen.square() / torch.clamp(old / bias, min=eps**2 / bias)
                signals[f"grad_sq_over_v_mean/{name}"] = float(ratio.mean())
                signals[f"grad_sq_over_v_max/{name}"] = float(ratio.max())
                ratios.append(ratio.flatten())
            bias = 1 - keep**self.steps if corrected else 1.0
            if kind != "Adadelta" and not group.get("centered") and not group.get("amsgrad"):
                size = group["lr"] / (math.sqrt(float(v.mean()) / bias) + eps)
                signals[f"effective_step/{name}"] = size
                steps.append(size)
        if ratios:
            signals["grad_sq_over_v_mean"] = float(torch.cat(ratios).mean())
            signals["grad_sq_over_v_max"] = float(torch.cat(ratios).max())
        if all_of_them:
            signals["v_free"] = falling / all_of_them
        if growths:
            signals["v_ratio"] = math.sqrt(sum(a for a, _ in growths) / sum(b for _, b in growths))
        if steps:
            signals["effective_step"] = max(steps)
