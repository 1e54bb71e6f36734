"""The trainings that the forecast is judged on: which network, optimizer, batch and disturbance, and how each is run.

Two sets with no network family and no seed in common: `dev`, on whose traces the detector may be tuned, and `held-out`.
A case is a pure function of its seed, so that it can be trained again to the same bits, also from a snapshot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, NAdam, Optimizer, RMSprop

import forecast_nets as nets
from forecast_nets import Batch, Problem

Build = Callable[[Iterable[Tensor]], Optimizer]
DEV, HELD_OUT = "dev", "held-out"
BURST = 300.0
SEEDS = {DEV: (0, 1), HELD_OUT: (10, 11)}


@dataclass(frozen=True, slots=True)
class Case:
    """One training.

    Attributes:
        name: for tables and folders.
        split: "dev" or "held-out".
        group: what it was chosen to show: "spikes" by curvature, the "edge" without spikes, "calm", or "noise".
        problem: makes the network and its data, from torch's global stream.
        optimizer: parameters -> optimizer.
        steps: optimizer steps.
        batch: samples drawn for each step, without replacement within a step; None for all of them.
        disturbance: "labels" (a batch with targets of another scale or class), "burst" (gradients 300 times as long),
            or "" for none; from outside the training, so its spikes are noise.
        at: steps that are disturbed.
        lr: factor on the learning rate at a step.
    """

    name: str
    split: str
    group: str
    problem: Callable[[], Problem]
    optimizer: Build
    steps: int
    batch: int | None = None
    disturbance: str = ""
    at: tuple[int, ...] = ()
    lr: Callable[[int], float] | None = None

    @property
    def drawn(self) -> bool:
        """Whether the loss at hand is that of a batch, which is noisy by itself."""
        return self.batch is not None


class Training:
    """A case with a seed, ready to be stepped."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.problem = case.problem()
        self.model = self.problem.model
        self.optimizer = case.optimizer(self.model.parameters())
        generator = torch.Generator().manual_seed(seed + 1000)
        n = len(self.problem.data[0])
        drawn = case.steps if case.batch else 0
        self._rows = [torch.randperm(n, generator=generator)[: case.batch] for _ in range(drawn)]
        self._base = [group["lr"] for group in self.optimizer.param_groups]

    def batch(self, step: int) -> Batch:
        """Returns the data of a step, disturbed where the case says so."""
        inputs, targets = self.problem.data
        if self._rows:
            inputs, targets = inputs[self._rows[step]], targets[self._rows[step]]
        if self.case.disturbance == "labels" and step in self.case.at:
            if targets.is_floating_point():
                return inputs, -4.0 * targets
            return inputs, (targets + 1 + torch.arange(targets.numel()).view_as(targets) % 3) % (int(targets.max()) + 1)
        return inputs, targets

    def loss(self, step: int) -> Tensor:
        """Returns the loss of a step with its graph."""
        return self.problem.loss(self.batch(step))

    def whole(self) -> float:
        """Returns the loss over all the data, undisturbed."""
        with torch.no_grad():
            return float(self.problem.loss(self.problem.data))

    def advance(self, step: int, observe: Callable[..., object] | None = None, cut: float = 1.0) -> float:
        """Takes one step, as a loop would write it; returns the loss. `cut` multiplies the learning rate."""
        factor = cut * (self.case.lr(step) if self.case.lr is not None else 1.0)
        for group, lr in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = lr * factor
        batch = self.batch(step)
        loss = self.problem.loss(batch)
        if observe is not None:
            if self.case.drawn:
                observe(loss, closure=self.problem.loss, batch=batch)
            else:
                observe(loss)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.case.disturbance == "burst" and step in self.case.at:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(BURST)
        self.optimizer.step()
        return float(loss.detach())

    def snapshot(self) -> Any:
        """Returns a copy of all that training changes."""
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def restore(self, snapshot: Any) -> None:
        """Goes back to a snapshot."""
        self.model.load_state_dict(snapshot[0])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot[1]))


def _adam(lr: float, beta2: float = 0.999, eps: float = 1e-8) -> Build:
    return lambda params: Adam(params, lr, betas=(0.9, beta2), eps=eps)


def _adamw(lr: float, beta2: float = 0.999) -> Build:
    return lambda params: AdamW(params, lr, betas=(0.9, beta2))


def _nadam(lr: float) -> Build:
    return lambda params: NAdam(params, lr)


