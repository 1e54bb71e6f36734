"""The networks that the forecast is judged on, with their data: families for tuning, and others held out.

Everything is small enough for a step of about a millisecond, and comes from packages that are installed anyway:
formulas, scikit-learn's tables, and the text of Python's own standard library.
"""

from __future__ import annotations

import math
import pydoc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Problem:
    """A network with its data: `loss(batch)` is a pure function of the parameters."""

    model: nn.Module
    data: Batch
    criterion: Callable[[Tensor, Tensor], Tensor]

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self.criterion(self.model(inputs), targets)


def _mlp(*widths: int, act: Callable[[], nn.Module] = nn.Tanh, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers += [nn.LayerNorm(b)] if norm else []
            layers.append(act())
    return nn.Sequential(*layers)


def _drawn(model: nn.Module, std: float | None = None) -> nn.Module:
    if std is not None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=std)
    return model


@cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9), y


@cache
def _pixels(samples: int, kind: torch.dtype) -> Batch:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:samples] / 16.0, dtype=kind), torch.tensor(y[:samples])


@cache
def _text(sequences: int, length: int) -> Batch:
    """Lower-case text of the standard library's sources as 64 symbols: (inputs, the symbols that follow)."""
    folder = Path(pydoc.__file__).parent
    text = "".join((folder / name).read_text(encoding="utf-8").lower() for name in ("argparse.py", "ast.py"))
    codes = torch.tensor([min(max(ord(c), 32), 126) - 32 for c in text if c != "\n"]) % 64
    starts = torch.arange(sequences) * 97
    rows = torch.stack([codes[s : s + length + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def _symbols(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _halves(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def _wave(n: int, kind: torch.dtype, *tones: float) -> Batch:
    x = torch.linspace(-math.pi, math.pi, n, dtype=kind)[:, None]
    return x, sum((torch.sin(tone * x) for tone in tones), torch.zeros_like(x))


# ---- for tuning


def sine(width: int = 20, n: int = 20) -> Problem:
    """Net TL of Bai et al. 2025: sin x + sin 4x, one tanh layer, every initial value N(0, 1)."""
    return Problem(_drawn(_mlp(1, width, 1), 1.0).double(), _wave(n, torch.float64, 1, 4), F.mse_loss)


def diabetes(width: int = 100, samples: int = 200) -> Problem:
    """10-width-1 tanh net on the progression of diabetes, initial values N(0, 1) / width."""
    x, y = _table("diabetes")
    targets = torch.tensor((y - y.mean()) / y.std())[:samples, None]
    model = _drawn(_mlp(10, width, 1), 1 / width).double()
    return Problem(model, (torch.tensor(x[:samples]), targets), F.mse_loss)


def digits(
    width: int = 32, samples: int = 300, entropy: bool = False, act: Callable[[], nn.Module] = nn.Tanh
) -> Problem:
    """64-width-width-10 net on digits: half the squared error over one-hot targets, or cross-entropy."""
    x, y = _pixels(samples, torch.float32)
    model = _mlp(64, width, width, 10, act=act)
    targets = y if entropy else F.one_hot(y, 10).float()
    return Problem(model, (x - x.mean(0), targets), F.cross_entropy if entropy else _halves)


class _Attention(nn.Module):
    """Causal or full self-attention, written out so that it can be differentiated twice."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(c, 2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(c // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, heads, causal)
        self.norm2, self.mlp = nn.LayerNorm(width), _mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _GPT(nn.Module):
    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(64, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.Sequential(*[_Layer(width, 2, True) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.layers(self.token(tokens) + self.place)))
        return logits


def gpt(width: int = 16, layers: int = 2, sequences: int = 8, length: int = 16) -> Problem:
    """Pre-LayerNorm GPT on text of the standard library's sources."""
    return Problem(_GPT(width, layers, length), _text(sequences, length), _symbols)


# ---- held out


class _Conv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, channels, 3, 1, 1), nn.Conv2d(channels, 2 * channels, 3, 2, 1)
        self.head = nn.Linear(2 * channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.second(F.gelu(self.first(x))))
        logits: Tensor = self.head(y.flatten(1))
        return logits


def conv(channels: int = 4, samples: int = 100, entropy: bool = True) -> Problem:
    """Convolutional net with GELU on 8 x 8 digits."""
    x, y = _pixels(samples, torch.float32)
    targets = y if entropy else F.one_hot(y, 10).float()
    return Problem(_Conv(channels), (x.view(-1, 1, 8, 8), targets), F.cross_entropy if entropy else _halves)


class _Recurrent(nn.Module):
    """A tanh RNN written out (torch's own has no second derivative on every device)."""

    def __init__(self, width: int, symbols: int) -> None:
        super().__init__()
        self.take, self.keep = nn.Embedding(symbols, width), nn.Linear(width, width)
        self.head = nn.Linear(width, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        seen, state, states = self.take(tokens), torch.zeros(len(tokens), self.keep.in_features), []
        for t in range(tokens.shape[1]):
            state = torch.tanh(seen[:, t] + self.keep(state))
            states.append(state)
        logits: Tensor = self.head(torch.stack(states, 1))
        return logits


def recurrent(width: int = 24, sequences: int = 8, length: int = 12) -> Problem:
    """Tanh RNN on text of the standard library's sources."""
    return Problem(_Recurrent(width, 64), _text(sequences, length), _symbols)


class _Rows(nn.Module):
    """The eight rows of a digit as tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.take, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.1)
        self.layers = nn.Sequential(*[_Layer(width, 2, False) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.layers(self.take(x.view(-1, 8, 8)) + self.place)).mean(1))
        return logits


def transformer(width: int = 16, layers: int = 1, samples: int = 100, entropy: bool = True) -> Problem:
    """Transformer encoder that classifies digits from their rows."""
    x, y = _pixels(samples, torch.float32)
    targets = y if entropy else F.one_hot(y, 10).float()
    return Problem(_Rows(width, layers), (x, targets), F.cross_entropy if entropy else _halves)


def normed(width: int = 24, name: str = "wine") -> Problem:
    """LayerNorm MLP with GELU on scikit-learn's wine or cancer table, cross-entropy."""
    x, y = _table(name)
    inputs = torch.tensor(x, dtype=torch.float32)
    model = _mlp(x.shape[1], width, width, int(y.max()) + 1, act=nn.GELU, norm=True)
    return Problem(model, (inputs, torch.tensor(y)), F.cross_entropy)


def coder(width: int = 24, code: int = 6, samples: int = 150) -> Problem:
    """Autoencoder of digits through a narrow tanh layer."""
    x, _ = _pixels(samples, torch.float32)
    return Problem(_mlp(64, width, code, width, 64), (x, x), _halves)


def quadratic(width: int = 300, inputs: int = 20, samples: int = 100) -> Problem:
    """Net N50 of Bai et al. 2025, smaller: y = Xw + (X^2)v, one tanh layer, initial values N(0, 1) / width."""
    x = torch.randn(samples, inputs, dtype=torch.float64)
    w, v = torch.randn(2, inputs, 1, dtype=torch.float64)
    model = _drawn(_mlp(inputs, width, 1), 1 / width).double()
    return Problem(model, (x, x @ w + x.square() @ v), F.mse_loss)


def waves(width: int = 24, n: int = 40, act: Callable[[], nn.Module] = nn.Tanh) -> Problem:
    """Two hidden layers on sin x + sin 3x / cos 2x: a two-valued regression."""
    x, y = _wave(n, torch.float64, 1, 3)
    targets = torch.cat([y, torch.cos(2 * x)], 1)
    return Problem(_mlp(1, width, width, 2, act=act).double(), (x, targets), F.mse_loss)
