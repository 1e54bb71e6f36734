"""One training on modular arithmetic: the loss of every step, the answers to what was not taught, what is absorbed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.monitor import Monitor
from foreshock.papers.absorption_training import PAPER, Common, common_mode
from foreshock.papers.modular import Split, split
from foreshock.papers.modular_arms import Arm, perpendicular_
from foreshock.papers.studies import Live, silent
from foreshock.probes import Softmax, Step
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["ACCURACY", "RECTIFIED", "SETTINGS", "SQUARES", "Grokking", "Setting", "network", "train"]

EVERY = 20  # steps between readings of the softmax and of the test accuracy
LIVE = 250  # steps between words on how far it is
ACCURACY, TRUTH = "test_accuracy", "loss_exact"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is learnt by which network, in full batches with Adam at betas (.9, .95), eps 1e-8 and no weight decay.

    Attributes:
        name, title: for places on disk; for tables and figures.
        hidden: widths of the hidden layers.
        activation: behind each of them.
        scale: of the start, relative to torch's default initialisation.
        lr: of Adam.
        steps: its own number.
        prime, operation, share: of the data.
    """

    name: str
    title: str
    hidden: tuple[int, ...]
    activation: Callable[[], nn.Module]
    scale: float
    lr: float
    steps: int
    prime: int = 31
    operation: str = "addition"
    share: float = 0.8


class Square(nn.Module):
    """x^2, the activation with which one hidden layer learns modular addition (Gromov 2023, arXiv 2301.02679)."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x^2."""
        return x * x


SQUARES = Setting("squares", "128 squares", (128,), Square, 0.3, 5e-3, 4000)
RECTIFIED = Setting("rectified", "2 x 128 ReLU", (128, 128), nn.ReLU, 1.0, 1e-2, 2400)
SETTINGS = {setting.name: setting for setting in (SQUARES, RECTIFIED)}


@dataclass(frozen=True, slots=True)
class Grokking:
    """What one training gave.

    Attributes:
        setting, arm, seed: which.
        losses: (n,) as the arm's own loss has them, at the parameters before each step.
        truth: (n,) cross-entropy of the same logits in float64.
        steps, accuracy: (m,) steps at which the rest of the table was asked, the last among them, and the share of
            right answers.
        end: head and features after the last step.
        run: with the monitor's signals and events.
        seconds: of this process.
    """

    setting: Setting
    arm: Arm
    seed: int
    losses: Floats
    truth: Floats
    steps: npt.NDArray[np.int64]
    accuracy: Floats
    end: Common
    run: Run
    seconds: float


def network(setting: Setting, seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Returns the network (body..., head) of a seed, drawn in float32 whatever `dtype` is; the global random stream is
    left as it was."""
    widths = (2 * setting.prime, *setting.hidden, setting.prime)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), setting.activation()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(setting.scale)
    return model.to(dtype)


def train(setting: Setting, arm: Arm, seed: int, steps: int | None = None, *, live: Live = silent) -> Grokking:
    """Returns one training, on one thread, watched by a monitor.

    Args:
        setting: data, network and optimizer.
        arm: what is changed.
        seed: of the initialisation, and of which part of the table is taught.
        steps: in place of the setting's own number.
        live: told how far it is.
    """
    steps, started = setting.steps if steps is None else steps, time.process_time()
    data = split(setting.prime, setting.operation, setting.share, torch.Generator().manual_seed(seed))
    model = network(setting, seed, arm.dtype)
    body, head = model[:-1], model[-1]
    assert isinstance(head, nn.Linear)
    inputs, asked = data.inputs.to(arm.dtype), data.test_inputs.to(arm.dtype)
    optimizer = torch.optim.Adam(model.parameters(), setting.lr, betas=(0.9, 0.95), fused=True)
    # rows of one tensor: scalars kept by the thousand pin the pages between large ones, 300 KB a step
    losses, truth = torch.empty(steps, dtype=torch.float64), torch.empty(steps, dtype=torch.float64)
    done = 0

    def beside(step: Step) -> dict[str, Tensor | float]:
        found: dict[str, Tensor | float] = {TRUTH: float(truth[done])}
        if done % EVERY == 0 or done == steps - 1:
            found[ACCURACY] = _accuracy(model, asked, data)
        return found

    watch = Monitor(model, optimizer, probes=[Softmax(every=EVERY), beside], max_overhead=1.0)
    with one_thread(), watch:
        for done in range(steps):
            logits: Tensor = head(body(inputs))
            loss = arm.loss(logits, data.labels)
            losses[done] = loss.detach()
            truth[done] = functional.cross_entropy(logits.detach().double(), data.labels)
            watch.observe(loss)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if arm.perpendicular:
                perpendicular_(model.parameters())
            optimizer.step()
            if done % LIVE == 0:
                live(done / steps, f"seed {seed}, modular {setting.operation}, {arm.title}: step {done:,}")
        features = body(inputs)
        end = Common(*common_mode(head, features, head(features)).tolist())
    run = watch.run
    run.meta.update(_labels(setting, arm, seed))
    at, accuracy = run.measured(ACCURACY)
    return Grokking(
        setting, arm, seed, losses.numpy(), truth.numpy(), at, accuracy, end, run, time.process_time() - started,
    )


def _accuracy(model: nn.Module, asked: Tensor, data: Split) -> float:
    with torch.no_grad():
        answers: Tensor = model(asked).argmax(dim=1)
    return (answers == data.test_labels).double().mean().item()


def _labels(setting: Setting, arm: Arm, seed: int) -> Mapping[str, object]:
    return {
        "paper": PAPER, "setting": setting.name, "arm": arm.name, "seed": seed,
        "name": f"modular {setting.operation}, {setting.title}, {arm.title}, seed {seed}",
    }
