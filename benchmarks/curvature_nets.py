"""The three trainings that curvature is measured on: A an MLP, B a GPT, C a convolutional net, each after some Adam.

Real data that needs no network: scikit-learn's digits (A; coloured and enlarged for C) and the source text of Python's
own standard library (B). All seeds are fixed; a net takes 2-20 s to reach its checkpoint.
"""

from __future__ import annotations

import copy
import math
import pydoc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Bench:
    """One net with its loss on one fixed batch, as the optimizer left it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor  # of the probe batch, like the targets
    targets: Tensor
    step: Callable[[], None]  # trains on by one step, on fresh batches
    smooth: bool = True

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())

    def loss(self) -> Tensor:
        """Returns the loss of the probe batch, with its graph."""
        return self.criterion(self.model(self.inputs), self.targets)

    def copy(self, kind: torch.dtype = torch.float32) -> Bench:
        """Returns a copy in another precision, without its optimizer's state."""
        model = copy.deepcopy(self.model).to(kind)
        inputs = self.inputs.to(kind) if self.inputs.is_floating_point() else self.inputs
        return Bench(
            self.name, model, torch.optim.SGD(model.parameters(), 1.0), self.criterion, inputs, self.targets, self.step,
            self.smooth,
        )


def net_a(steps: int = 150, *, seed: int = 0, smooth: bool = False) -> Bench:
    """MLP 64-256-256-10 on all 1797 digits, ReLU (or GELU), 85,002 parameters."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(seed)
    act = nn.GELU if smooth else nn.ReLU
    model = nn.Sequential(nn.Linear(64, 256), act(), nn.Linear(256, 256), act(), nn.Linear(256, 10))
    return _train("Ag" if smooth else "A", model, inputs, targets, F.cross_entropy, steps, 128, 1797, 1e-3, smooth)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(c, 2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(c // self.heads)
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.attention, self.ln2 = nn.LayerNorm(width), _Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """A small pre-LayerNorm GPT on bytes, attention written out."""

    def __init__(
        self, *, layers: int = 4, width: int = 128, heads: int = 4, context: int = 128, vocab: int = 256
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocab, width), nn.Parameter(torch.randn(context, width) * 0.02)
        self.layers = nn.Sequential(*[_Layer(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.layers(self.token(tokens) + self.place[: tokens.shape[1]])))
        return logits


def net_b(steps: int = 60, *, seed: int = 0) -> Bench:
    """GPT of 4 layers, width 128, on 16 x 128 bytes of the standard library's sources; 0.87 M parameters."""
    folder = Path(pydoc.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))[:2_000_000]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    starts = torch.arange(0, len(data) - 129, 97)
    inputs = torch.stack([data[s : s + 128] for s in starts])
    targets = torch.stack([data[s + 1 : s + 129] for s in starts])
    torch.manual_seed(seed)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    return _train("B", GPT(), inputs, targets, loss, steps, 4, 16, 1e-3, True)


def net_c(steps: int = 30, *, seed: int = 0) -> Bench:
    """Convolutional net with GroupNorm on coloured 3 x 32 x 32 digits, 128 of them; 130,234 parameters."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    grey = F.interpolate(torch.tensor(x / 16.0, dtype=torch.float32).view(-1, 1, 8, 8), size=32, mode="bilinear")
    generator = torch.Generator().manual_seed(7)
    inputs, targets = grey * torch.rand(len(x), 3, 1, 1, generator=generator), torch.tensor(y)
    torch.manual_seed(seed)

    def conv(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(8, b), nn.ReLU()]

    model = nn.Sequential(
        *conv(3, 32, 1), *conv(32, 48, 2), *conv(48, 64, 2), *conv(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10),
    )
    return _train("C", model, inputs, targets, F.cross_entropy, steps, 128, 128, 4e-3, False)


def _train(
    name: str, model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor],
    steps: int, batch: int, probe: int, lr: float, smooth: bool,
) -> Bench:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    held = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(2))[:probe]

    def step() -> None:
        chosen = torch.randint(0, len(inputs), (batch,), generator=generator)
        loss = loss_fn(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(steps):
        step()
    optimizer.zero_grad()
    return Bench(name, model, optimizer, loss_fn, inputs[held].clone(), targets[held].clone(), step, smooth)


def net_ag(steps: int = 150, *, seed: int = 0) -> Bench:
    """Net A with GELU, which has no kinks."""
    return net_a(steps, seed=seed, smooth=True)


NETS: dict[str, Callable[..., Bench]] = {"A": net_a, "Ag": net_ag, "B": net_b, "C": net_c}
