"""What the gradient noise scale costs while a training runs, and how exact the norms are that it is made of.

Run with `python benchmarks/noise.py [SHARE]` (a share of the rounds, default 1). Cost: step time with the probe against
the same monitored loop without it: paired, step by step in an order that turns, CPU time, one thread, at every step
(`every=1`), and at the default's every 20th. Exactness: squared norms of every example's gradient against one backward
pass for each. Peers, measured where they can be imported: per-example gradients by `torch.func.vmap`, and Opacus'
`GradSampleModule`; in forward and backward passes of the same batch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench_monitor import GPT
from foreshock.monitor import Monitor
from foreshock.noise import PerExampleNorms
from foreshock.probes import NoiseScale

Make = Callable[[], nn.Module]
Step = Callable[[], None]
WARM_UP = 5


def gpt(width: int, layers: int, length: int) -> Make:
    return lambda: GPT(width, layers, length)


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1),
        nn.GroupNorm(8, 64), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )


# network, examples, their shape (None: tokens of this length), rounds
NETS: dict[str, tuple[Make, int, tuple[int, ...], int]] = {
    "GPT, 0.9 M parameters": (gpt(128, 4, 128), 16, (128,), 30),
    "GPT, tiny": (gpt(32, 2, 64), 16, (64,), 200),
    "MLP, 0.27 M parameters": (mlp, 64, (256,), 300),
    "convolutions": (convolutions, 32, (3, 32, 32), 60),
}
PROBES = {
    "examples, all, every step": lambda: NoiseScale(every=1),
    "examples, norms, every step": lambda: NoiseScale("norm", every=1, calibrate=0),
    "examples, all, default": lambda: NoiseScale(),
    "pairs of 4 micro-batches": lambda: NoiseScale(every=1),
}


def batch(shape: tuple[int, ...], n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) == 1 and shape[0] in (128, 64):
        x = torch.randint(256, (n, shape[0] + 1), generator=generator)
        return x[:, :-1], x[:, 1:]
    return torch.randn(n, *shape, generator=generator), torch.randint(10, (n,), generator=generator)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x)
    return F.cross_entropy(z.movedim(-1, 1), y, reduction="none").reshape(len(x), -1).mean(1)


def training(make: Make, probes: list[NoiseScale], parts: int, x: Tensor, y: Tensor) -> tuple[Step, Monitor]:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    monitor = Monitor(model, optimizer, probes=probes)

    def step() -> None:
        for part in torch.arange(len(x)).chunk(parts):
            loss = losses(model, x[part], y[part]).mean()
            monitor.observe(loss, batch=x[part])
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, monitor


def turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each step, by name; all take turns."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds + WARM_UP):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            begun = time.process_time()
            steps[name]()
            spent[name].append(time.process_time() - begun)
    return {name: times[WARM_UP:] for name, times in spent.items()}


def cost(title: str, rounds: int) -> None:
    make, n, shape, _ = NETS[title]
    x, y = batch(shape, n)
    with ExitStack() as stack:
        steps = {}
        for name, parts in (("one batch", 1), ("4 micro-batches", 4)):
            steps[name], monitor = training(make, [], parts, x, y)
            stack.enter_context(monitor)
        for name, probe in PROBES.items():
            steps[name], monitor = training(make, [probe()], 4 if name.startswith("pairs") else 1, x, y)
            stack.enter_context(monitor)
        spent = turns(steps, rounds)
    print(f"{title}: step {statistics.median(spent['one batch']) * 1e3:.1f} ms")
    for name in PROBES:
        plain = spent["4 micro-batches" if name.startswith("pairs") else "one batch"]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(spent[name], plain, strict=True))
        print(f"  {name:28s} {ratio:.3f}x  (sums {sum(spent[name]) / sum(plain):.3f}x)")


def exactness(title: str) -> None:
    make, n, shape, _ = NETS[title]
    torch.manual_seed(0)
    model = make()
    x, y = batch(shape, n)
    with PerExampleNorms(model) as norms:
        losses(model, x, y).mean().backward()
        found = norms.read()
    off = dict.fromkeys(found.by_parameter, 0.0)
    params = dict(model.named_parameters())
    for i in range(min(n, 8)):
        grads = torch.autograd.grad(losses(model, x[i : i + 1], y[i : i + 1])[0], list(params.values()))
        for name, grad in zip(params, grads, strict=True):
            if name in off:
                exact = float(grad.double().square().sum())
                off[name] = max(off[name], abs(float(found.by_parameter[name][i]) / exact - 1) if exact else 0.0)
    worst = max(off, key=off.__getitem__)
    print(f"  norms: off by {off[worst]:.1e} at most ({worst}), {found.coverage:.1%} of the parameters covered")


def peers(title: str, rounds: int) -> None:
    make, n, shape, _ = NETS[title]
    torch.manual_seed(0)
    model = make()
    x, y = batch(shape, n)
    params = {name: param.detach() for name, param in model.named_parameters()}

    def plain() -> None:
        torch.autograd.grad(losses(model, x, y).mean(), list(model.parameters()))

    def ours() -> None:
        with norms:
            losses(model, x, y).mean().backward()
            norms.read()
        model.zero_grad()

    def one(values: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        z = torch.func.functional_call(model, values, (a[None],))
        return F.cross_entropy(z.movedim(-1, 1), b[None])

    def mapped() -> None:
        grads = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(params, x, y)
        torch.stack([grad.flatten(1).square().sum(1) for grad in grads.values()]).sum(0)

    norms = PerExampleNorms(model)
    steps: dict[str, Step] = {"plain": plain, "ours, with the gradient": ours, "torch.func.vmap": mapped}
    try:
        from opacus import GradSampleModule

        torch.manual_seed(0)
        wrapped = GradSampleModule(make())

        def opacus() -> None:
            losses(wrapped, x, y).mean().backward()
            torch.stack([param.grad_sample.flatten(1).square().sum(1) for param in wrapped.parameters()]).sum(0)
            wrapped.zero_grad()

        steps["Opacus, with the gradient"] = opacus
    except ImportError:
        pass
    spent = turns(steps, rounds)
    for name in list(steps)[1:]:
        pairs = zip(spent[name], spent["plain"], strict=True)
        print(f"  {name:28s} {statistics.median(mine / theirs for mine, theirs in pairs):.2f} passes")


def main() -> None:
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    torch.set_num_threads(1)
    for title, (*_, rounds) in NETS.items():
        cost(title, max(10, int(share * rounds)))
        exactness(title)
        peers(title, max(5, int(share * rounds / 4)))


if __name__ == "__main__":
    main()
