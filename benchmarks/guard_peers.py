"""What others do about spikes, each with the settings that it publishes, behind one interface.

Written here from their papers, since nothing installable serves a raw loop: clipping to 1.0, ZClip (Kumar et al. 2025,
arXiv 2504.02507), AdaGC (Wang et al. 2025, arXiv 2502.11034), StableAdamW (Wortsman et al. 2023, arXiv 2304.13013),
SPAM (Huang et al. 2025, arXiv 2501.06842) and OLMo's skip-step rule (OLMo 2, arXiv 2501.00656). Run as they are
installed, and left out where they are not: `pip install stabilityguard==0.3.0 arc-training==5.2.0.post1`.
"""

from __future__ import annotations

import importlib
import logging
import math
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guard_nets import Task


class Hand:
    """What takes the steps of a training; this one lets everything pass.

    Attributes:
        acts: in how many steps it did anything but take the step.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.acts = 0
        self.open()

    def open(self) -> None:
        """Prepares."""

    def data(self, batches: Iterator[Any]) -> Iterable[Any]:
        """Returns the data as this hand wants them."""
        return batches

    def observe(self, loss: Tensor) -> None:
        """Sees the loss before it is differentiated."""

    def step(self, loss: Tensor) -> None:
        """Takes the step, or does not."""
        self.task.optimizer.step()
        self.task.scheduler.step()

    def close(self) -> None:
        """Ends."""

    def log(self) -> list[str]:
        """Returns what was done, a line each."""
        return []

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.task.model.parameters() if p.grad is not None]


class Clip(Hand):
    """Clips the norm of all gradients to 1."""

    def step(self, loss: Tensor) -> None:
        self.acts += bool(torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0) > 1.0)
        super().step(loss)


class ZClip(Hand):
    """Clips gradients whose norm is 2.5 standard deviations above its moving average (.97), and all to 1."""

    def open(self) -> None:
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def step(self, loss: Tensor) -> None:
        grads = self.gradients()
        norm = torch.nn.utils.get_total_norm(grads).item()
        limit = math.inf
        if len(self.first) < 25:
            self.first.append(norm)
            self.mean = sum(self.first) / len(self.first)
            self.variance = sum((each - self.mean) ** 2 for each in self.first) / len(self.first)
        else:
            deviation = math.sqrt(self.variance) if self.variance >= 0.0 else math.nan
            z = (norm - self.mean) / (deviation + 1e-6)
            if z > 2.5:
                limit = self.mean + 2.5 * deviation * 2.5 / z
                self.acts += 1
            taken = min(norm, limit)
            self.mean = 0.97 * self.mean + 0.03 * taken
            self.variance = 0.97 * self.variance + 0.03 * (taken - self.mean) ** 2
        torch._foreach_mul_(grads, min(1.0, min(limit, 1.0) / (norm + 1e-6)))
        super().step(loss)


class AdaGC(Hand):
    """Clips each tensor's gradient to 1.05 x the moving average (.98) of its norm; all to 1 in the first 100 steps."""

    def open(self) -> None:
        self.norms: list[Tensor] | None = None
        self.count = 0

    def step(self, loss: Tensor) -> None:
        grads = self.gradients()
        self.count += 1
        if self.count <= 100:
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), 1.0)
            norms = torch._foreach_norm(grads)
            self.norms = norms if self.norms is None else [*map(torch.minimum, self.norms, norms)]
        else:
            assert self.norms is not None
            norms = torch._foreach_norm(grads)
            shrink = [(1.05 * usual / norm).clamp(max=1.0) for usual, norm in zip(self.norms, norms, strict=True)]
            torch._foreach_mul_(grads, shrink)
            self.norms = [
                0.98 * usual + 0.02 * norm * less for usual, norm, less in zip(self.norms, norms, shrink, strict=True)
            ]
            self.acts += any(bool(less < 0.5) for less in shrink)  # by half or more: a little is clipped in each step
        super().step(loss)


class _Adam(Optimizer):
    """AdamW, one tensor at a time, with places for others to change it."""

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8})
        self.acts = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                self.update(p, p.grad, state, group)

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], taken: float = 1.0) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"] * taken
        state["step"] += 1
        m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
        p.mul_(1 - lr * group["weight_decay"])
        m.add_(taken * (1 - beta1) * (grad - m))
        v.add_(taken * (1 - beta2) * (grad * grad - v))
        p.sub_(lr / (1 - beta1**t) * m / ((v / (1 - beta2**t)).sqrt() + group["eps"]))


