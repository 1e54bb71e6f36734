"""What <U, g_i> for all examples costs, in plain gradients, by every method and against those who form the gradients.

Run with `python benchmarks/attribution_rows.py [--quick] [--json PATH]`. The unit is one gradient (forward and backward
pass) of the summed loss on the same batch, taken before and after what is measured, in CPU time on one thread; printed
is the median of the quotients over the repetitions, and the largest error against float64 (one backward pass for each
example), relative to the largest row. "ghost, a pool" is what one of many batches costs within `select`, the gradient
of the sum of the losses included.

Nets: an MLP on 256 vectors, a convolutional net with GroupNorm on 32 images, a GPT on 16 sequences of 64 tokens;
seeded, synthetic data. Peers, where they are installed (`pip install opacus captum`): `torch.func.vmap(grad)`, Opacus'
`GradSampleModule` and Captum's sample-wise Jacobian form every example's gradient, n times the model in memory, and
multiply then; Captum's knows linear and convolutional layers alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from foreshock.attribution import row_products
from foreshock.attribution.asked import Asked
from foreshock.attribution.ghost import Known
from foreshock.attribution.rows import moves_of

Answer = Callable[[], Tensor]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int = 128, length: int = 64, width: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(t) + self.places)))


@dataclass(frozen=True)
class Net:
    """A model with one batch, and the losses of its examples."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor

    def losses(self, out: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of each example, shape (n,): the mean over its tokens where it has some."""
        found = F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="none")
        return found.view(len(y), -1).mean(1)

    def each(self) -> Tensor:
        return self.losses(self.model(self.x), self.y)

    @property
    def params(self) -> list[Tensor]:
        return list(self.model.parameters())


def nets() -> list[Net]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    conv = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    text = torch.randint(0, 128, (16, 65))
    return [
        Net("MLP", mlp, torch.randn(256, 256), torch.randint(0, 10, (256,))),
        Net("conv", conv, torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))),
        Net("GPT", GPT(), text[:, :-1], text[:, 1:]),
    ]


def contenders(net: Net, direction: list[Tensor]) -> dict[str, Answer]:
    """Returns the ways to the rows."""
    model = net.model
    found: dict[str, Answer] = {}

    def by(method: str) -> Answer:
        return lambda: row_products(net.each, net.params, direction, model=model, method=method).values

    for method in ("ghost", "forward", "double", "each"):
        found[method] = by(method)
    found["ghost, a pool"] = pooled(net, direction)
    found["torch.func.vmap(grad)"] = mapped(net, direction)
    for name, made in (("Opacus", opacus), ("Captum", captum)):
        try:
            found[name] = made(net, direction)
        except ImportError:
            Console(stderr=True).print(f"{name} is not installed and is left out")
    return found


def pooled(net: Net, direction: list[Tensor]) -> Answer:
    """Returns the rows as `select` finds them for a batch that is not the first, and the gradient with them."""
    known = Known()
    moves = moves_of(net.params, direction)

    def answer() -> Tensor:
        found, _ = Asked(net.each, net.params, moves, net.model, known=known).both()
        return found.values

    return answer


def mapped(net: Net, direction: list[Tensor]) -> Answer:
    """Returns per-example gradients by `vmap`, multiplied."""
    values = {name: param.detach() for name, param in net.model.named_parameters()}

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return net.losses(functional_call(net.model, values, (x[None],)), y[None])[0]

    def answer() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            grads = vmap(grad(one), in_dims=(None, 0, 0))(values, net.x, net.y)
        return sum(g.flatten(1) @ u.flatten() for g, u in zip(grads.values(), direction, strict=True))

    return answer


def opacus(net: Net, direction: list[Tensor]) -> Answer:
    """Returns per-example gradients by Opacus' hooks, multiplied."""
    from opacus.grad_sample import GradSampleModule

    copied = Net(net.name, copy.deepcopy(net.model), net.x, net.y)
    wrapped = GradSampleModule(copied.model, loss_reduction="sum", strict=False)
    named = dict(zip([name for name, _ in net.model.named_parameters()], direction, strict=True))

    def answer() -> Tensor:
        wrapped.zero_grad()
        net.losses(wrapped(net.x), net.y).sum().backward()
        params = dict(copied.model.named_parameters())
        # a bare parameter is hooked by none of its layers: its rows are missing, as the error shows
        return sum(p.grad_sample.flatten(1) @ named[name].flatten() for name, p in params.items()
                   if getattr(p, "grad_sample", None) is not None)  # fmt: skip

    return answer


def captum(net: Net, direction: list[Tensor]) -> Answer:
    """Returns per-example gradients by Captum's sample-wise trick, multiplied."""
    from captum._utils.gradient import _compute_jacobian_wrt_params_with_sample_wise_trick as jacobian

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return net.losses(out, y).sum()

    def answer() -> Tensor:
        rows = jacobian(net.model, (net.x,), net.y, loss, "sum")
        return sum(g.flatten(1) @ u.flatten() for g, u in zip(rows, direction, strict=True))

    return answer


def exact(net: Net, direction: list[Tensor]) -> Tensor:
    """Returns the rows in float64, by one backward pass for each example."""
    x = net.x.double() if net.x.is_floating_point() else net.x
    wide = Net(net.name, copy.deepcopy(net.model).double(), x, net.y)
    rows = []
    for loss in wide.each():
        grads = torch.autograd.grad(loss, wide.params, retain_graph=True)
        rows.append(sum((g * u.double()).sum() for g, u in zip(grads, direction, strict=True)))
    return torch.stack(rows)


def unit(net: Net) -> float:
    begun = time.process_time()
    torch.autograd.grad(net.each().sum(), net.params)
    return time.process_time() - begun


@dataclass(frozen=True)
class Result:
    net: str
    who: str
    gradients: float
    error: float


def measured(net: Net, repetitions: int) -> list[Result]:
    """Returns what each contender cost and how far off it was; a first call of each is not counted."""
    direction = [torch.randn_like(param) for param in net.params]
    truth = exact(net, direction)
    ways = contenders(net, direction)
    for who, answer in list(ways.items()):
        try:
            answer()
        except Exception as error:
            Console(stderr=True).print(f"{who} does not do {net.name}: {type(error).__name__}")
            ways.pop(who)
    unit(net)
    quotients: dict[str, list[float]] = {who: [] for who in ways}
    errors = dict.fromkeys(ways, 0.0)
    for _ in range(repetitions):
        for who, answer in ways.items():
            before = unit(net)
            begun = time.process_time()
            rows = answer()
            spent = time.process_time() - begun
            quotients[who].append(2 * spent / (before + unit(net)))
            errors[who] = max(errors[who], float((rows.double() - truth).abs().max() / truth.abs().max()))
    return [Result(net.name, who, statistics.median(quotients[who]), errors[who]) for who in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 repetitions instead of 15")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = [result for net in nets() for result in measured(net, 3 if asked.quick else 15)]
    table = Table("rows by", *(f"{name}{what}" for name in ("MLP", "conv", "GPT") for what in ("", ", error")))
    for who in dict.fromkeys(result.who for result in results):
        mine = {result.net: result for result in results if result.who == who}
        cells: list[str] = []
        for name in ("MLP", "conv", "GPT"):
            cells += [f"{mine[name].gradients:.2f}", f"{mine[name].error:.0e}"] if name in mine else ["-", ""]
        table.add_row(who, *cells)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
