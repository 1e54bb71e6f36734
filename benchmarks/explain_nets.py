"""The networks that causes are planted in, with their data: all real, each with data of another kind beside it.

Digits of scikit-learn, Fashion-MNIST where Debian puts it (digits, larger, where it does not), novels where
r-cran-janeaustenr is installed (Python's help pages where it is not). A step takes one to three milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.errors import MissingExtraError
from foreshock.papers.digits import scans
from foreshock.papers.images import images
from guard_nets import Block, texts

Batch = tuple[Tensor, Tensor]
LENGTH = 24  # characters that a text net reads
RARE = (8, 9)  # classes that come late where classes do


@dataclass
class Task:
    """A network with its data.

    Attributes:
        model: its last layer is `model.head`.
        data: inputs (n, ...) and targets (n,) or (n, length).
        strange: data of another kind, of the same shapes.
        familiar: rows without the classes (characters) that are kept for later.
        each: loss of each example of a batch, (rows,), with its graph.
        classes: that the head tells apart.
        text: whether inputs are numbers of characters.
    """

    model: nn.Module
    data: Batch
    strange: Batch
    familiar: Tensor
    each: Callable[[Batch], Tensor]
    classes: int
    text: bool = False

    def loss(self, batch: Batch) -> Tensor:
        return self.each(batch).mean()


class Dense(nn.Module):
    """64-64-32-10 on digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Conv(nn.Module):
    """Two convolutions on 14 x 14 images, with batch normalisation on request."""

    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        def norm(c: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(c)] if normed else []

        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), *norm(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), *norm(16), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """One block of causal attention over characters."""

    def __init__(self, characters: int, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        self.body, self.norm = Block(width, 0.0, heads=2), nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.tokens(x) + self.places.weight)))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM over characters."""

    def __init__(self, characters: int, width: int = 40) -> None:
        super().__init__()
        self.tokens, self.body = nn.Embedding(characters, 16), nn.LSTM(16, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.tokens(x))[0])  # type: ignore[no-any-return]


class Coder(nn.Module):
    """Autoencoder of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh())
        self.head = nn.Linear(12, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@cache
def _digits() -> Batch:
    pixels, labels = scans(1797)
    return pixels.float(), labels


@cache
def _garments() -> Batch:
    """Returns (4000, 1, 14, 14) garments; digits, enlarged, where there are none."""
    try:
        found = images(count=4000)
    except MissingExtraError:
        pixels, labels = _digits()
        return F.interpolate(pixels.view(-1, 1, 8, 8), (14, 14), mode="bilinear"), labels
    pixels = torch.tensor(found.pixels, dtype=torch.float32)[:, None] / 255
    return F.avg_pool2d(pixels, 2), torch.tensor(found.labels)


@cache
def _rows() -> tuple[Tensor, Tensor, int]:
    """Returns (6000, length + 1) characters of novels, as many of help pages, and how many kinds there are."""
    text, _, other, kinds = texts()
    return *(each[: 6000 * (LENGTH + 1)].view(-1, LENGTH + 1) for each in (text, other)), kinds  # type: ignore[return-value]


def _classified(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _spelled(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none").mean(1)


def _restored(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1)


def _common(targets: Tensor) -> Tensor:
    return torch.tensor([label not in RARE for label in targets.tolist()]).nonzero().flatten()


def mlp() -> Task:
    """Digits; the strange ones are garments."""
    inputs, targets = _digits()
    other = F.interpolate(_garments()[0], (8, 8), mode="area").flatten(1)
    model = Dense()
    strange = other, _garments()[1]
    return Task(model, (inputs, targets), strange, _common(targets), lambda b: _classified(model, b), 10)


def conv(normed: bool = False) -> Task:
    """Garments; the strange ones are digits."""
    inputs, targets = _garments()
    other = F.interpolate(_digits()[0].view(-1, 1, 8, 8), (14, 14), mode="bilinear")
    model = Conv(normed)
    return Task(model, (inputs, targets), (other, _digits()[1]), _common(targets), lambda b: _classified(model, b), 10)


def _text(make: Callable[[int], nn.Module]) -> Task:
    text, other, kinds = _rows()
    model = make(kinds)
    rare = torch.bincount(text.flatten(), minlength=kinds) < 0.012 * text.numel()  # capitals, marks, q, x, z, ...
    familiar = (~rare[text].any(1)).nonzero().flatten()
    return Task(
        model, (text[:, :-1], text[:, 1:]), (other[:, :-1], other[:, 1:]), familiar, lambda b: _spelled(model, b),
        kinds, text=True,
    )  # fmt: skip


def gpt() -> Task:
    """Novels; the strange text is Python's help pages."""
    return _text(Decoder)


def lstm() -> Task:
    """As `gpt`."""
    return _text(Recurrent)


def coder() -> Task:
    """Digits that are to come out as they went in; the strange ones are garments."""
    inputs, labels = _digits()
    other = F.interpolate(_garments()[0], (8, 8), mode="area").flatten(1)
    model = Coder()
    return Task(model, (inputs, inputs), (other, other), _common(labels), lambda b: _restored(model, b), 0)


NETS: dict[str, Callable[[], Task]] = {
    "mlp": mlp, "conv": conv, "bnconv": lambda: conv(normed=True), "gpt": gpt, "lstm": lstm, "coder": coder,
}  # fmt: skip
