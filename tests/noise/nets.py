"""Networks with every kind of layer whose examples can be told apart, and the slow way to tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Losses = Callable[[], Tensor]


class OwnNorm(nn.Module):
    """A root-mean-square norm of somebody's own, whose weight is counted from 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Text(nn.Module):
    """Tokens (n, t): an embedding with padding tied to the head, a block called twice, positions, a bare parameter."""

    def __init__(self, tokens: int = 11, width: int = 6, length: int = 5, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width, padding_idx=0)
        self.where = nn.Embedding(length, width)
        self.norm, self.own, self.root = nn.LayerNorm(width), OwnNorm(width), nn.RMSNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.bare = nn.Parameter(torch.ones(1))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.where(torch.arange(x.shape[1]))
        for _ in range(2):
            h = h + self.narrow(F.gelu(self.wide(self.norm(h))))
        return self.head(self.root(self.own(h * self.bare)))  # type: ignore[no-any-return]


class Image(nn.Module):
    """Images (n, 3, 8, 8): strided, dilated, grouped and depthwise convolutions, norms over channels, writing over."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.group = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, groups=2, padding="same", dilation=2)
        self.batch, self.each = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)
        self.depth = nn.Conv2d(4, 4, 2, groups=4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.group(self.first(x)), inplace=True)
        h = self.each(h) + self.batch(self.second(h)).sigmoid()
        return self.head(torch.tanh(self.depth(h)).mean((2, 3)))  # type: ignore[no-any-return]


class Line(nn.Module):
    """Series (n, 3, 9): a convolution over a line."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).mean(2))  # type: ignore[no-any-return]


def case(name: str, n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a network, its inputs (n, ...) and its targets."""
    torch.manual_seed(3)
    x: Tensor
    if name.startswith("text"):
        model: nn.Module = Text(tied=name == "text")
        x, y = torch.randint(0, 11, (n, 5)), torch.randint(0, 11, (n, 5))
        return model.to(dtype), x, y
    if name == "image":
        model, x = Image().eval(), torch.randn(n, 3, 8, 8, dtype=dtype)
        model.batch.running_mean.normal_()  # type: ignore[operator, union-attr]
    elif name == "line":
        model, x = Line(), torch.randn(n, 3, 9, dtype=dtype)
    else:
        model, x = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3)), torch.randn(n, 4)
    return model.to(dtype), x.to(dtype), torch.randint(0, 3, (n,))


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Returns each example's loss, (n,)."""
    z = model(x)
    return F.cross_entropy(z.movedim(-1, 1), y, reduction="none").reshape(len(x), -1).mean(1)


def slowly(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Returns every example's gradient of every parameter, (n, ...) by name, one backward pass for each example."""
    names = dict(model.named_parameters())
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(len(x)):
        loss = losses(model, x[i : i + 1], y[i : i + 1])[0]
        grads: Any = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        for (name, param), grad in zip(names.items(), grads, strict=True):
            rows[name].append(torch.zeros_like(param) if grad is None else grad)
    return {name: torch.stack(each) for name, each in rows.items()}
