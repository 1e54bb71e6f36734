"""A network of 1,000 tanh units on a quadratic form in 50 dimensions: one spike from 1e-8 up to 4, in full batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreshock.curvature import edge, split
from foreshock.papers.adam_readers import Reader
from foreshock.papers.adam_study import Found, Live, Passage, row, settled_runs
from foreshock.run import Run
from foreshock.threads import one_thread

__all__ = ["STEPS", "Wide", "descend", "watch", "wide", "wide_spike"]

SAMPLES, DIMENSIONS = 200, 50
STEPS, LR = 330, 0.02
APPROACH = 100  # steps before the crossing over which chi's growth is split
AROUND = 10  # steps before the crossing and after chi's fall within which a spike has its lowest and its highest loss
RESCUES = (0.1, 0.01, 0.001)  # eps from the alarm on
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "200 units": {"width": 200}, "100 units": {"width": 100}, "lr 0.005": {"lr": 0.005}, "lr 0.01": {"lr": 0.01},
    "eps 0.001 from the start": {"eps": 1e-3},
}  # fmt: skip


class Net(nn.Module):
    """a'tanh(Wx + b) + c."""

    def __init__(self, w: Tensor, b: Tensor, a: Tensor, c: Tensor) -> None:
        super().__init__()
        self.w, self.b, self.a, self.c = (nn.Parameter(each) for each in (w, b, a, c))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs (samples,) of inputs (samples, 50)."""
        result: Tensor = torch.tanh(x @ self.w.T + self.b) @ self.a + self.c
        return result


@dataclass(frozen=True, slots=True)
class Wide:
    """The network and its data, float64: inputs (200, 50), targets (200,)."""

    model: Net
    inputs: Tensor
    targets: Tensor

    def loss(self) -> Tensor:
        """Returns the mean squared error."""
        errors: Tensor = self.model(self.inputs) - self.targets
        return errors.square().mean()


def wide(seed: int, width: int = 1000) -> Wide:
    """Returns y = Xw + X^2 v with X, w, v ~ N(0, 1), and a network whose parameters are all N(0, 1) / width.

    Drawn from numpy's generator in the order X, w, v, W (width x 50), b, a, c.
    """
    rng = np.random.default_rng(seed)
    x, w, v = (rng.standard_normal(shape) for shape in ((SAMPLES, DIMENSIONS), DIMENSIONS, DIMENSIONS))
    shapes = ((width, DIMENSIONS), (width,), (width,), ())
    start = [torch.as_tensor(rng.standard_normal(shape) / width) for shape in shapes]
    return Wide(Net(*start), torch.from_numpy(x), torch.from_numpy(x @ w + x**2 @ v))


def watch(
    seed: int, live: Callable[[int, float], None] = lambda step, loss: None, *, steps: int = STEPS, width: int = 1000
) -> Run:
    """Returns the run of a training that a monitor watches, chi on the whole data read at every step from .8 on."""
    problem = wide(seed, width)
    optimizer = _adam(problem, {})
    reader = Reader(optimizer, problem.loss, dict(problem.model.named_parameters()))
    return reader.watch(problem.model, steps, live, name=f"Wide network, seed {seed}", seed=str(seed))


def descend(
    seed: int, steps: int = STEPS, *, width: int = 1000, change: tuple[int, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> np.ndarray:
    """Returns the losses (steps,) of the same training unwatched, with other settings of Adam.

    Args:
        seed: of data and start.
        steps: how many.
        width: of the network.
        change: a step, and settings that hold from it on.
        settings: of Adam from the start.
    """
    problem = wide(seed, width)
    optimizer = _adam(problem, settings)
    losses = np.empty(steps)
    with one_thread():
        for step in range(steps):
            if change is not None and step == change[0]:
                optimizer.param_groups[0].update(change[1])
            optimizer.zero_grad()
            loss = problem.loss()
            losses[step] = loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return losses


def wide_spike(seed: int, live: Live = lambda share, text: None, steps: int = STEPS) -> Found:
    """Returns the passage of the training's first spike through its stages, and what settings and rescues do to it.

    Steps in `numbers` are counted from 1, as in the paper.
    """
    started = time.perf_counter()
    run = watch(seed, lambda step, loss: live(0.7 * step / steps, f"wide network: loss {loss:.2g}"), steps=steps)
    seconds = time.perf_counter() - started
    losses, runs = {"as it is": run["loss"]}, {"wide": run}
    title = row("Wide network, 50 dimensions", seed, run, seconds)
    crossings, alongs, symmetric = (
        settled_runs(run, signal) for signal in ("chi", "chi_gradient", "chi_gradient_sym")
    )
    if not crossings or not alongs:
        return Found({}, runs, [title], {"losses": losses})
    passage = _passage(run, crossings[0], alongs[0][0])
    up, along, baseline, trough, down, peak = passage
    raw_steps, raw = run.measured("gradient_top")
    kept = raw[(raw_steps >= along) & (raw_steps <= down)] * LR / 2
    numbers = {
        "chi up": up + 1.0, "P up": along + 1.0, "S up": symmetric[0][0] + 1.0, "minimum": baseline + 1.0,
        "trough": trough + 1.0, "down": down + 1.0, "peak": peak + 1.0, "peak loss": float(run["loss"][peak]),
        "minimum loss": float(run["loss"][baseline]), "raw": float(np.median(kept)),
        "raw changes by": float(kept.max() / kept.min() - 1), "v ratio": float(run["v_ratio/w"][up]),
        "lag of the minimum": float(baseline - up), "lag of P": float(along - baseline),
        "lag of the peak": float(peak - down),
        "lead": float(_first(run["loss"][baseline:] >= 1.5 * run["loss"][baseline]) + baseline - up),
        "alignment": float(run["chi_alignment"][along]), "max chi": float(run["chi"][up : down + 1].max()),
        "order": float(all(passage.in_order)),
    }
    window = slice(max(up - APPROACH, 0), up + 1)
    parts = [float(np.nansum(run[f"chi_growth_{name}"][window])) for name in ("preconditioner", "landscape")]
    numbers |= {"preconditioner share": parts[0] / sum(parts), "gradient descent share": _under_descent(seed)}
    alarm = along + 1  # the step after P has passed 1
    live(0.75, "wide network: rescues")
    for eps in RESCUES:
        losses[f"eps {eps:g} at the alarm"] = descend(seed, steps, change=(alarm, {"eps": eps}))
        later = losses[f"eps {eps:g} at the alarm"][alarm + 1 :]
        numbers |= {f"eps {eps:g}: later loss": float(later.max())}
        numbers |= {f"eps {eps:g}: later rise": float(later.max() / losses["as it is"][alarm])}
    live(0.85, "wide network: others")
    for name, settings in OTHERS.items():
        losses[name] = descend(seed, steps, **settings)
        turned = int(np.argmin(losses[name]))
        numbers[f"{name}: highest after the lowest"] = float(losses[name][turned:].max())
    spiked = (*title[:3], "1", *title[4:6], f"{numbers['lead']:.0f}", *title[7:])  # no calm before it, by the rule
    rows = [spiked] + [
        (f"Wide network, {name}", str(seed), f"{steps:,}", "-", "-", "-", "-", f"{values[-1]:.2g}", "")
        for name, values in losses.items() if name != "as it is"
    ]
    return Found(numbers, runs, rows, {"losses": losses, "passage": passage, "alarm": alarm})


def _passage(run: Run, crossing: tuple[int, int], along: int) -> Passage:
    """Returns the passage of the first spike, the loss being lowest and highest about where chi is above 1."""
    up, last = crossing
    losses, size = run["loss"], np.cumsum(np.log(np.nan_to_num(run["v_ratio"], nan=1.0)))
    peak = up + int(np.argmax(losses[along : last + AROUND + 1])) + along - up
    baseline = up - AROUND + int(np.argmin(losses[up - AROUND : peak + 1]))
    trough = baseline + int(np.argmin(size[baseline : peak + 1]))
    return Passage(up, along, baseline, trough, last + 1, peak)


def _under_descent(seed: int) -> float:
    """Returns the preconditioner's share of chi's growth over a few steps of plain gradient descent."""
    problem = wide(seed, 50)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-3)
    with one_thread():
        before = edge(problem.loss, optimizer, tol=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            problem.loss().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = split(before, edge(problem.loss, optimizer, tol=1e-4))
    return found.preconditioner / found.growth


def _first(mask: np.ndarray) -> int:
    return int(np.argmax(mask))


def _adam(problem: Wide, settings: Mapping[str, Any]) -> torch.optim.Adam:
    return torch.optim.Adam(problem.model.parameters(), **{"lr": LR, **settings})
