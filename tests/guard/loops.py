"""Small trainings with and without a guard, and faults in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreshock import Guard, Monitor, Snapshots, policies
from foreshock.run import Run

Fault = Callable[[int, nn.Module, torch.optim.Optimizer], None]


class Trained(NamedTuple):
    losses: list[float]
    state: list[Tensor]
    guard: Guard | None
    run: Run


def data(seed: int = 0, n: int = 1024) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, :1] * x[:, 1:2]).sin() + 0.1 * torch.randn(n, 1, generator=generator)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Returns the 32 rows of a step."""
    x, y = data()
    rows = torch.randint(0, len(x), (32,), generator=torch.Generator().manual_seed(step))
    return x[rows], y[rows]


def at(step: int, action: policies.Action) -> policies.Policy:
    """Returns a policy that does one thing at one step."""
    return lambda events, actions: action if events.step == step else policies.Proceed()


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def flat(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Returns copies of every tensor of the model and of the optimizer's state."""
    kept = [each.detach().clone() for each in [*model.parameters(), *model.buffers()]]
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        state = optimizer.state.get(param, {})
        kept += [state[name].clone() for name in sorted(state) if isinstance(state[name], Tensor)]
    return kept


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def train(
    *, guarded: bool = True, steps: int = 160, fault: Fault | None = None, seed: int = 0,
    make: Callable[[nn.Module], torch.optim.Optimizer] = adamw, policy: Any = None, every: int = 20,
) -> Trained:  # fmt: skip
    """Trains on seeded batches; a fault is called with (step, model, optimizer) after each backward pass."""
    x, y = data(seed)
    model = net(seed)
    optimizer = make(model)
    draw = torch.Generator().manual_seed(seed + 1)
    losses = []
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, policy, snapshots=Snapshots(every=every)) if guarded else None
        for step in range(steps):
            rows = torch.randint(0, len(x), (64,), generator=draw)
            loss = nn.functional.mse_loss(model(x[rows]), y[rows])
            monitor.observe(loss)
            loss.backward()
            if fault is not None:
                fault(step, model, optimizer)
            _ = guard.step() if guard is not None else optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return Trained(losses, flat(model, optimizer), guard, monitor.run)
