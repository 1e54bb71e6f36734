"""Step time with the monitor against without: paired, interleaved step by step, in one process, threads fixed.

Run with `python benchmarks/bench_monitor.py [SHARE]` (a share of the rounds, default 1). Two networks: a GPT of 0.9 M
parameters on 2,048 tokens, and a tiny one whose step takes about 8 ms on one idle core. Each contender trains its own
copy from the same seed; a round gives every contender one step, in an order that turns, so that all see the same
machine. Printed is the median over rounds of CPU time against the plain loop's step of the same round, and the ratio
of the sums, which holds the flushes too. "plain again" shows what the method itself cannot resolve. The peer is
trainscope (`pip install trainscope==1.8.1`), measured where it is installed.

Goals: 1.02 on the GPT, 1.05 on the tiny network.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.monitor import Monitor
from foreshock.probes import FREE, Secant, Softmax, native

Step = Callable[[Tensor], None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, width: int, layers: int, length: int, heads: int = 4, vocabulary: int = 256) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places.weight)))  # type: ignore[no-any-return]


# settings, batch size, rounds
NETS = {
    "GPT, 0.9 M parameters": ({"width": 128, "layers": 4, "length": 128}, 16, 60),
    "tiny, 8 ms steps": ({"width": 32, "layers": 2, "length": 64}, 16, 800),
}
WARM_UP = 5


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, observe: Callable[[Tensor], None]) -> Step:
    def step(tokens: Tensor) -> None:
        logits = model(tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contender(name: str, settings: dict[str, int], folder: Path) -> tuple[Step, AbstractContextManager[Any]]:
    torch.manual_seed(0)
    model = GPT(**settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if name.startswith("plain"):
        return loop(model, optimizer, lambda loss: None), nullcontext()
    if name == "trainscope":
        return trainscope(model, optimizer, folder)
    # chi has a budget of its own, a share of the time that one can set
    probes = {"loss only": (), "and secants": (*FREE, Secant), "and softmax": (*FREE, Softmax)}.get(name, FREE)
    monitor = Monitor(model, optimizer, run=folder / name, probes=probes)
    if name == "not compiled":
        monitor._sweep.fused = False
    return loop(model, optimizer, monitor.observe), monitor


def trainscope(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> tuple[Step, Any]:
    from trainscope import TrainScope  # type: ignore[import-not-found]
    from trainscope.core.config import TrainScopeConfig  # type: ignore[import-not-found]

    scope = TrainScope(model, optimizer, config=TrainScopeConfig(run_dir=str(folder / "trainscope"))).attach()
    count = iter(range(10**9))

    def step(tokens: Tensor) -> None:
        logits = model(tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        scope.step(loss.item(), batch_index=next(count))
        optimizer.step()
        optimizer.zero_grad()

    return step, nullcontext()


def measure(names: list[str], settings: dict[str, int], batch: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    spent: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        steps = []
        for name in names:
            step, context = contender(name, settings, Path(folder))
            stack.enter_context(context)
            steps.append(step)
        for i in range(rounds + WARM_UP):
            tokens = torch.randint(256, (batch, settings["length"]), generator=generator)
            for j in range(len(names)):  # the order turns, so that none always follows the same neighbour
                k = (i + j) % len(names)
                begun = time.process_time()
                steps[k](tokens)
                spent[names[k]].append(time.process_time() - begun)
    plain = spent["plain"][WARM_UP:]
    print(f"  plain step {statistics.median(plain) * 1e3:.1f} ms of CPU, {rounds} rounds")
    for name in names[1:]:
        mine = spent[name][WARM_UP:]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(mine, plain, strict=True))
        print(f"  {name:14s} {ratio:.3f}x  (sums {sum(mine) / sum(plain):.3f}x)")


def main() -> None:
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    names = ["plain", "plain again", "monitor", "and secants", "and softmax", "not compiled", "loss only"]
    if native.library() is None:
        print("the compiled sweep was not built here, so `monitor` is the torch path")
    try:
        import trainscope as _  # noqa: F401

        names.append("trainscope")
    except ImportError:
        print("trainscope is not installed, so the peer is left out")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for title, (settings, batch, rounds) in NETS.items():
            print(f"{title}, {threads} thread{'s' if threads > 1 else ''}")
            measure(names, settings, batch, max(10, int(share * rounds)))


if __name__ == "__main__":
    main()
