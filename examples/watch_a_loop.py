"""The five lines in a whole training: digits, a small network, a learning rate far too high for three steps.

python examples/watch_a_loop.py && foreshock report runs/digits
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import foreshock as fs


def main(directory: str = "runs/digits", steps: int = 400) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    with fs.Monitor(model, optimizer, run=directory) as monitor:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.2 if 300 <= step < 303 else 1e-3
            batch = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for event in monitor.events:
        print(f"{event.kind} of {event.signal}: steps {event.onset} to {event.end}, peak at {event.peak}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
