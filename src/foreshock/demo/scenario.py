"""What a demo training is: a description, and a function from a seed to something that can be stepped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreshock.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["Scenario", "Training", "datasets", "seeded", "train"]


@dataclass(frozen=True, slots=True)
class Training:
    """A training ready to be stepped; everything random in it has been drawn already.

    Attributes:
        model: the network, on the CPU.
        optimizer: holds all its parameters.
        loss: step number (from 0) -> 0-D loss with its graph.
        steps: how many optimizer steps the training has.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[int], Tensor]
    steps: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """One training of the demo.

    Attributes:
        name: short, used for the run's directory.
        title: a few words for tables and headings.
        cause: where the spikes come from, in a few words.
        mechanism: why the loss spikes, in one or two sentences.
        look: what to look at in its report.
        source: where the mechanism was described.
        build: seed -> Training, a pure function.
        max_overhead: share of the wall time that readings of chi may take; 1 for as much as they need.
    """

    name: str
    title: str
    cause: str
    mechanism: str
    look: str
    source: str
    build: Callable[[int], Training]
    max_overhead: float = 0.03


def train(training: Training, observe: Callable[[Tensor], None] | None = None) -> list[Tensor]:
    """Runs the training and returns its losses, one detached 0-D tensor a step.

    `observe` is called with each loss before its backward pass: the one line a monitor adds.
    """
    losses = []
    for step in range(training.steps):
        loss = training.loss(step)
        if observe is not None:
            observe(loss)
        training.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
        losses.append(loss.detach())
    return losses


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded(seed: int) -> AbstractContextManager[None]:
    """Gives torch's layers, which draw their initial values from the global stream, this seed; restores it after."""
    return _seeded(seed)


def datasets() -> ModuleType:
    """Returns `sklearn.datasets`, whose digits and diabetes tables ship inside the package.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
    except ImportError as error:
        raise MissingExtraError(
            "the demo trains on data that ship with scikit-learn, which is not installed: "
            "pip install 'foreshock[demo]'"
        ) from error
    module: ModuleType = sklearn.datasets
    return module
