"""What the S3 reproduction trains: two sines, digits, images of clothes, novels; small networks and held-out data.

The sines are there because spikes are: full-batch Adam spikes on them some thirty times in 8,000 steps, each by the
edge of stability of its preconditioned curvature (Bai et al. 2025, arXiv 2506.04805). They are not in the S3 paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.papers.digits import scans
from foreshock.papers.images import images
from foreshock.papers.text import novels
from foreshock.papers.transformer import Transformer

__all__ = ["TASKS", "Task", "excerpts", "table"]

SCANS, SCANS_KEPT = 1797, 1400  # digits, and those of them that are trained on
CLOTHES, CLOTHES_HELD = 6000, 1000
FILTERS = (8, 16)
LENGTH, WIDTH, EXCERPTS_HELD = 32, 48, 64  # characters of an excerpt, width of the network, excerpts held out
SHARE = 0.9  # of the text that is trained on
GRID = 20  # points of the sines
SHUFFLE = 7  # seed of which digits are held out; the same for all trainings


@dataclass(frozen=True, slots=True)
class Task:
    """Data and a network to learn them.

    Attributes:
        name, title: on the command line and in figures.
        model: draws the network, from torch's global random stream.
        draw: a batch (inputs, targets) for places drawn by a generator.
        held: inputs and targets that are not trained on.
        steps: of a training.
        lr: of AdamW(.9, .999) that does best in the sweep, which is 1x.
        decay: weight decay at 1x.
        classes: are learned, by cross-entropy; numbers by the mean squared error otherwise.
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    draw: Callable[[np.random.Generator], tuple[Tensor, Tensor]]
    held: tuple[Tensor, Tensor]
    steps: int
    lr: float
    decay: float = 0.1
    classes: bool = True

    def network(self, seed: int) -> nn.Module:
        """Returns the network of a seed; the global random stream is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model()

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss, mean over all targets."""
        outputs: Tensor = model(inputs)
        if self.classes:
            return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        return functional.mse_loss(outputs, targets)

    @torch.no_grad()
    def judged(self, model: nn.Module) -> tuple[float, float]:
        """Returns loss and share of right answers on what is held out; a share of NaN where no classes are learned."""
        inputs, targets = self.held
        right = (model(inputs).argmax(-1) == targets).float().mean() if self.classes else torch.nan
        return float(self.loss(model, inputs, targets)), float(right)


def table(inputs: Tensor, labels: Tensor, batch: int) -> Callable[[np.random.Generator], tuple[Tensor, Tensor]]:
    """Returns what draws `batch` rows of inputs (n, ...) with their labels (n,), with replacement."""

    def draw(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(generator.integers(len(labels), size=batch))
        return inputs[rows], labels[rows]

    return draw


def excerpts(text: Tensor, batch: int, length: int) -> Callable[[np.random.Generator], tuple[Tensor, Tensor]]:
    """Returns what draws `batch` excerpts of a text (n,): characters (batch, length), and what follows each of them."""
    span = torch.arange(length + 1)

    def draw(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        begins = torch.from_numpy(generator.integers(len(text) - length, size=batch))
        rows = text[begins[:, None] + span]
        return rows[:, :-1], rows[:, 1:]

    return draw


class Tanh(nn.Module):
    """f(x) = sum_j a_j tanh(w_j x + b_j) + c with 20 units, every initial value N(0, 1), in float64."""

    def __init__(self, units: int = 20) -> None:
        super().__init__()
        self.w, self.b, self.a = (nn.Parameter(torch.randn(units, dtype=torch.float64)) for _ in range(3))
        self.c = nn.Parameter(torch.randn(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Returns outputs (n,) at (n,) points."""
        result: Tensor = torch.tanh(x[:, None] * self.w + self.b) @ self.a + self.c
        return result


@cache
def _sines() -> Task:
    def points(first: float, last: float, count: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(first, last, count, dtype=torch.float64)
        return x, torch.sin(x) + torch.sin(4 * x)

    whole = points(-math.pi, math.pi, GRID)
    half = math.pi / (GRID - 1)  # held out is what lies half-way between the points
    held = points(-math.pi + half, math.pi - half, GRID - 1)
    return Task("sines", "Two sines, full batch", Tanh, lambda generator: whole, held, 2000, 2e-2, 0.0, classes=False)


@cache
def _digits() -> Task:
    pixels, labels = scans(SCANS)
    order = torch.from_numpy(np.random.default_rng(SHUFFLE).permutation(len(labels)))
    pixels, labels = pixels.float()[order], labels[order]
    held = pixels[SCANS_KEPT:], labels[SCANS_KEPT:]
    return Task(
        "digits", "Digits, MLP", lambda: nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        ), table(pixels[:SCANS_KEPT], labels[:SCANS_KEPT], 128), held, 500, 1e-2,
    )  # fmt: skip


@cache
def _images() -> Task:
    train, test = images("train", count=CLOTHES), images("test", count=CLOTHES_HELD)
    shown, others = (_halved(part.pixels) for part in (train, test))
    mean, scale = shown.mean(), shown.std()
    held = (others - mean) / scale, torch.from_numpy(test.labels)
    return Task(
        "images", "Fashion-MNIST, CNN", lambda: nn.Sequential(
            nn.Conv2d(1, FILTERS[0], 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(FILTERS[0], FILTERS[1], 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * FILTERS[1], 64), nn.ReLU(), nn.Linear(64, 10),
        ), table((shown - mean) / scale, torch.from_numpy(train.labels), 64), held, 400, 3e-3,
    )  # fmt: skip


@cache
def _text() -> Task:
    text = novels()
    kinds, places = np.unique(np.array(list(text)), return_inverse=True)
    whole = torch.from_numpy(places.astype(np.int64))
    cut = int(SHARE * len(whole))
    held = excerpts(whole[cut:], EXCERPTS_HELD, LENGTH)(np.random.default_rng(SHUFFLE))
    return Task(
        "text", "Austen, Transformer", lambda: Transformer(len(kinds), LENGTH, width=WIDTH),
        excerpts(whole[:cut], 8, LENGTH), held, 200, 1e-2,
    )


TASKS: dict[str, Callable[[], Task]] = {"sines": _sines, "digits": _digits, "images": _images, "text": _text}
"""Name -> what returns the task. Errors: MissingExtraError where its data are not installed."""


def _halved(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Returns images of half the height and width, (n, 1, h/2, w/2), from 0 to 1."""
    whole = torch.tensor(pixels, dtype=torch.float32).unsqueeze(1) / 255.0
    return functional.avg_pool2d(whole, 2)
