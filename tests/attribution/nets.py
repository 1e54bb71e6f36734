"""Small networks of every kind that rows are asked of, each with its per-example losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Callable[[], Tensor]]
N = 4


def _classified(model: nn.Module, x: Tensor, classes: int = 3) -> Made:
    y = torch.arange(len(x)) % classes
    return model, lambda: F.cross_entropy(model(x), y, reduction="none")


def mlp() -> Made:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    return _classified(net, torch.randn(N, 5))


def conv() -> Made:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1), nn.GroupNorm(2, 6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2, padding_mode="reflect"), nn.BatchNorm2d(8).eval(),
        nn.SiLU(), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.PReLU(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return _classified(net, torch.randn(N, 4, 8, 8))


def signals() -> Made:
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same"), nn.InstanceNorm1d(4, affine=True), nn.GELU(), nn.Unflatten(1, (2, 2)),
        nn.Conv2d(2, 2, 1), nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, (1, 2, 3)), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    return _classified(net, torch.randn(N, 2, 9))


class Attention(nn.Module):
    """A decoder block: packed qkv, tied head, places looked up, bare parameters, a norm of its own, one layer twice."""

    def __init__(self, tokens: int = 7, width: int = 8, length: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.start = nn.Parameter(torch.randn(1, 1, width))
        self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.RMSNorm(width)
        self.mix = nn.Parameter(torch.randn(width, width) / 3)

    def forward(self, t: Tensor) -> Tensor:
        x = self.tokens(t) + self.places(torch.arange(t.shape[1]))
        x = torch.cat([self.start.expand(len(t), -1, -1), x[:, 1:]], 1)
        for _ in range(2):
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain + self.shift
        return F.linear(torch.tanh(scaled @ self.mix), self.tokens.weight)


def decoder() -> Made:
    net = Attention()
    t = torch.randint(0, 7, (N, 9))  # 8 places: a multiple of the 4 examples, so that lookups look like examples
    t[:, 2] = 0

    def losses() -> Tensor:
        return F.cross_entropy(net(t[:, :-1]).transpose(1, 2), t[:, 1:], reduction="none").mean(1)

    return net, losses


class Heads(nn.Module):
    """`nn.MultiheadAttention` of both kinds, batch second, within torch's encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1)
        self.cross = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, dropout=0.1)
        self.same = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.leave = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.enter(x))
        h = h + self.cross(h, x, x)[0]
        h = h + self.same(h, h.flip(0), h, need_weights=False)[0]
        return self.leave(h.mean(0))


def heads() -> Made:
    net = Heads()
    x = torch.randn(6, N, 5)
    y = torch.arange(N) % 3
    return net, lambda: F.cross_entropy(net(x), y, reduction="none")


def recurrent() -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru = nn.LSTM(5, 6, 2, batch_first=True, dropout=0.2), nn.GRU(6, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(self.lstm(x)[0])[0][:, -1])

    return _classified(Net(), torch.randn(N, 6, 5))


def bags() -> Made:
    net = nn.Sequential(nn.EmbeddingBag(9, 6, mode="mean"), nn.Dropout(0.5), nn.Bilinear(6, 6, 3))
    t, y = torch.randint(0, 9, (N, 5)), torch.arange(N) % 3

    def losses() -> Tensor:
        h = net[1](net[0](t))
        return F.cross_entropy(net[2](h, h), y, reduction="none")

    return net, losses


def experts() -> Made:
    """Tokens that are sent to two experts, in an order of their own."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 2), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            shares = self.gate(flat).softmax(-1)
            out = torch.zeros_like(flat)
            for k, expert in enumerate(self.experts):
                mine = (shares.argmax(-1) == k).nonzero()[:, 0]
                out = out.index_add(0, mine, expert(flat[mine]) * shares[mine, k, None])
            return self.head(out.view_as(x).mean(1))

    return _classified(Net(), torch.randn(N, 6, 4))


def low_rank() -> Made:
    """An adapter on a frozen weight, a mask, a weight in the norm, and penalties that every example pays."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Parameter(torch.randn(4, 5))
            self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2))
            self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3).eval())
            self.mask = torch.rand(4, 5) > 0.5

        def forward(self, x: Tensor) -> Tensor:
            weight = (self.base + self.up @ self.down) * self.mask
            h = F.linear(x, weight)
            h += self.up[:, 0]
            return self.head(torch.relu(h))

    net = Net().eval()
    x, y = torch.randn(N, 5), torch.arange(N) % 3
    return net, lambda: F.cross_entropy(net(x), y, reduction="none") + 0.1 * net.base.square().sum()


def products() -> Made:
    """Layers written as products (`addmm`, `einsum`, `bmm`), arguments by name, and what has no formula of its own."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
            self.c, self.d = nn.Parameter(torch.randn(6, 2, 3)), nn.Parameter(torch.randn(3, 3))
            self.scale, self.power = nn.Parameter(torch.rand(3) + 1), nn.Parameter(torch.rand(()) + 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(torch.addmm(self.b, x, self.a))
            h = torch.einsum("ni,ijk->njk", h, self.c)
            h = torch.bmm(h, self.d.expand(len(x), 3, 3))
            h = F.layer_norm(input=h, normalized_shape=(3,), weight=self.scale - 1, bias=None)
            h = torch.add(h, self.scale, alpha=0.5) / self.scale
            return F.linear(input=torch.pow(h.abs() + 0.1, self.power).mean(1), weight=self.d)

    return _classified(Net(), torch.randn(N, 5))


NETS = (products, mlp, conv, signals, decoder, heads, recurrent, bags, experts, low_rank)


def batch_statistics() -> Made:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                        nn.Flatten(), nn.LazyLinear(3))  # fmt: skip
    return _classified(net, torch.randn(N, 2, 6, 6))


def contrast() -> Made:
    """Every example's loss looks at all others."""
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(N, 5)

    def losses() -> Tensor:
        z = F.normalize(net(x), dim=1)
        return F.cross_entropy(z @ z.T / 0.5, torch.arange(N).flip(0), reduction="none")

    return net, losses


COUPLED = (batch_statistics, contrast)
