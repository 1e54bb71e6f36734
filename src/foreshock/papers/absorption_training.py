"""One training of the softmax-absorption reproduction: 200 digits, fitted, and then thousands of steps more."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from foreshock.monitor import Monitor
from foreshock.papers.absorption_arms import Arm
from foreshock.papers.digits import scans
from foreshock.papers.studies import Live, silent
from foreshock.probes import FREE, Softmax, Step
from foreshock.run import Run, absent
from foreshock.threads import one_thread

__all__ = ["PAPER", "Common", "Problem", "Trace", "common_mode", "reference", "train"]

PAPER = "softmax-absorption"
SAMPLES = 200
EVERY = 10  # steps between readings of head and features
LIVE = 250  # steps between words on how far it is

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """Network and data: `model` is (body..., head), `inputs` (200, 64), `labels` (200,)."""

    model: nn.Sequential
    inputs: Tensor
    labels: Tensor

    @property
    def head(self) -> nn.Linear:
        """Returns the last layer."""
        last = self.model[-1]
        assert isinstance(last, nn.Linear)
        return last

    def features(self) -> Tensor:
        """Returns the head's input (200, width) with its graph."""
        inner: Tensor = self.inputs
        for layer in list(self.model)[:-1]:
            inner = layer(inner)
        return inner


class Common(NamedTuple):
    """What head and features have in common, in float64; the names are those of the signals, without `softmax_`.

    |W_G| of the class mean of the head; |W*| of the rest; |mu_G| of the mean feature; cos(W_G, mu_G); the mean logit.
    """

    head_mean: float
    head_centred: float
    feature_mean: float
    cosine: float
    logit: float


class Trace:
    """What one training gave.

    Attributes:
        arm, seed: which.
        losses: (n,) as the arm's own loss has them, at the parameters before each step.
        truth: (n,) of the same logits in float64.
        common: (n, 5) at every tenth step, NaN between; columns as in `Common`.
        states: step -> parameters before it, where they were to be kept.
        end: after the last step.
        run: as saved; with a monitor's signals and events where it was monitored.
        seconds: of this process.
    """

    def __init__(self, arm: Arm, seed: int, steps: int) -> None:
        self.arm, self.seed = arm, seed
        self.losses, self.truth = np.full(steps, np.nan), np.full(steps, np.nan)
        self.common = np.full((steps, len(Common._fields)), np.nan)
        self.states: dict[int, dict[str, Tensor]] = {}
        self.end = Common(*[np.nan] * 5)
        self.run = Run.from_arrays({"loss": self.losses})
        self.seconds = 0.0


def reference(seed: int, *, hidden: Sequence[int] = (32, 32, 32), dtype: torch.dtype = torch.float32) -> Problem:
    """Returns a ReLU network 64-32-32-32-10 and the first 200 digits; the global random stream is left as it was.

    Weights are drawn in float32 whatever `dtype` is, by torch's default initialisation, so that all precisions start
    from the same point.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    pixels, labels = scans(SAMPLES)
    widths = (pixels.shape[1], *hidden, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return Problem(nn.Sequential(*layers[:-1]).to(dtype), pixels.to(dtype), labels)


def common_mode(head: nn.Linear, features: Tensor, logits: Tensor) -> Tensor:
    """Returns the five numbers of `Common`, (5,) float64."""
    weight, mean = head.weight.detach().double(), features.detach().double().mean(dim=0)
    common = weight.mean(dim=0)
    size, length = common.norm(), mean.norm()
    return torch.stack(
        [size, (weight - common).norm(), length, common @ mean / (size * length), logits.detach().double().mean()]
    )


def train(
    arm: Arm, seed: int, steps: int | None = None, *, monitored: bool = False, keep: Collection[int] = (),
    live: Live = silent,
) -> Trace:
    """Returns one training in full batches, on one thread.

    Args:
        arm: what is trained.
        seed: of the initialisation.
        steps: in place of the arm's own number.
        monitored: whether a monitor watches, which changes no bit of it; the head and features at every fifth step.
        keep: steps before which the parameters are kept.
        live: told how far it is.
    """
    steps, started = arm.steps if steps is None else steps, time.process_time()
    problem = reference(seed, hidden=arm.hidden, dtype=arm.dtype)
    head, labels, loss_of = problem.head, problem.labels, arm.loss
    optimizer = _adam(problem.model, arm.settings)
    trace = Trace(arm, seed, steps)
    # not lists of scalars: those by the thousand keep the pages between larger tensors from being given back
    losses, truth = torch.empty(2, steps, dtype=torch.float64)
    common = []

    def exactly(step: Step) -> dict[str, Tensor | float]:
        return {"loss_exact": truth[step.number]}

    watch = Monitor(
        problem.model, optimizer, probes=[*FREE, Softmax(every=5), exactly], max_overhead=1.0
    ) if monitored else None  # fmt: skip
    with one_thread(), watch or nullcontext():
        for step in range(steps):
            if arm.later is not None and step == arm.later.step:
                loss_of = arm.later.loss or loss_of
                optimizer = torch.optim.SGD(problem.model.parameters(), arm.later.lr) if arm.later.lr else optimizer
            if step in keep:
                trace.states[step] = {name: each.clone() for name, each in problem.model.state_dict().items()}
            features = problem.features()
            logits: Tensor = head(features)
            loss = loss_of(logits, labels)
            losses[step] = loss.detach()
            truth[step] = functional.cross_entropy(logits.detach().double(), labels)
            if step % EVERY == 0:
                common.append(common_mode(head, features, logits))
            if watch is not None:
                watch.observe(loss)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if arm.afterwards is not None:
                with torch.no_grad():
                    arm.afterwards(head, optimizer)
            if step % LIVE == 0:
                live(step / steps, f"seed {seed}, {arm.title}: step {step:,}")
        features = problem.features()
        trace.end = Common(*common_mode(head, features, head(features)).tolist())
    trace.losses[:], trace.truth[:] = losses.numpy(), truth.numpy()
    trace.common[::EVERY] = torch.stack(common).numpy()
    trace.run = _recorded(trace, optimizer) if watch is None else _annotated(watch.run, trace)
    trace.seconds = time.process_time() - started
    return trace


def _adam(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    usual: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    kind = torch.optim.AdamW if "weight_decay" in settings else torch.optim.Adam
    return kind(model.parameters(), **{**usual, **settings})


def _recorded(trace: Trace, optimizer: Optimizer) -> Run:
    """Returns a training as a run of its losses and, at every tenth step, of head and features."""
    columns = {"loss": trace.losses, "loss_exact": trace.truth}
    for name, values in zip(Common._fields, trace.common.T, strict=True):
        columns[f"softmax_{name}"] = absent(len(values))
        there = np.isfinite(values)
        columns[f"softmax_{name}"][there] = values[there]
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    described = [{"class": type(optimizer).__name__, "groups": [settings]}]
    return Run.from_arrays(columns, **_labels(trace), optimizers=described)


def _annotated(run: Run, trace: Trace) -> Run:
    run.meta.update(_labels(trace))
    return run


def _labels(trace: Trace) -> dict[str, Any]:
    return {"paper": PAPER, "arm": trace.arm.name, "seed": trace.seed, "name": f"{trace.arm.title}, seed {trace.seed}"}
