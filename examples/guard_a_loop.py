"""A guarded training of digits that meets seven faults, and what the guard did about them.

python examples/guard_a_loop.py && foreshock report runs/guarded
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import foreshock as fs
from foreshock.testing import faults


def main(directory: str = "runs/guarded", steps: int = 1500, *, guarded: bool = True) -> float:
    """Returns the loss over all images at the end, which the faults should not have changed."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.9 * min(1.0, step / steps))
    rows = torch.randint(len(images), (steps, 64))
    batches = fs.Requeue([(images[each] + 0.5 * torch.randn(64, 64), labels[each]) for each in rows])
    injector = faults.Injector(
        [
            faults.random_batch(steps * 2 // 15),
            faults.scaled_gradient(steps * 4 // 15),
            faults.nan_gradient(steps * 6 // 15),
            faults.raised_lr(steps * 8 // 15),
            faults.state_reset(steps * 10 // 15),
            faults.bit_flip(steps * 12 // 15),
            faults.constant_batch(steps * 14 // 15),
        ],
        model,
        optimizer,
    )

    with fs.Monitor(model, optimizer, run=directory) as monitor:
        monitor.annotate(title="Digits, guarded" if guarded else "Digits, unguarded")
        guard = fs.Guard(monitor, scheduler=scheduler, data=batches) if guarded else None
        for step, batch in enumerate(batches):
            x, y = injector.batch(step, batch)
            loss = nn.functional.cross_entropy(model(x), y)
            monitor.observe(loss)
            loss.backward()
            injector.gradients(step)
            injector.before_step(step)
            if guard is not None:
                guard.step()
            else:
                optimizer.step()
                scheduler.step()
            injector.after_step(step)
            optimizer.zero_grad()

    for action in () if guard is None else guard.actions:
        print(f"step {action.step}: {action.kind}: {action.reason}")
    return float(nn.functional.cross_entropy(model(images), labels).detach())


if __name__ == "__main__":
    print(f"final loss {main(*sys.argv[1:2]):.4f}")
