"""The price of calm: what keeping Adam below its edge does to spikes and to the loss that a training ends at.

Twenty tanh units on two sines (`foreshock.papers.adam_problems`), full batch, Adam with lr .02; Hessians exact. Arms:

    unguarded           -
    cap                 chi is never let above .9: the learning rate of each step is cut to .9/chi
    cut at S            the same, only at steps whose form S (curvature along the gradient) is above 1
    floor at S          v raised to the floor that brings chi to .9, at those steps
    refill at S         v refilled along the unstable direction to chi = .9, at those steps
    floor, refill       the same at the steps that `foreshock.detect.alarm.Alarm` calls imminent
    guard               live: `fs.Guard` with its default policy on a `Monitor` with the curvature probe

    python benchmarks/guard_edge.py --seeds 300 301 302 [--beta2 0.99] [--live] [--steps 6000]

Spikes are counted by the calm rule (a rise of half), the loss is the median of the last 500 steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from foreshock.detect.alarm import Alarm
from foreshock.papers.adam_exact import Floats, Hyper
from foreshock.papers.adam_problems import Sines, sines
from foreshock.papers.calm_spikes import spikes
from foreshock.stability.foresight import Refill, outlook

LAST = 500
FIRST = 20  # steps in which young second moments put chi anywhere
FLOOR = DEEP = 0.9
NEAR, NEARER = 0.9, 0.97  # chi from which on every third, and every step is read


def denominator(hyper: Hyper, step: int, v: Floats) -> Floats:
    return np.sqrt(v / (1 - hyper.beta2**step)) + hyper.eps


@dataclass
class Here:
    """A step about to be taken: v holds its gradient."""

    hyper: Hyper
    step: int
    loss: float
    H: Floats
    g: Floats
    v: Floats
    alarm: Alarm
    chi: float = 0.0
    u: Floats = field(default_factory=lambda: np.empty(0))
    due: int = 0
    direction: Floats | None = None

    def P(self, v: Floats) -> Floats:  # noqa: N802
        return denominator(self.hyper, self.step, v)

    def W(self, v: Floats) -> Floats:  # noqa: N802
        beta1 = self.hyper.beta1
        return self.hyper.lr / 2 * (1 - beta1) / (1 + beta1) / (1 - beta1**self.step) / self.P(v)

    def read(self) -> float:
        root = np.sqrt(self.W(self.v))
        values, vectors = np.linalg.eigh(root[:, None] * self.H * root)
        self.chi, self.u = float(values[-1]), vectors[:, -1]
        return self.chi

    def solved(self, make: Callable[[float], Floats], kappa: float) -> Floats:
        """Returns make(x) for the least x with which sum u^2 P/P' is kappa/chi."""
        target, P = kappa / self.chi, self.P(self.v)
        low, high = -200.0, 200.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            above = (self.u**2 * P / self.P(make(np.exp(middle)))).sum() > target
            low, high = (middle, high) if above else (low, middle)
        return make(np.exp(high))


def along_the_gradient(here: Here) -> bool:
    """Says whether form S is above 1, and reads chi there."""
    along = here.W(here.v) * here.g
    return here.step > FIRST and float(along @ here.H @ along / (here.g @ along)) > 1.0 and here.read() > 1.0


def always(here: Here) -> bool:
    return here.step > FIRST and here.read() > FLOOR


def alarmed(here: Here) -> bool:
    """Says what the shipped alarm says, given readings as a monitor would take them."""
    if here.step <= FIRST or here.step < here.due:
        return False
    chi = here.read()
    here.due = here.step + (1 if chi > NEARER else 3 if chi > NEAR else 10)
    W = here.W(here.v)
    motion = float((here.u * np.sqrt(W) * here.g).sum() ** 2 / (2 * chi)) if chi > 0 else 0.0
    direction = np.sqrt(W) * here.u
    direction /= np.linalg.norm(direction)
    reading = {"chi": chi, "loss": here.loss, "chi_mode_loss": motion}
    if here.direction is not None:
        reading["chi_overlap"] = abs(float(direction @ here.direction))
    here.direction = direction
    if chi > NEAR:
        mode = float((here.u**4 * 2 * chi * motion / W / here.v).sum())
        whole = float((here.u**2 * here.g**2 / here.v).sum())
        refill = Refill(here.hyper.beta2, mode, max(0.0, whole - mode), here.step)
        found = outlook(chi, min(1.0, motion / here.loss), momentum=here.hyper.beta1, refill=refill)
        reading["expected_rise"] = found.rise
    event = here.alarm.update(here.step, reading)
    return event is not None and event.kind == "imminent"


