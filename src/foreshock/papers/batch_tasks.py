"""Real data in batches of any size: digits, Fashion-MNIST and novels of Jane Austen, with a small network for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.papers.digits import scans
from foreshock.papers.images import images
from foreshock.papers.text import novels
from foreshock.papers.transformer import Transformer

__all__ = ["TASKS", "Batch", "Task"]

Batch = tuple[Tensor, Tensor]

EVALUATED = 512  # examples, always the same ones, on which the loss is looked at
LENGTH = 32  # characters of an excerpt
WIDE = tuple(2**power for power in range(3, 11))  # 8 to 1,024


@dataclass(frozen=True, slots=True)
class Task:
    """A network and its data.

    Attributes:
        title: in a few words.
        data: inputs and labels of all examples, (n, ...) each.
        build: a fresh network; torch's global stream decides its start.
        target: loss at which a training has arrived.
        half: loss on the way, where switches are tried.
        rate: Adam's learning rate with which the search begins, at the smallest batch.
        batches: sizes that are trained.
        switched: the two sizes between which the batch is switched.
    """

    title: str
    data: Callable[[], Batch]
    build: Callable[[], nn.Module]
    target: float
    half: float
    rate: float
    batches: tuple[int, ...]
    switched: tuple[int, int]

    def network(self, seed: int) -> nn.Module:
        """Returns the network of a seed; the global stream is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Returns a batch, drawn with replacement, so that its noise is 1/size of an example's at any size."""
        inputs, labels = self.data()
        rows = torch.randint(len(labels), (size,), generator=generator)
        return inputs[rows], labels[rows]

    def held(self) -> Batch:
        """Returns the examples on which the loss is looked at."""
        inputs, labels = self.data()
        step = max(1, len(labels) // EVALUATED)
        return inputs[::step][:EVALUATED], labels[::step][:EVALUATED]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy, over characters too where labels are sequences."""
    logits, labels = model(batch[0]), batch[1]
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


@cache
def _digits() -> Batch:
    pixels, labels = scans(1797)
    pixels = pixels.float()
    return pixels - pixels.mean(0), labels


@cache
def _fashion() -> Batch:
    found = images("train", count=16384)
    pixels = torch.from_numpy(found.pixels.astype(np.float32) / 255.0)
    small = functional.avg_pool2d(pixels.unsqueeze(1), 2).flatten(1)  # 14 x 14, at a quarter of the cost
    return small - small.mean(), torch.from_numpy(found.labels)


@cache
def _austen() -> Batch:
    text = novels()[:600_000]
    kinds = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([kinds[character] for character in text])
    rows = numbers.unfold(0, LENGTH + 1, LENGTH // 2)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _wide() -> nn.Module:
    return nn.Sequential(nn.Linear(196, 48), nn.ReLU(), nn.Linear(48, 10))


def _transformer() -> nn.Module:
    return Transformer(int(_austen()[0].max()) + 1, LENGTH, width=32, blocks=1)


TASKS = {
    "digits": Task("MLP on digits", _digits, _mlp, 0.05, 0.3, 4e-3, WIDE, (16, 256)),
    "fashion": Task("MLP on Fashion-MNIST", _fashion, _wide, 0.45, 0.6, 4e-3, WIDE, (16, 256)),
    "austen": Task("transformer on Jane Austen", _austen, _transformer, 2.5, 2.8, 4e-3, (8, 16, 32, 64, 128), (8, 128)),
}
