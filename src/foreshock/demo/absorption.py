"""Full-batch training on 200 digits in float32, long after it fits them: the softmax itself makes the spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.demo.scenario import Scenario, Training, datasets, seeded

__all__ = ["SCENARIO", "build"]


def build(seed: int, *, dtype: torch.dtype = torch.float32) -> Training:
    """Returns 5000 full-batch steps of a 64-32-32-32-10 ReLU network on 200 digits.

    With the loss near 1e-7 the right class's probability rounds to 1 in float32, its gradient to 0, and the class
    gradients no longer sum to zero: head and features inflate until the loss jumps. Seeds 0 to 2 spike 7 times
    each; in float64 none does.
    """
    digits = datasets().load_digits()
    images = torch.tensor(digits.data[:200] / 16, dtype=dtype)
    labels = torch.tensor(digits.target[:200])
    with seeded(seed):  # drawn in float32 whatever `dtype` is, so that both precisions start from the same point
        model = nn.Sequential(
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        ).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def loss(step: int) -> Tensor:
        return functional.cross_entropy(model(images), labels)

    return Training(model, optimizer, loss, steps=5000)


SCENARIO = Scenario(
    name="absorption",
    title="Softmax absorption",
    cause="Numerics: a rounded softmax",
    mechanism=(
        "200 digits, fitted perfectly, then trained on in float32. The softmax rounds the right class's gradient to "
        "zero, the class gradients no longer cancel, and head and features inflate until the loss jumps."
    ),
    look="Absorbing, inflating, imminent: a first warning 700 steps before the loss jumps; and why, below the curves.",
    source="arXiv 2605.06152",
    build=build,
)