def _rmsprop(lr: float, alpha: float = 0.99) -> Build:
    return lambda params: RMSprop(params, lr, alpha=alpha)


def _sgd(lr: float, momentum: float = 0.0) -> Build:
    return lambda params: SGD(params, lr, momentum=momentum)


def _adafactor(lr: float) -> Build:
    return lambda params: Adafactor(params, lr)


# fmt: off
CASES: tuple[Case, ...] = (
    # ---- dev: spikes by curvature
    Case("sine, Adam", DEV, "spikes", nets.sine, _adam(.02), 2500),
    Case("sine, Adam, beta2 .99", DEV, "spikes", nets.sine, _adam(.02, .99), 1600),
    Case("sine, 40 wide, AdamW", DEV, "spikes", lambda: nets.sine(40), _adamw(.02), 2000),
    Case("sine, RMSprop, alpha .999", DEV, "spikes", nets.sine, _rmsprop(.02, .999), 900),
    Case("diabetes, Adam", DEV, "spikes", nets.diabetes, _adam(.02), 1100),
    Case("diabetes, NAdam", DEV, "spikes", nets.diabetes, _nadam(.01), 800),
    Case("diabetes, AdamW, batch 190", DEV, "spikes", lambda: nets.diabetes(40), _adamw(.02), 1100, batch=190),
    Case("diabetes, GD", DEV, "spikes", nets.diabetes, _sgd(.3), 800),
    Case("digits, MSE, Adam", DEV, "spikes", nets.digits, _adam(.01), 750),
    Case("digits, MSE, Adam, beta2 .95", DEV, "spikes", nets.digits, _adam(.01, .95), 450),
    Case("digits, MSE, RMSprop", DEV, "spikes", nets.digits, _rmsprop(.004), 700),
    Case("digits, MSE, Adafactor", DEV, "spikes", nets.digits, _adafactor(.05), 700),
    Case("GPT, AdamW, beta2 .95", DEV, "spikes", nets.gpt, _adamw(.005, .95), 350),
    Case("GPT, momentum", DEV, "spikes", nets.gpt, _sgd(.5, .9), 300),
    Case("GPT, Adam", DEV, "spikes", nets.gpt, _adam(.003), 350),
    # ---- dev: at the edge, or calm
    Case("digits, MSE, GD", DEV, "edge", nets.digits, _sgd(.35), 1000),
    Case("digits, MSE, momentum", DEV, "edge", nets.digits, _sgd(.6, .9), 500),
    Case("digits, entropy, GD", DEV, "edge", lambda: nets.digits(entropy=True), _sgd(12.), 300),
    Case("sine, 200 points, batch 198", DEV, "edge", lambda: nets.sine(20, 200), _adam(.02), 2500, batch=198),
    Case("sine, AdamW, lr .01", DEV, "calm", nets.sine, _adamw(.01), 1500),
    Case("digits, entropy, Adam", DEV, "calm", lambda: nets.digits(entropy=True), _adam(.01), 1000),
    Case("diabetes, Adam, eps .1", DEV, "calm", nets.diabetes, _adam(.02, eps=.1), 1200),
    # ---- dev: noise
    Case("sine, 200 points, batch 100", DEV, "noise", lambda: nets.sine(20, 200), _adam(.02), 2500, batch=100),
    Case("digits, entropy, Adam, batch 8", DEV, "noise", lambda: nets.digits(entropy=True), _adam(.01), 600, 8),
    Case("digits, MSE, momentum, batch 16", DEV, "noise", nets.digits, _sgd(.3, .9), 600, 16),
    Case("digits, entropy, wrong labels", DEV, "noise", lambda: nets.digits(entropy=True), _adam(.002), 1000, None,
         "labels", (300, 500, 800)),
    Case("diabetes, wrong labels, batch 100", DEV, "noise", nets.diabetes, _adam(.005), 700, 100,
         "labels", (250, 400, 550)),
    Case("digits, MSE, GD, wrong labels", DEV, "noise", nets.digits, _sgd(.1), 500, None, "labels", (200, 350)),
    Case("digits, entropy, bursts, batch 64", DEV, "noise", lambda: nets.digits(entropy=True), _adamw(.003), 600, 64,
         "burst", (200, 350, 500)),
    Case("digits, MSE, batch 32, lr x 10 at times", DEV, "noise", nets.digits, _adam(.003), 600, 32,
         lr=lambda step: 10.0 if step % 150 < 3 else 1.0),
    # ---- held out: spikes by curvature
    Case("conv, MSE, Adam", HELD_OUT, "spikes", lambda: nets.conv(entropy=False), _adam(.01), 600),
    Case("conv, MSE, NAdam", HELD_OUT, "spikes", lambda: nets.conv(entropy=False), _nadam(.005), 500),
    Case("conv, MSE, batch 95", HELD_OUT, "spikes", lambda: nets.conv(entropy=False), _adam(.01), 600, batch=95),
    Case("RNN, RMSprop", HELD_OUT, "spikes", nets.recurrent, _rmsprop(.003), 600),
    Case("RNN, AdamW, beta2 .99", HELD_OUT, "spikes", nets.recurrent, _adamw(.03, .99), 700),
    Case("quadratic, Adam", HELD_OUT, "spikes", nets.quadratic, _adam(.02), 600),
    Case("quadratic, NAdam", HELD_OUT, "spikes", nets.quadratic, _nadam(.02), 500),
    Case("waves, Adam", HELD_OUT, "spikes", nets.waves, _adam(.01), 1200),
    Case("waves, Adam, beta2 .99", HELD_OUT, "spikes", nets.waves, _adam(.01, .99), 900),
    Case("waves, GD", HELD_OUT, "spikes", nets.waves, _sgd(.1), 900),
    Case("waves, softplus, AdamW", HELD_OUT, "spikes", lambda: nets.waves(act=nn.Softplus), _adamw(.02), 900),
    Case("waves, batch 36", HELD_OUT, "spikes", nets.waves, _adam(.01), 1200, batch=36),
    Case("waves, RMSprop", HELD_OUT, "spikes", nets.waves, _rmsprop(.005), 1100),
    Case("conv, MSE, GD", HELD_OUT, "spikes", lambda: nets.conv(entropy=False), _sgd(.3), 350),
    # ---- held out: at the edge, or calm
    Case("conv, MSE, Adafactor", HELD_OUT, "edge", lambda: nets.conv(entropy=False), _adafactor(.02), 600),
    Case("transformer, MSE, AdamW", HELD_OUT, "edge", lambda: nets.transformer(entropy=False), _adamw(.01), 400),
    Case("conv, MSE, GD, lr .15", HELD_OUT, "edge", lambda: nets.conv(entropy=False), _sgd(.15), 500),
    Case("waves, momentum", HELD_OUT, "edge", nets.waves, _sgd(.08, .9), 900),
    Case("autoencoder, GD", HELD_OUT, "edge", nets.coder, _sgd(.2), 600),
    Case("conv, entropy, Adam", HELD_OUT, "calm", nets.conv, _adam(.01), 400),
    Case("transformer, AdamW", HELD_OUT, "calm", nets.transformer, _adamw(.003), 400),
    Case("normed MLP, Adam", HELD_OUT, "calm", nets.normed, _adam(.01), 1000),
    Case("autoencoder, Adam", HELD_OUT, "calm", nets.coder, _adam(.003), 1000),
    # ---- held out: noise
    # rises 1.5-fold now and then, all data, no disturbance, at a chi of .01: no matter of curvature
    Case("conv, entropy, AdamW", HELD_OUT, "noise", nets.conv, _adamw(.03), 500),
    Case("conv, entropy, batch 10", HELD_OUT, "noise", nets.conv, _adam(.005), 600, 10),
    Case("waves, batch 12", HELD_OUT, "noise", nets.waves, _adam(.01), 1500, 12),
    Case("autoencoder, batch 20", HELD_OUT, "noise", nets.coder, _adam(.01), 1000, 20),
    Case("normed MLP, wrong labels", HELD_OUT, "noise", nets.normed, _adam(.002), 1000, None,
         "labels", (300, 500, 800)),
    Case("conv, wrong labels, batch 50", HELD_OUT, "noise", lambda: nets.conv(entropy=False), _adam(.002), 800, 50,
         "labels", (250, 450, 650)),
    Case("transformer, wrong labels, batch 60", HELD_OUT, "noise", nets.transformer, _adam(.002), 500, 60,
         "labels", (200, 350)),
    Case("RNN, bursts, batch 6", HELD_OUT, "noise", nets.recurrent, _adamw(.003), 700, 6, "burst", (250, 450)),
    Case("waves, batch 20, lr x 20 at times", HELD_OUT, "noise", nets.waves, _adam(.003), 800, 20,
         lr=lambda step: 20.0 if step % 200 < 3 else 1.0),
)
# fmt: on
