"""The curvature along the last step, from two gradients: no product with the Hessian, no pass of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.probes.base import Moment, Signals, Step
from foreshock.probes.plan import COPY_LIMIT
from foreshock.probes.planned import about_to_be_consumed, consumed
from foreshock.stability.twins import parameters

EVERY = 16  # steps from one secant to the next: two steps' worth of copies for each
SAME = 0.5  # |cosine| of the two gradients, below which they are of different batches and say nothing of curvature


class Secant:
    """Measures `chi_secant` = s'(g_{t+1} - g_t) / (s' W^-1 s) of the step s = theta_{t+1} - theta_t, now and then.

    That is at every 16th step. The edge is 1, as of chi, which it never exceeds where H is constant: it says nothing
    before the motion along the unstable direction makes up most of the step. W^-1 s is not computed: with s = -lr u/P,
    u the filtered gradient, s' W^-1 s = -2 s.u/q, q the filter's gain at -1 (decoupled decay, lr wd theta of the step,
    is neglected). 0 where the two gradients are hardly alike, as those of different batches are; absent for optimizers
    whose u is not kept in their state.

    Source: run TL of the notes on Bai et al. 2025, arXiv 2506.04805: 29 of 31 spikes, 1 to 3 steps before the loss has
    doubled.
    """

    name = "secant"

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._step: list[Tensor] = []
        self._gradient: list[Tensor] = []
        self._size: Tensor | None = None  # s' W^-1 s
        self._found: dict[str, Tensor | float] = {}

    def observe(self, moment: Moment) -> bool:
        """Does nothing: losses say nothing here."""
        return False

    def before(self, moment: Moment) -> bool:
        """Closes the secant that the step before has opened, and copies the parameters where the next one begins."""
        self._found, self._before = {}, []
        if self._size is not None:
            self._close(moment.optimizer)
        params = parameters(moment.optimizer)
        if moment.number % EVERY == 0 and _filter(moment.optimizer) and _bytes(params) <= COPY_LIMIT:
            self._before = [param.detach().clone() for param in params]
        return False

    def heard(self, kind: str, step: int) -> None:
        """Does nothing."""

    def __call__(self, step: Step) -> Signals:
        """Returns the secant that has just been closed; opens the next."""
        if self._before and step.found_inf is None:  # a step that a scaler may have vetoed is not asked about
            self._open(step.optimizer)
        return self._found

    def _open(self, optimizer: Optimizer) -> None:
        params, grads = parameters(optimizer), consumed(optimizer)
        gain = _filter(optimizer)
        directions = [_direction(optimizer, param, grad) for param, grad in zip(params, grads, strict=True)]
        live = [
            (param, old, grad, along)
            for param, old, grad, along in zip(params, self._before, grads, directions, strict=True)
            if grad is not None and along is not None and not grad.is_sparse and not grad.is_complex()
        ]
        if not live or len(live) < sum(grad is not None for grad in grads):
            return
        self._step = [param.detach() - old for param, old, _, _ in live]
        self._size = -2.0 / gain * _dot(self._step, [along for *_, along in live])
        self._gradient = [grad.clone() for _, _, grad, _ in live]

    def _close(self, optimizer: Optimizer) -> None:
        now = [grad for grad in about_to_be_consumed(optimizer) if grad is not None]
        size, self._size = self._size, None
        if size is None or [each.shape for each in now] != [each.shape for each in self._gradient]:
            return
        rise = _dot(self._step, list(torch._foreach_sub(now, self._gradient)))
        cosine = _dot(now, self._gradient).abs() / (_dot(now, now) * _dot(self._gradient, self._gradient)).sqrt()
        known = (cosine >= SAME) & (size > 0)
        self._found = {"chi_secant": torch.where(known, rise / size, 0.0)}
        self._step, self._gradient = [], []

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: a secant that a checkpoint cuts in two is left out."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Forgets an open secant."""
        self._size = None


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    products = [torch.dot(a.reshape(-1), b.reshape(-1)).double() for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()


def _filter(optimizer: Optimizer) -> float:
    """Returns the gain at -1 of the momentum filter, 0 where u is not known or groups differ in it."""
    gains = {_gain(type(optimizer).__name__, group) for group in optimizer.param_groups}
    return gains.pop() if len(gains) == 1 else 0.0


def _gain(kind: str, group: Mapping[str, Any]) -> float:
    if group.get("maximize") or group.get("nesterov"):
        return 0.0
    if kind in ("Adam", "AdamW"):
        beta1 = float(group["betas"][0])
        return (1 - beta1) / (1 + beta1)
    if kind == "SGD":
        momentum = float(group["momentum"])
        return (1 - float(group["dampening"])) / (1 + momentum) if momentum else 1.0
    if kind == "RMSprop" and not group["momentum"]:
        return 1.0
    return 0.0


def _direction(optimizer: Optimizer, param: Tensor, grad: Tensor | None) -> Tensor | None:
    """Returns u: what the optimizer divides by P and multiplies by -lr."""
    state = optimizer.state.get(param, {})
    if grad is None:
        return None
    for key in ("exp_avg", "momentum_buffer"):
        kept = state.get(key)
        if isinstance(kept, Tensor):
            return kept if kept.shape == param.shape else None
    return grad


def _bytes(params: list[Tensor]) -> int:
    return sum(param.numel() * param.element_size() for param in params)
