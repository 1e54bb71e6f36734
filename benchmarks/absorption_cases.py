"""The trainings that the warnings of absorption are judged on: which network, loss, optimizer and batch.

A case is a pure function of its seed. Those that spike are also trained with the exact loss, and in float64 altogether:
the same training without the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

import absorption_nets as nets
from absorption_nets import Problem
from foreshock.numerics.cross_entropy import cross_entropy

Build = Callable[[Iterable[Tensor]], Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]
SPIKES, HEALTHY, ABSORBED = "spikes", "healthy", "absorbed"
STOCK, EXACT, DOUBLE = "stock", "exact", "float64"
ARMS = (STOCK, EXACT, DOUBLE)


@dataclass(frozen=True, slots=True)
class Case:
    """One training.

    Attributes:
        name: for tables and folders.
        group: "spikes" (torch's loss in float32 spikes by absorption), "healthy" (it has nothing to warn of), or
            "absorbed" (rounding takes the right classes' gradients for good, and yet no spike comes).
        problem: makes the network and its data, from torch's global stream.
        optimizer: parameters -> optimizer.
        steps: optimizer steps.
        loss: (logits, target) -> loss.
        batch: samples drawn for each step, without replacement within a step; None for all of them.
        cast: type that the logits are cast to before the loss, but for the float64 arm.
        arm: "stock": as it stands; "exact": with `foreshock.cross_entropy`; "float64": torch's loss, all in float64.
    """

    name: str
    group: str
    problem: Callable[[], Problem]
    optimizer: Build
    steps: int
    loss: Loss = F.cross_entropy
    batch: int | None = None
    cast: torch.dtype | None = None
    arm: str = STOCK

    def as_arm(self, arm: str) -> Case:
        """Returns the same training without the rounding, which has nothing to warn of."""
        loss, cast = (cross_entropy if arm == EXACT else self.loss), (None if arm == DOUBLE else self.cast)
        return replace(self, arm=arm, loss=loss, cast=cast, group=self.group if arm == STOCK else HEALTHY)


class Training:
    """A case with a seed, ready to be stepped."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            problem = case.problem()  # drawn in float32 whatever it is trained in: all arms start from one point
        self.inputs, self.target = problem.data
        self.model = problem.model
        if case.arm == DOUBLE:
            self.model.double()
            self.inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        self.optimizer = case.optimizer(self.model.parameters())
        generator = torch.Generator().manual_seed(seed + 1000)
        drawn = case.steps if case.batch else 0
        self._rows = [torch.randperm(len(self.inputs), generator=generator)[: case.batch] for _ in range(drawn)]

    def whole(self) -> float:
        """Returns the loss over all the data."""
        with torch.no_grad():
            return float(self._loss(self.inputs, self.target))

    def _loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        outputs = self.model(inputs)
        return self.case.loss(outputs if self.case.cast is None else outputs.to(self.case.cast), target)

    def truth(self) -> float:
        """Returns the exact loss over all the data, of the logits as the network makes them."""
        with torch.no_grad():
            return float(cross_entropy(self.model(self.inputs).double(), self.target))

    def advance(
        self, step: int, observe: Callable[[Tensor], object] | None = None,
        take: Callable[[], object] | None = None,
    ) -> float:  # fmt: skip
        """Takes one step, as a loop would write it; returns the loss over all the data before it.

        Args:
            step: its number.
            observe: is shown the loss before its backward pass.
            take: stands in for the optimizer's own step.
        """
        inputs, target, whole = self.inputs, self.target, None
        if self._rows:
            whole = self.whole()
            inputs, target = inputs[self._rows[step]], target[self._rows[step]]
        loss = self._loss(inputs, target)
        if observe is not None:
            observe(loss)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        (self.optimizer.step if take is None else take)()
        return float(loss.detach()) if whole is None else whole


def _adam(lr: float = 1e-3, beta2: float = 0.95, beta1: float = 0.9, eps: float = 1e-8) -> Build:
    return lambda params: Adam(params, lr, betas=(beta1, beta2), eps=eps, fused=True)


def _adamw(lr: float = 1e-3, beta2: float = 0.95, decay: float = 0.01) -> Build:
    return lambda params: AdamW(params, lr, betas=(0.9, beta2), weight_decay=decay, fused=True)


def _smoothed(amount: float) -> Loss:
    return lambda logits, target: F.cross_entropy(logits, target, label_smoothing=amount)


def _weighted(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, weight=torch.linspace(0.2, 3.0, logits.shape[1]))


def _sparse(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target.where(torch.arange(len(target)) % 3 == 0, -100))


def _mixed(logits: Tensor, target: Tensor) -> Tensor:
    wanted = F.one_hot(target, logits.shape[1]).float()
    return F.cross_entropy(logits, 0.9 * wanted + 0.1 * wanted.roll(1, 0))


def _squares(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs, F.one_hot(target, outputs.shape[1]).to(outputs.dtype))


def _digits(*hidden: int, **more: object) -> Callable[[], Problem]:
    return lambda: nets.digits(*hidden, **more)  # type: ignore[arg-type]


def _sgd(lr: float, momentum: float = 0.0) -> Build:
    return lambda params: SGD(params, lr, momentum=momentum)


_3x32 = _digits(32, 32, 32)
_norm = {"last": (nn.LayerNorm(32),)}

# fmt: off
CASES: tuple[Case, ...] = (
    # ---- spikes
    Case("digits", SPIKES, _3x32, _adam(), 2500),
    Case("digits, 100 samples", SPIKES, _digits(32, 32, 32, samples=100), _adam(), 2500),
    Case("digits, 500 samples", SPIKES, _digits(32, 32, 32, samples=500), _adam(), 2500),
    Case("digits, 16 wide", SPIKES, _digits(16, 16, 16), _adam(), 3500),
    Case("digits, 64 wide", SPIKES, _digits(64, 64, 64), _adam(), 2000),
    Case("digits, 128 wide", SPIKES, _digits(128, 128, 128), _adam(), 2000),
    Case("digits, 2 hidden", SPIKES, _digits(32, 32), _adam(), 3500),
    Case("digits, 4 hidden", SPIKES, _digits(32, 32, 32, 32), _adam(), 2000),
    Case("digits, 5 hidden, 64 wide", SPIKES, _digits(64, 64, 64, 64, 64), _adam(), 2000),
    Case("digits, GELU", SPIKES, _digits(32, 32, 32, act=nn.GELU), _adam(), 2500),
    Case("digits, SiLU", SPIKES, _digits(32, 32, 32, act=nn.SiLU), _adam(), 2500),
    Case("digits, lr .003", SPIKES, _3x32, _adam(3e-3), 2000),
    Case("digits, lr .0005", SPIKES, _3x32, _adam(5e-4), 3500),
    Case("digits, beta2 .9", SPIKES, _3x32, _adam(beta2=.9), 2500),
    Case("digits, beta2 .98", SPIKES, _3x32, _adam(beta2=.98), 3500),
    Case("digits, beta1 0", SPIKES, _3x32, _adam(beta1=0.), 3500),
    Case("digits, no biases", SPIKES, _digits(32, 32, 32, bias=False), _adam(), 2500),
    Case("digits, batch 128", SPIKES, _3x32, _adam(), 3000, batch=128),
    Case("digits, RMSprop", SPIKES, _3x32, lambda params: RMSprop(params, 1e-3, alpha=.95), 4000),
    Case("digits, NAdam", SPIKES, _3x32, lambda params: NAdam(params, 1e-3, betas=(.9, .95)), 3500),
    Case("digits, AdamW", SPIKES, _3x32, _adamw(), 2500),
    Case("digits, bfloat16 logits", SPIKES, _3x32, _adam(), 2500, cast=torch.bfloat16),
    Case("digits, float16 logits", SPIKES, _3x32, _adam(), 3500, cast=torch.float16),
    Case("garments", SPIKES, lambda: nets.garments(64, 64, 64), _adam(), 2000),
    Case("garments, 500 samples", SPIKES, lambda: nets.garments(64, 64, 64, samples=500), _adam(), 2000),
    Case("convolutions", SPIKES, lambda: nets.convolved(), _adam(), 1500),
    Case("clusters", SPIKES, lambda: nets.clusters(10, 32, 32, 32), _adam(), 3000),
    Case("clusters, 50 classes", SPIKES, lambda: nets.clusters(50, 32, 32, 32, samples=400), _adam(), 2500),
    Case("clusters, 97 classes", SPIKES, lambda: nets.clusters(97, 64, 64, 64, samples=388, inputs=40), _adam(), 2000),
    Case("products modulo 11", SPIKES, lambda: nets.modular(11, 64, 64, share=.8, product=True), _adam(), 2500),
    Case("sums modulo 23", SPIKES, lambda: nets.modular(23, 128, 128, 128), _adam(), 2000),
    Case("letters", SPIKES, lambda: nets.letters(64, 64, 64), _adam(), 2000),
    # ---- healthy
    Case("digits, 250 steps", HEALTHY, _3x32, _adam(), 250),
    Case("digits, 450 steps", HEALTHY, _3x32, _adam(), 450),
    Case("digits, all, batch 64", HEALTHY, _digits(64, 64, samples=1797), _adam(beta2=.999), 1500, batch=64),
    Case("digits, batch 16, 10 % wrong", HEALTHY, _digits(32, 32, samples=1000, noise=.1), _adam(), 1500, batch=16),
    Case("digits, 10 % wrong", HEALTHY, _digits(16, samples=500, noise=.1), _adam(), 1500),
    Case("digits, smoothed .1", HEALTHY, _3x32, _adam(), 1500, _smoothed(.1)),
    Case("digits, smoothed .001", HEALTHY, _3x32, _adam(), 1500, _smoothed(.001)),
    Case("digits, class weights", HEALTHY, _digits(32, 32, samples=1000), _adam(), 500, _weighted),
    Case("digits, most rows ignored", HEALTHY, _digits(32, 32, samples=1000), _adam(), 400, _sparse),
    Case("digits, mixed labels", HEALTHY, _3x32, _adam(), 1500, _mixed),
    Case("digits, strong decay", HEALTHY, _3x32, _adamw(decay=20.), 1500),
    Case("digits, dropout", HEALTHY, _digits(64, 64, samples=1000, last=(nn.Dropout(.3),)), _adam(), 800),
    Case("digits, normed", HEALTHY, _digits(32, 32, 32, samples=1000, **_norm), _adam(), 400),
    Case("digits, SGD", HEALTHY, _3x32, _sgd(.5), 2000),
    Case("digits, momentum", HEALTHY, _3x32, _sgd(.1, .9), 2000),
    Case("digits, Adagrad", HEALTHY, _3x32, lambda params: Adagrad(params, 1e-2), 1500),
    Case("digits, bfloat16, 200 steps", HEALTHY, _digits(32, 32, samples=1000), _adam(), 200, cast=torch.bfloat16),
    Case("digits, squares", HEALTHY, _3x32, _adam(), 1000, _squares),
    Case("garments, batch 64", HEALTHY, lambda: nets.garments(64, 64, samples=1000), _adam(), 800, batch=64),
    Case("clusters that overlap, Zipf", HEALTHY,
         lambda: nets.clusters(50, 64, 64, samples=500, spread=2., zipf=True), _adam(beta2=.999), 600),
    Case("clusters, 1000 classes", HEALTHY, lambda: nets.clusters(1000, 64, samples=1000), _adam(), 300),
    Case("clusters, 2 classes that overlap", HEALTHY,
         lambda: nets.clusters(2, 8, samples=400, inputs=4, spread=2.), _adam(), 1500),
    Case("clusters, one of them unclear", HEALTHY,
         lambda: nets.clusters(10, 32, 32, samples=2000, unclear=1), _adam(3e-3), 1200, batch=200),
    Case("iris", HEALTHY, lambda: nets.table("iris", 16, 16), _adam(), 1500),
    Case("breast cancer, decay", HEALTHY, lambda: nets.table("breast_cancer", 32, 32), _adamw(decay=20.), 1000),
    Case("sentences with templates", HEALTHY, lambda: nets.sentences(64), _adam(2e-3), 400),
    Case("sums, memorising", HEALTHY, lambda: nets.sums(23), _adamw(1e-3, .98, .1), 500),
    # ---- absorbed: rounding is at work, and no spike comes for as long as they are trained
    Case("digits, tanh", ABSORBED, _digits(32, 32, 32, act=nn.Tanh), _adam(), 2500),
    Case("digits, 1 hidden", ABSORBED, _digits(32), _adam(), 2500),
    Case("digits, normed before the head", ABSORBED, _digits(32, 32, 32, **_norm), _adam(), 2500),
    Case("digits, eps 1e-5", ABSORBED, _3x32, _adam(eps=1e-5), 2500),
    Case("digits, decay 1", ABSORBED, _3x32, _adamw(decay=1.), 2000),
    Case("digits, lr .0001", ABSORBED, _3x32, _adam(1e-4), 4000),
    Case("clusters, 3 classes", ABSORBED, lambda: nets.clusters(3, 32, 32, 32), _adam(), 2000),
    Case("wine", ABSORBED, lambda: nets.table("wine", 32, 32, 32), _adam(), 2000),
    Case("breast cancer", ABSORBED, lambda: nets.table("breast_cancer", 32, 32, 32), _adam(), 1500),
)
# fmt: on