def cut(here: Here) -> tuple[Floats, float]:
    return here.v, FLOOR / here.chi


def floored(here: Here) -> tuple[Floats, float]:
    return here.solved(lambda x: np.maximum(here.v, x), FLOOR), 1.0


def refilled(here: Here) -> tuple[Floats, float]:
    pattern = here.u**2 * here.P(here.v)  # (H w)^2, up to a factor
    return here.solved(lambda x: here.v + x * pattern, DEEP), 1.0


ARMS: dict[str, tuple[Callable[[Here], bool], Callable[[Here], tuple[Floats, float]]] | None] = {
    "unguarded": None, "cap": (always, cut), "cut at S": (along_the_gradient, cut),
    "floor at S": (along_the_gradient, floored), "refill at S": (along_the_gradient, refilled),
    "floor": (alarmed, floored), "refill": (alarmed, refilled),
}  # fmt: skip


def train(arm: str, seed: int, hyper: Hyper, steps: int) -> tuple[Floats, int]:
    """Returns the losses (steps,), and how often the arm acted."""
    problem, theta = sines(seed)
    m, v, losses, acts = np.zeros_like(theta), np.zeros_like(theta), np.empty(steps), 0
    here = Here(hyper, 0, 0.0, np.empty(0), m, v, Alarm())
    for step in range(1, steps + 1):
        losses[step - 1], g = problem.gradient(theta)
        m, v, size = hyper.beta1 * m + (1 - hyper.beta1) * g, hyper.beta2 * v + (1 - hyper.beta2) * g * g, 1.0
        chosen = ARMS[arm]
        if chosen is not None:
            here.step, here.loss, here.g, here.v = step, losses[step - 1], g, v
            here.H = problem.hessians(theta[None])[0]
            if chosen[0](here):
                v, size = chosen[1](here)
                acts += 1
        theta = theta - size * hyper.lr * m / (1 - hyper.beta1**step) / denominator(hyper, step, v)
    return losses, acts


def live(seed: int, hyper: Hyper, steps: int) -> tuple[Floats, int]:
    """Returns the same of torch's Adam under a guard."""
    import torch

    import foreshock as fs
    from foreshock.probes import Curvature

    problem, start = sines(seed)
    model = _net(problem, start)
    x, y = torch.tensor(problem.inputs), torch.tensor(problem.targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=hyper.lr, betas=(hyper.beta1, hyper.beta2), eps=hyper.eps)
    losses = np.empty(steps)
    with fs.Monitor(model, optimizer, probes=[Curvature(every=20)], max_overhead=1.0) as monitor:
        guard = fs.Guard(monitor)
        for step in range(steps):
            loss = (model(x) - y).square().mean()
            losses[step] = loss.item()
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    print("  by kind:", {kind: sum(each.kind == kind for each in guard.actions) for kind in
                         sorted({each.kind for each in guard.actions})}, flush=True)
    return losses, len(guard.actions)


def _net(problem: Sines, start: Floats):
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, place in problem.tensors.items():
                self.register_parameter(name, torch.nn.Parameter(torch.tensor(start[place])))

        def forward(self, x):
            return torch.tanh(x[:, None] * self.w + self.b) @ self.a + self.c

    return Net()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[300, 301, 302])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--live", action="store_true")
    given = parser.parse_args()
    hyper, base = Hyper(beta2=given.beta2), np.ones(len(given.seeds))
    print(f"{'arm':12s} {'spikes':>7s} {'acts, median (range)':>22s} {'final loss / unguarded, median (range)':>42s}")
    for arm in [*given.arms, *(["guard"] if given.live else [])]:
        begun, count, acts, final = time.perf_counter(), [], [], []
        for seed in given.seeds:
            losses, done = live(seed, hyper, given.steps) if arm == "guard" else train(arm, seed, hyper, given.steps)
            count.append(len(spikes(losses)))
            acts.append(done)
            final.append(float(np.median(losses[-LAST:])))
        base = np.array(final) if arm == "unguarded" else base
        ratio = np.array(final) / base
        print(f"{arm:12s} {sum(count):7d} {int(np.median(acts)):10d} ({min(acts)} to {max(acts)})"
              f" {np.median(ratio):24.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
              f"   {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
