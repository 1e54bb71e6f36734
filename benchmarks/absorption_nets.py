"""The networks that the warnings of absorption are judged on, with their data.

Everything takes about a millisecond a step and comes from packages that are installed anyway: formulas, scikit-learn's
tables, the text of Python's own standard library, and Fashion-MNIST where Debian puts it.
"""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.papers.images import images

Batch = tuple[Tensor, Tensor]
Activation = Callable[[], nn.Module]
SYMBOLS = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """A network from inputs to logits (or outputs), with its data."""

    model: nn.Module
    data: Batch


def mlp(
    *widths: int, act: Activation = nn.ReLU, first: Sequence[nn.Module] = (), last: Sequence[nn.Module] = (),
    bias: bool = True,
) -> nn.Sequential:  # fmt: skip
    """Returns a multilayer perceptron, copies of `first` before it and of `last` right before its head."""
    layers = list(map(deepcopy, first))
    for i, (a, b) in enumerate(pairwise(widths)):
        head = i == len(widths) - 2
        layers += [*(map(deepcopy, last) if head else ()), nn.Linear(a, b, bias=bias), *(() if head else (act(),))]
    return nn.Sequential(*layers)


@cache
def _table(name: str) -> Batch:
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@cache
def _garments(count: int) -> Batch:
    found = images(count=count)
    pixels = torch.tensor(found.pixels, dtype=torch.float32)[:, None] / 255
    return F.avg_pool2d(pixels, 2), torch.tensor(found.labels)


@cache
def _text(count: int, length: int) -> Tensor:
    """(count, length + 1) symbols of lower-case Python source, no two rows alike but for their last symbol."""
    text = (Path(pydoc.__file__).parent / "argparse.py").read_text(encoding="utf-8").lower()
    codes = [min(max(ord(c), 32), 126) % SYMBOLS for c in text if c != "\n"]
    rows = {tuple(codes[i : i + length]): codes[i : i + length + 1] for i in range(len(codes) - length)}
    return torch.tensor(list(rows.values())[:count])


def digits(*hidden: int, samples: int = 200, noise: float = 0.0, **more: object) -> Problem:
    """64-...-10 net on the first digits, of which a share `noise` has a label drawn anew."""
    x, y = _table("digits")
    x, y = x[:samples], y[:samples]
    wrong = torch.rand(samples) < noise
    y = torch.where(wrong, torch.randint(10, (samples,)), y)
    return Problem(mlp(64, *hidden, 10, **more), (x, y))  # type: ignore[arg-type]


def table(name: str, *hidden: int, **more: object) -> Problem:
    """Net on one of scikit-learn's tables, standardised: "iris", "wine", "breast_cancer"."""
    x, y = _table(name)
    return Problem(mlp(x.shape[1], *hidden, int(y.max()) + 1, **more), (x, y))  # type: ignore[arg-type]


def garments(*hidden: int, samples: int = 200, **more: object) -> Problem:
    """196-...-10 net on Fashion-MNIST at half its resolution."""
    x, y = _garments(samples)
    return Problem(mlp(196, *hidden, 10, **more), (x.flatten(1), y))  # type: ignore[arg-type]


def convolved(source: str = "digits", channels: int = 8, samples: int = 100, act: Activation = nn.ReLU) -> Problem:
    """Three convolutions on digits or garments."""
    x, y = (_table("digits")[0].view(-1, 1, 8, 8), _table("digits")[1]) if source == "digits" else _garments(samples)
    c, side = channels, x.shape[-1] // 4
    model = nn.Sequential(
        nn.Conv2d(1, c, 3, padding=1), act(), nn.MaxPool2d(2), nn.Conv2d(c, 2 * c, 3, padding=1), act(),
        nn.MaxPool2d(2), nn.Conv2d(2 * c, 2 * c, 3, padding=1), act(), nn.Flatten(), nn.Linear(2 * c * side**2, 10),
    )  # fmt: skip
    return Problem(model, (x[:samples], y[:samples]))


def clusters(
    classes: int, *hidden: int, samples: int = 200, inputs: int = 20, spread: float = 0.5, zipf: bool = False,
    unclear: int = 0, **more: object,
) -> Problem:  # fmt: skip
    """Net on Gaussian clusters, equally frequent or with frequencies 1, 1/2, 1/3, ...; the first few drawn by lot."""
    centres = torch.randn(classes, inputs)
    frequencies = 1 / torch.arange(1.0, classes + 1)
    y = torch.multinomial(frequencies, samples, replacement=True) if zipf else torch.arange(samples) % classes
    x = centres[y] + spread * torch.randn(samples, inputs)
    y = torch.where(y < unclear, torch.randint(classes, (samples,)), y)
    return Problem(mlp(inputs, *hidden, classes, **more), (x, y))  # type: ignore[arg-type]


def modular(p: int, *hidden: int, share: float = 0.6, product: bool = False, **more: object) -> Problem:
    """Net on a share of the table of addition (or multiplication) modulo p, both operands one-hot."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    rows = torch.randperm(p * p)[: int(share * p * p)]
    x = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], 1).float()
    y = (a * b if product else a + b) % p
    return Problem(mlp(2 * p, *hidden, p, **more), (x[rows], y[rows]))  # type: ignore[arg-type]


def letters(*hidden: int, samples: int = 300, length: int = 8, width: int = 8, **more: object) -> Problem:
    """Net that tells the symbol after `length` others, each embedded in `width` numbers."""
    rows = _text(samples, length)
    first = (nn.Embedding(SYMBOLS, width), nn.Flatten())
    model = mlp(length * width, *hidden, SYMBOLS, first=first, **more)  # type: ignore[arg-type]
    return Problem(model, (rows[:, :-1], rows[:, -1]))


class _Layer(nn.Module):
    """Causal self-attention and a multilayer perceptron, each behind a LayerNorm where one is wanted."""

    def __init__(self, width: int, normed: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) if normed else nn.Identity() for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp(width, 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, 2, c // 2).transpose(1, 2) for part in self.qkv(self.norms[0](x)).split(c, 2))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.out(seen)
        done: Tensor = x + self.mlp(self.norms[1](x))
        return done


class GPT(nn.Module):
    """A small decoder: tokens (B, T) -> logits (B, K, T), or (B, K) after the last token alone."""

    def __init__(self, symbols: int, length: int, width: int = 32, normed: bool = True, last: bool = False) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(symbols, width), nn.Parameter(0.1 * torch.randn(length, width))
        self.layers = nn.Sequential(_Layer(width, normed), _Layer(width, normed))
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.head, self.last = nn.Linear(width, symbols, bias=False), last

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.norm(self.layers(self.token(tokens) + self.place))
        logits: Tensor = self.head(features[:, -1] if self.last else features)
        return logits if self.last else logits.transpose(1, 2)


def sentences(rows: int = 32, length: int = 24, repeats: int = 3, **more: object) -> Problem:
    """GPT on text of which the last symbols of every row are one template, which it soon knows by heart."""
    text = _text(8000, length)[:: 8000 // rows][:rows].clone()
    text[:, -repeats:] = torch.arange(repeats)
    return Problem(GPT(SYMBOLS, length, **more), (text[:, :-1], text[:, 1:]))  # type: ignore[arg-type]


def sums(p: int, share: float = 0.6, **more: object) -> Problem:
    """GPT without normalisation that reads two numbers and says their sum modulo p."""
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    rows = torch.randperm(p * p)[: int(share * p * p)]
    model = GPT(p, 2, normed=False, last=True, **more)  # type: ignore[arg-type]
    return Problem(model, (torch.stack([a, b], 1)[rows], ((a + b) % p)[rows]))