class StableAdamW(_Adam):
    """AdamW whose lr of a tensor is divided by the root mean square of g/sqrt(v) where that is above 1."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], taken: float = 1.0) -> None:
        beta2 = group["betas"][1]
        t = state["step"] + 1
        v = (beta2 * state["exp_avg_sq"] + (1 - beta2) * grad * grad) / (1 - beta2**t)
        rms = (grad * grad / v.clamp(min=group["eps"] ** 2)).mean().sqrt().item()
        self.acts += rms > 2.0
        super().update(p, grad, state, group | {"lr": group["lr"] / max(1.0, rms)})


class Spam(_Adam):
    """Adam with elements of the gradient clipped at sqrt(5000 v), whose moments are forgotten every 500 steps, after
    which lr rises by a cosine over 150 steps. As in the authors' program nothing is clipped in the first 20 steps of a
    period, and the bias correction does not start again."""

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], taken: float = 1.0) -> None:
        total = state["total"] = state.get("total", 0) + 1
        if total % 500 == 0:
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
        since = total % 500 if total >= 500 else 150
        warm = 1.0 if since >= 150 else 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * since / 150))
        if total % 500 >= 20:
            limit = (5000 * state["exp_avg_sq"]).sqrt()
            beyond = grad.abs() > limit
            self.acts += bool(beyond.any())
            grad = torch.where(beyond, grad.sign() * limit, grad)
        super().update(p, grad, state, group | {"lr": group["lr"] * warm})


class SkipStep(_Adam):
    """AdamW whose step is multiplied by 0 where loss or gradient norm is beyond 6 standard deviations of the last 128,
    once there are 64. As published, what is skipped enters the window, and 0 times NaN is NaN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: deque[float] = deque(maxlen=129)
        self.norms: deque[float] = deque(maxlen=129)
        self.taken = 1.0

    def see(self, loss: float, norm: float) -> None:
        self.losses.append(loss)
        self.norms.append(norm)
        self.taken = float(self._usual(self.losses) and self._usual(self.norms))

    @staticmethod
    def _usual(values: deque[float]) -> bool:
        *past, value = values
        if len(past) < 64:
            return True
        deviation, mean = torch.std_mean(torch.tensor(past))
        return abs(value - mean.item()) <= 6.0 * deviation.item()

    def update(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], taken: float = 1.0) -> None:
        super().update(p, grad, state, group, self.taken)


class Changed(Hand):
    """Steps an optimizer that protects itself."""

    def step(self, loss: Tensor) -> None:
        optimizer = self.task.optimizer
        if isinstance(optimizer, SkipStep):
            optimizer.see(loss.item(), torch.nn.utils.get_total_norm(self.gradients()).item())
        before = optimizer.acts  # type: ignore[attr-defined]
        super().step(loss)
        self.acts += optimizer.acts > before or getattr(optimizer, "taken", 1.0) == 0.0  # type: ignore[attr-defined]


class StabilityGuard(Hand):
    """The package of this name with its defaults: skips a step where a layer's gradient is 10 times its average."""

    def open(self) -> None:
        logging.getLogger("stabilityguard").setLevel(logging.CRITICAL)
        self.folder = tempfile.TemporaryDirectory()
        made = importlib.import_module("stabilityguard").GuardedOptimizer
        self.guarded = made(self.task.optimizer, self.task.model, log_dir=self.folder.name, verbose=False)

    def step(self, loss: Tensor) -> None:
        self.guarded.step(loss=loss.item())
        self.task.scheduler.step()
        self.acts = self.guarded.total_skips

    def close(self) -> None:
        self.guarded.close()
        self.folder.cleanup()


class Arc(Hand):
    """The controller of arc-training with its defaults: rolls back and halves the learning rate."""

    def open(self) -> None:
        arc = importlib.import_module("arc")
        logging.getLogger("arc").setLevel(logging.CRITICAL)
        task, quiet = self.task, arc.ControllerConfig(verbose=False)
        self.controller = arc.Controller(task.model, task.optimizer, scheduler=task.scheduler, config=quiet)

    def step(self, loss: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = self.controller.step(loss)
        self.acts += bool(done.should_skip or done.rolled_back or done.lr_reduced)
        if not done.should_skip:
            super().step(loss)


Make = Callable[[nn.Module], Optimizer]


def _with(kind: type[_Adam]) -> Make:
    return lambda net: kind(net.parameters(), 3e-3, (0.9, 0.99), 0.1)


PEERS: dict[str, tuple[type[Hand], Make | None]] = {
    "plain AdamW": (Hand, None),
    "clip 1.0": (Clip, None),
    "ZClip": (ZClip, None),
    "AdaGC": (AdaGC, None),
    "StableAdamW": (Changed, _with(StableAdamW)),
    "SPAM": (Changed, _with(Spam)),
    "OLMo's skip-step": (Changed, _with(SkipStep)),
    "StabilityGuard": (StabilityGuard, None),
    "arc-training": (Arc, None),
}
"""Name -> what takes the steps, and the optimizer it brings along instead of the task's."""

INSTALLED = {"StabilityGuard": "stabilityguard", "arc-training": "arc"}


def available() -> list[str]:
    """Returns the names of the peers that are there."""
    return [name for name in PEERS if name not in INSTALLED or find_spec(INSTALLED[name]) is not None]
