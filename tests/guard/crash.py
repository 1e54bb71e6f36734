"""A guarded training that may be killed at any instant and goes on from its last checkpoint.

`python -m tests.guard.crash DIRECTORY STEPS EVERY`: trains to the last step, from the checkpoint if there is one, and
writes one every so many attempts, after the losses of the attempts so far. The file that says the run is done comes
last of all.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from foreshock import Guard, Monitor, Requeue
from foreshock.testing import faults
from tests.guard.loops import data

FAULTS = [
    faults.random_batch(34), faults.nan_gradient(47), faults.raised_lr(58), faults.constant_batch(70, steps=3),
    faults.state_reset(84), faults.bit_flip(97, parameter="0.weight"),
]  # fmt: skip


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.1), nn.Linear(24, 1)
    )  # fmt: skip


def train(directory: Path, steps: int, every: int) -> dict[str, Any]:
    """Trains, and returns what is to be compared."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    x, y = data(n=640)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(5))
    requeue = Requeue(loader, horizon=10)
    injector = faults.Injector(FAULTS, model, optimizer, seed=3)
    monitor = Monitor(model, optimizer, run=directory / "run", probes=[])
    losses: list[float] = []
    saved: dict[str, Any] | None = None
    if (directory / "checkpoint").exists():
        saved = torch.load(directory / "checkpoint", weights_only=True)
        monitor.load_state_dict(saved["monitor"])
        losses = saved["losses"]
    with monitor:
        guard = Guard(monitor, scheduler=scheduler, data=requeue)
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "requeue": requeue, "guard": guard}
        if saved is not None:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            torch.set_rng_state(saved["rng"])
        while len(losses) < steps:
            for rows, targets in requeue:
                step = monitor.step
                xs, ys = injector.batch(step, (rows, targets))
                loss = nn.functional.mse_loss(model(xs), ys)
                monitor.observe(loss)
                loss.backward()
                injector.gradients(step)
                injector.before_step(step)
                guard.step()
                injector.after_step(step)
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                if len(losses) % every == 0:
                    write(directory / "checkpoint", {name: part.state_dict() for name, part in parts.items()} | {
                        "monitor": monitor.state_dict(), "rng": torch.get_rng_state(), "losses": losses,
                    })  # fmt: skip
                print(len(losses), flush=True)
                if len(losses) == steps:
                    break
    return {
        "losses": losses, "parameters": [*model.state_dict().values()], "lr": optimizer.param_groups[0]["lr"],
        "actions": [action.to_dict() for action in guard.actions], "injected": sorted(set(injector.injected)),
    }  # fmt: skip


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a file that is whole whenever it is there."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main() -> None:
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    directory = Path(sys.argv[1])
    write(directory / "done", train(directory, int(sys.argv[2]), int(sys.argv[3])))


if __name__ == "__main__":
    main()
