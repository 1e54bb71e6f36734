"""A training of your own that asks, every ten steps, how far its learning rate is from the edge of stability.

It begins with a learning rate at which every oscillation grows, or with one far too small: `--lr 1`, `--lr 0.01`. Each
reading says up to which learning rate the next step is stable; where chi is above 1 or below 0.5 this loop takes four
fifths of that. What to do at the edge is yours to say: many trainings live with chi = 1, and stop sharpening there.

python examples/track_the_edge.py --lr 1
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import foreshock as fs


def main(lr: float = 1.0, steps: int = 200) -> list[tuple[int, float, float]]:
    """Returns (step, chi, learning rate told) of each reading."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    targets = nn.functional.one_hot(torch.tensor(digits.target), 10).float()
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    def loss_on(rows: slice | torch.Tensor) -> torch.Tensor:
        return 0.5 * (model(images[rows]) - targets[rows]).square().sum(dim=1).mean()

    tracker = fs.EdgeTracker(optimizer, lambda: loss_on(slice(512)), every=10)  # one batch, held
    readings = []
    for step in range(steps):
        loss = loss_on(torch.randperm(len(images))[:256])
        optimizer.zero_grad()
        loss.backward()
        reading = tracker.step()
        if reading is not None:
            told = reading.max_stable_lr
            readings.append((step, reading.chi, told))
            print(f"step {step:3}  loss {loss.item():.4f}  chi {reading.chi:.2f}  stable up to lr {told:.2f}")
            if not 0.5 < reading.chi < 1:
                optimizer.param_groups[0]["lr"] = 0.8 * told
                print(f"          from here on with lr {0.8 * told:.2f}")
        optimizer.step()
    return readings


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lr", type=float, default=1.0)
    main(parser.parse_args().lr)
