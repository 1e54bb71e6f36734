"""A training script that has never heard of foreshock, to try `foreshock run` on.

foreshock run examples/train_plain.py --lr 0.1 --accumulate 2 && foreshock report runs/train_plain
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    for _ in range(options.steps):
        optimizer.zero_grad()
        for _ in range(options.accumulate):
            batch = torch.randint(len(images), (32,))
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            (loss / options.accumulate).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    print(f"accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
