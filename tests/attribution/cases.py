"""Small trainings whose steps are attributed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.attribution import Step, capture


def classifier(
    seed: int = 0, *, activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 4)).to(dtype)


def batch(seed: int, n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(4, (n,), generator=generator)


def losses_of(net: nn.Module, data: tuple[Tensor, Tensor]):
    return lambda: F.cross_entropy(net(data[0]), data[1], reduction="none")


def trained(
    net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4, *, clip: float | None = None
) -> list[Step]:
    """Returns the steps of a short training, each on another batch."""
    kept = []
    dtype = next(net.parameters()).dtype
    for i in range(steps):
        optimizer.zero_grad()
        losses_of(net, batch(i, dtype=dtype))().mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        with capture(optimizer, net) as step:
            optimizer.step()
        kept.append(step)
    return kept
