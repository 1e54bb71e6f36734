"""A broken scanner in a training of digits: the mechanism, the proof by replay, the guilty images, what to change.

python examples/explain_a_spike.py && foreshock explain runs/scanner -o scanner.html
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import foreshock as fs
from foreshock.attribution import Attribution
from foreshock.replay import Replay

BROKEN = (5, 23, 41)  # places in the batch of the images that the scanner has spoilt


def main(directory: str = "runs/scanner", steps: int = 240) -> tuple[Replay, Attribution]:
    """Returns what a replay proves about the spike, and who made it; both are kept with the run."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = [(images[rows], labels[rows]) for rows in torch.randint(len(images), (steps, 64))]
    batches[steps * 3 // 4][0][list(BROKEN)] = 40 * torch.rand(len(BROKEN), 8, 8)

    with fs.Monitor(model, optimizer, run=directory) as monitor, fs.History(monitor):

        def step(batch):  # one step of the loop, as training and replay take it
            x, y = batch
            loss = nn.functional.cross_entropy(model(x), y)
            monitor.observe(loss, batch=batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        def losses(batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        for batch in batches:
            step(batch)
        monitor.flush()
        spike = next(event for event in monitor.events if event.kind == "spike")
        proof = fs.replay(monitor, spike, step)
        blame = fs.attribute_event(monitor, spike, step, losses, decode=lambda example: example[0])
    print(proof.summary)
    print(fs.diagnose(monitor.run, spike).summary)
    return proof, blame


if __name__ == "__main__":
    main(*sys.argv[1:2])
