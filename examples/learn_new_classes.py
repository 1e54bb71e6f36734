"""A classifier learns five more classes without the jump of the loss that random rows make, and keeps the old ones.

python examples/learn_new_classes.py && foreshock explain runs/classes
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import foreshock as fs


def main(
    directory: str = "runs/classes", steps: int = 200, method: str = "ls"
) -> tuple[fs.heads.NewRows, float, float]:
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    old, new = torch.nonzero(labels < 5).squeeze(1), torch.nonzero(labels >= 5).squeeze(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print(fs.burst_response(optimizer).text)

    def step(monitor: fs.Monitor, batch: Tensor) -> float:
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        monitor.observe(loss, batch=(images[batch], labels[batch]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    with fs.Monitor(model, optimizer, run=directory) as monitor:
        for _ in range(steps):
            known = step(monitor, old[torch.randint(len(old), (64,))])
        replay = old[torch.randperm(len(old))[:100]]  # what is kept of the old classes
        seen = torch.cat([new, replay])
        ids = fs.heads.grow_rows(model[2], 5, optimizer=optimizer)
        with torch.no_grad():
            statistics = fs.HeadStatistics(64)
            statistics.update(model[:2](images[seen]), labels[seen])
        rows = fs.init_new_rows(model[2], statistics, ids, method=method, optimizer=optimizer, monitor=monitor)
        print(rows.text)
        losses = [
            step(monitor, torch.cat([new[torch.randint(len(new), (32,))], replay[torch.randint(len(replay), (32,))]]))
            for _ in range(steps)
        ]
    print(f"loss before the new classes {known:.3f}, first with them {losses[0]:.3f}, last {losses[-1]:.3f}")
    return rows, losses[0], losses[-1]


if __name__ == "__main__":
    main(*sys.argv[1:2])
