"""Does S3 end the spikes that rounding makes? The classifier of the softmax-absorption paper, S3 in Adam's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from foreshock.optim import S3
from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_training import reference
from foreshock.papers.studies import Found, Live, Shelf
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["rounding"]

STEPS, LR = 3000, 1e-3

Make = Callable[[Iterable[Tensor]], Optimizer]


def rounding(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns how often Adam and S3 lose a fit of 200 digits again, in float32 and by torch's cross-entropy."""
    numbers: dict[str, float] = {}
    runs: dict[str, Run] = {}
    steps = steps or STEPS
    kinds: dict[str, Make] = {
        "Adam .9/.95": lambda params: torch.optim.Adam(params, LR, betas=(0.9, 0.95)),
        "S3": lambda params: S3(params, LR),
        "S3 at 3x": lambda params: S3(params, 3 * LR),
    }
    for place, (kind, make) in enumerate(kinds.items()):
        live(place / len(kinds), f"seed {seed}, spikes of rounding: {kind}")
        problem = reference(seed)
        optimizer, losses = make(problem.model.parameters()), torch.empty(steps, dtype=torch.float64)
        with one_thread():
            for step in range(steps):
                loss = functional.cross_entropy(problem.model(problem.inputs), problem.labels)
                losses[step] = loss.detach()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        found = losses.tolist()
        numbers[f"rounding: spikes of {kind}"] = float(len(relapses(found)))
        numbers[f"rounding: lowest loss of {kind}"] = min(found)
        name = f"rounding-{kind.lower().replace(' ', '-').replace('/', '-')}-seed-{seed}"
        runs[name] = Run.from_arrays({"loss": losses.numpy()}, paper="s3", seed=seed, name=f"200 digits, {kind}")
    return Found(numbers, runs, drawn={"rounding": {kind: numbers[f"rounding: spikes of {kind}"] for kind in kinds}})
