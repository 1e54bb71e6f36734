"""Mini-batch training on all digits in which one batch is broken: the model is fine, the data are not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.demo.scenario import Scenario, Training, datasets, seeded

__all__ = ["BAD_STEP", "SCENARIO", "build"]

STEPS = 900
BATCH = 64
BAD_STEP = 600


def build(seed: int, *, bad_step: int | None = BAD_STEP) -> Training:
    """Returns 900 AdamW steps on batches of 64 digits; the batch of step `bad_step` missed its preprocessing.

    That batch holds raw pixels (0..16 instead of 0..1) and the labels of other images: what a race in a data loader
    leaves behind. `bad_step=None` gives the same training with all batches sound.
    """
    digits = datasets().load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    draw = torch.Generator().manual_seed(seed)
    batches = torch.randint(len(images), (STEPS, BATCH), generator=draw)
    with seeded(seed):
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        inputs, targets = images[batches[step]], labels[batches[step]]
        if step == bad_step:
            inputs, targets = 16 * inputs, targets.roll(1)
        return functional.cross_entropy(model(inputs), targets)

    return Training(model, optimizer, loss, steps=STEPS)


SCENARIO = Scenario(
    name="bad-batch",
    title="One corrupted batch",
    cause="Data: missing preprocessing",
    mechanism=(
        "Mini-batches of 64 digits. The batch of one step missed its preprocessing: pixels 16 times too large, labels "
        "of other images."
    ),
    look="One narrow spike out of nothing: no signal moves before it, and the next batches are nearly fine.",
    source="common experience",
    build=build,
)
