"""Trainings that spike by themselves, on real data: by curvature, or by a softmax in low precision.

Which cause a spike has is not decided here but measured (`explain_truth.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

import absorption_nets
import forecast_nets
from foreshock.numerics.cross_entropy import cross_entropy

Batch = tuple[Tensor, Tensor]
Build = Callable[[Iterable[Tensor]], Optimizer]
Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Curved:
    """One training that is left to itself.

    Attributes:
        family: "curvature" or "softmax".
        net, optimizer, variant: for names.
        problem: makes the network and its data from torch's global stream: (model, data, criterion).
        build: parameters -> optimizer.
        steps: optimizer steps.
        batch: samples of a step; None for all.
    """

    family: str
    net: str
    optimizer: str
    variant: str
    problem: Callable[[], tuple[nn.Module, Batch, Criterion]]
    build: Build
    steps: int
    batch: int | None = None

    @property
    def name(self) -> str:
        return f"{self.net}-{self.optimizer}-{self.variant}"


class Alone:
    """A curved training with a seed, ready to be stepped; with the same methods as a planted one."""

    def __init__(self, case: Curved, seed: int, *, exact: bool = False) -> None:
        self.case, self.seed, self.at = case, seed, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model, self.data, self.criterion = case.problem()
        if exact:
            self.criterion = cross_entropy
        self.optimizer = case.build(self.model.parameters())
        self.scheduler = None
        self.planted: dict[int, list[int]] = {}
        self.cut = 1.0

    def draw(self, step: int) -> list[Batch]:
        inputs, targets = self.data
        if self.case.batch is None:
            return [self.data]
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randperm(len(inputs), generator=source)[: self.case.batch]
        return [(inputs[rows], targets[rows])]

    def loss(self, batch: Batch) -> Tensor:
        return self.criterion(self.model(batch[0]), batch[1])

    def disturb(self, step: int) -> None:
        """Nobody does anything."""

    def advance(self, batches: list[Batch] | Batch, observe: Callable[..., object] | None = None) -> Tensor:
        """Takes one step; returns its loss."""
        batch = batches[0] if isinstance(batches, list) else batches
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        if observe is not None:
            observe(loss, batch=batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def _seen(make: Callable[[], forecast_nets.Problem]) -> Callable[[], tuple[nn.Module, Batch, Criterion]]:
    def problem() -> tuple[nn.Module, Batch, Criterion]:
        found = make()
        return found.model, found.data, found.criterion

    return problem


def _entropy(make: Callable[[], absorption_nets.Problem]) -> Callable[[], tuple[nn.Module, Batch, Criterion]]:
    def problem() -> tuple[nn.Module, Batch, Criterion]:
        found = make()
        return found.model, found.data, F.cross_entropy

    return problem


def _adam(lr: float, beta2: float = 0.999) -> Build:
    return lambda params: Adam(params, lr, betas=(0.9, beta2))


def _adamw(lr: float, beta2: float = 0.999) -> Build:
    return lambda params: AdamW(params, lr, betas=(0.9, beta2))


def _sgd(lr: float, momentum: float = 0.0) -> Build:
    return lambda params: SGD(params, lr, momentum=momentum)


def _curved(net: str, make: Callable[[], forecast_nets.Problem], *rows: tuple[object, ...]) -> list[Curved]:
    return [Curved("curvature", net, o, v, _seen(make), b, n, *more) for o, v, b, n, *more in rows]  # type: ignore[arg-type, misc]


def _absorbed(net: str, make: Callable[[], absorption_nets.Problem], *rows: tuple[object, ...]) -> list[Curved]:
    return [Curved("softmax", net, o, v, _entropy(make), b, n, *more) for o, v, b, n, *more in rows]  # type: ignore[arg-type, misc]


# fmt: off
CURVED: tuple[Curved, ...] = tuple(chain(
    _curved("diabetes", lambda: forecast_nets.diabetes(40),
        ("adam", "lr.02", _adam(.02), 1100), ("nadam", "lr.01", lambda p: NAdam(p, .01), 800), ("sgd", "lr.3",
        _sgd(.3), 800),
        ("adamw", "batch190", _adamw(.02), 1100, 190), ("momentum", "lr.15", _sgd(.15, .9), 800),
        ("rmsprop", "alpha.999", lambda p: RMSprop(p, .01, alpha=.999), 900)),
    _curved("digits", forecast_nets.digits,
        ("adam", "lr.01", _adam(.01), 750), ("rmsprop", "lr.004", lambda p: RMSprop(p, .004), 700),
        ("adam", "beta2.9", _adam(.03, .9), 450), ("sgd", "lr.5", _sgd(.5), 700), ("momentum", "lr.4", _sgd(.4, .9),
        500),
        ("sgd", "lr.7", _sgd(.7), 500)),
    _curved("convmse", lambda: forecast_nets.conv(entropy=False),
        ("adam", "lr.01", _adam(.01), 600), ("nadam", "lr.005", lambda p: NAdam(p, .005), 500), ("sgd", "lr.3",
        _sgd(.3), 400),
        ("adam", "batch95", _adam(.01), 600, 95), ("momentum", "lr.2", _sgd(.2, .9), 500), ("sgd", "lr.2", _sgd(.2),
        500)),
    _curved("coder", forecast_nets.coder,
        ("sgd", "lr.6", _sgd(.6), 800), ("momentum", "lr.1", _sgd(.1, .9), 600), ("adam", "lr.02", _adam(.02), 800)),
    _curved("gptsource", forecast_nets.gpt,
        ("momentum", "lr.5", _sgd(.5, .9), 300), ("adam", "lr.003", _adam(.003), 350), ("adamw", "lr.005",
        _adamw(.005, .95), 350),
        ("sgd", "lr2", _sgd(2.), 350)),
    _curved("rnn", forecast_nets.recurrent,
        ("rmsprop", "lr.003", lambda p: RMSprop(p, .003), 600), ("adamw", "beta2.99", _adamw(.03, .99), 600),
        ("sgd", "lr3", _sgd(3.), 600), ("momentum", "lr1", _sgd(1., .9), 500)),
    _curved("rows", lambda: forecast_nets.transformer(entropy=False),
        ("sgd", "lr.2", _sgd(.2), 500), ("adam", "lr.01", _adam(.01), 500)),
    _absorbed("digits", lambda: absorption_nets.digits(32, 32, 32),
        ("adam", "beta2.95", _adam(1e-3, .95), 2500), ("adam", "lr.003", _adam(3e-3, .95), 2000)),
    _absorbed("digits64", lambda: absorption_nets.digits(64, 64, 64), ("adam", "beta2.95", _adam(1e-3, .95), 2000)),
    _absorbed("digits", lambda: absorption_nets.digits(32, 32, 32), ("adamw", "beta2.95", _adamw(1e-3, .95), 2500)),
    _absorbed("garments", lambda: absorption_nets.garments(64, 64, 64), ("adam", "beta2.95", _adam(1e-3, .95), 2000)),
    _absorbed("conv", lambda: absorption_nets.convolved(), ("adam", "beta2.95", _adam(1e-3, .95), 1500)),
    _absorbed("products", lambda: absorption_nets.modular(11, 64, 64, share=.8, product=True),
        ("adam", "beta2.95", _adam(1e-3, .95), 2500)),
    _absorbed("sums", lambda: absorption_nets.modular(23, 128, 128, 128), ("adam", "beta2.95", _adam(1e-3, .95), 1500)),
    _absorbed("letters", lambda: absorption_nets.letters(64, 64, 64), ("adam", "beta2.95", _adam(1e-3, .95), 2000)),
))
# fmt: on
