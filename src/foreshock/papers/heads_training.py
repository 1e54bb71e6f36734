"""One training to which classes are added: watched across its boundaries, old and new classes tested apart."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foreshock.monitor import Monitor
from foreshock.papers.heads_data import Pool
from foreshock.papers.studies import Live, silent
from foreshock.run import Event, Run

__all__ = ["Boundary", "Classes", "Fill", "Learner", "Loss", "Trace", "begin", "learn", "loss_of", "loss_peaks"]

PAPER = "new-heads"
TAIL = 150  # steps of the base that are taken once more, watched, so that detectors know the level
BEFORE = 50  # steps before a boundary whose mean loss is the level
NEAR = 25  # steps after a boundary in which an event is its doing
MARKS = (*range(1, 11), *range(12, 21, 2), 23, 26, 30, 35, *range(40, 81, 10), *range(100, 1001, 20))
"""Steps after a boundary at which accuracies are read; every second one where the backbone moves, as that is dear."""

Floats = npt.NDArray[np.float64]
Loss = Literal["ce", "mse"]


@dataclass(frozen=True, slots=True)
class Classes:
    """A setting: which classes come when, and how they are learned.

    Attributes:
        name, title: of the setting.
        tasks: classes of each task; the first is the base.
        loss: "ce", or "mse" for half the squared error to one-hot targets, summed over classes.
        keep: examples of each old class that are kept and rehearsed.
        base, steps: optimizer steps of the base, and of every later task.
        lr, batch: AdamW's, and examples of the new task in a batch, and as many rehearsed ones.
        moving: whether the backbone is trained on.
        decay: AdamW's weight decay.
        fresh: whether the optimizer begins anew with each task, as in the prototype of the digits.
    """

    name: str
    title: str
    tasks: tuple[tuple[int, ...], ...]
    loss: Loss = "ce"
    keep: int = 20
    base: int = 400
    steps: int = 200
    lr: float = 5e-3
    batch: int = 32
    moving: bool = False
    decay: float = 0.05
    fresh: bool = False


class Learner(nn.Module):
    """A backbone, or nothing, and a head with a row for each class that has come."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits (n, classes)."""
        result: Tensor = self.head(self.body(inputs))
        return result


@dataclass(slots=True)
class Boundary:
    """What happened where a task began.

    Attributes:
        at: first step of the new task.
        new: its classes.
        share: of the test examples, those of new classes.
        before: mean loss of the 50 steps before it.
        first, random: loss of its first batch, with the chosen rows and with random ones in their place.
        old_before: test accuracy of the classes known so far, among themselves, before the boundary.
        losses: of every step from `at` on.
        steps, old, new_accuracy: steps since `at` and the test accuracies there, among all classes seen; [0] untrained.
        events: kinds of the events that the detectors raised within 25 steps.
        seconds: that choosing the rows took.
        report: what chose the rows says of them.
    """

    at: int
    new: tuple[int, ...]
    share: float
    before: float
    first: float
    random: float
    old_before: float
    losses: Floats
    steps: npt.NDArray[np.int64]
    old: Floats
    new_accuracy: Floats
    seconds: float
    report: dict[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()


@dataclass(slots=True)
class Trace:
    """One training: its boundaries, and the run that a monitor wrote of it."""

    setting: Classes
    arm: str
    seed: int
    boundaries: list[Boundary]
    run: Run
    seconds: float


@dataclass(slots=True)
class Start:
    """A base trained up to `TAIL` steps before the first boundary: all that a training goes on from."""

    model: Learner
    optimizer: dict[str, Any]
    draw: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """What rows for new classes may be chosen from.

    Attributes:
        head: to be written to; its last rows are those of the new classes.
        new, old: classes.
        features, labels: of all examples of the new task, (n, d) and (n,).
        kept_features, kept_labels: of the rehearsed ones.
        loss: "ce" or "mse".
        draw: where random numbers come from.
        monitor, optimizer: of the training.
    """

    head: nn.Linear
    new: tuple[int, ...]
    old: tuple[int, ...]
    features: Tensor
    labels: Tensor
    kept_features: Tensor
    kept_labels: Tensor
    loss: Loss
    draw: torch.Generator
    monitor: Monitor | None = None
    optimizer: torch.optim.Optimizer | None = None


Fill = Callable[[Task], dict[str, Any]]
"""Writes the new rows of a head; returns what it has to say of them."""


def loss_of(logits: Tensor, labels: Tensor, kind: Loss) -> Tensor:
    """Returns the mean loss of logits (n, classes): cross-entropy, or half the squared error to one-hot targets."""
    if kind == "ce":
        return functional.cross_entropy(logits, labels)
    target = functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return 0.5 * (logits - target).square().sum(dim=1).mean()


def begin(setting: Classes, pool: Pool, body: nn.Module, seed: int) -> Start:
    """Returns the base of a setting, trained up to 150 steps before its end.

    Args:
        setting: what is learned.
        pool: the examples; for a backbone that stands still, its features.
        body: the backbone; `nn.Identity()` where it stands still.
        seed: of head and batches.
    """
    base = setting.tasks[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = body(pool.inputs[:1]).shape[1]
        model = Learner(copy.deepcopy(body), nn.Linear(width, len(base)))
        nn.init.zeros_(model.head.bias)
    optimizer, draw = _optimizer(model, setting), torch.Generator().manual_seed(1000 + seed)
    rows = pool.rows(base)
    for _ in range(max(setting.base - TAIL, 0)):
        _step(model, optimizer, *_drawn(pool, rows, 2 * setting.batch, draw), setting.loss)
    return Start(model, copy.deepcopy(optimizer.state_dict()), draw.get_state())


def learn(
    setting: Classes, arm: str, fill: Fill, start: Start, pool: Pool, seed: int, *, live: Live = silent
) -> Trace:
    """Returns a training from the end of the base on through all tasks.

    Args:
        setting: what is learned.
        arm: its name.
        fill: chooses the rows of new classes.
        start: from `begin`.
        pool: as for `begin`.
        seed: of the batches.
        live: told how far it is.
    """
    started = time.process_time()
    model = copy.deepcopy(start.model)
    optimizer, draw = _optimizer(model, setting), torch.Generator()
    optimizer.load_state_dict(copy.deepcopy(start.optimizer))
    draw.set_state(start.draw)
    losses: list[float] = []
    boundaries: list[Boundary] = []
    seen = setting.tasks[0]
    rows = pool.rows(seen)
    marks = frozenset(MARKS[:: 2 if setting.moving else 1])
    total = TAIL + setting.steps * (len(setting.tasks) - 1)
    with Monitor(model, optimizer) as monitor:
        for _ in range(min(TAIL, setting.base)):
            batch = _drawn(pool, rows, 2 * setting.batch, draw)
            losses.append(_step(model, optimizer, *batch, setting.loss, monitor))
        for place, new in enumerate(setting.tasks[1:]):
            boundary = _boundary(setting, arm, fill, model, optimizer, monitor, pool, (seen, new), losses, seed)
            old, seen = seen, seen + new
            fresh, kept = pool.rows(new), pool.rows(old, setting.keep)
            batches = torch.Generator().manual_seed(7919 * seed + place)
            taken, told = [], []
            for step in range(setting.steps):
                if step in marks:
                    told.append((step, *accuracies(model, pool, old, new)))
                one, other = (_drawn(pool, each, setting.batch, batches) for each in (fresh, kept))
                batch = (torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
                if step == 0:
                    boundary.random = _random_first(model, batch, new, setting.loss, seed)
                taken.append(_step(model, optimizer, *batch, setting.loss, monitor))
                live((len(losses) + step) / total, f"seed {seed}, {setting.title}, {arm}")
            told.append((setting.steps, *accuracies(model, pool, old, new)))
            boundary.losses, boundary.first = np.array(taken), taken[0]
            table = np.array([(0, boundary.old[0], boundary.new_accuracy[0]), *told])
            boundary.steps, boundary.old, boundary.new_accuracy = table[:, 0].astype(int), table[:, 1], table[:, 2]
            losses += taken
            boundaries.append(boundary)
        run, events = monitor.run, monitor.events
    for boundary in boundaries:
        boundary.events = loss_peaks(events, boundary.at)
    name = f"{setting.title}, {arm}, seed {seed}"
    run.meta.update(paper=PAPER, arm=arm, setting=setting.name, seed=seed, name=name)
    return Trace(setting, arm, seed, boundaries, run, time.process_time() - started)


def loss_peaks(events: Sequence[Event], at: int) -> tuple[str, ...]:
    """Returns the kinds of the events of the loss that began within 25 steps of a boundary, or just before it."""
    return tuple(each.kind for each in events if each.signal == "loss" and at - 2 <= each.onset <= at + NEAR)


def accuracies(model: Learner, pool: Pool, old: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
    """Returns test accuracies of old and of new classes, each example judged among all of both."""
    found = []
    with torch.no_grad():
        for part in (old, new):
            rows = pool.tests(part)
            guessed = model(pool.test_inputs[rows]).argmax(dim=1)
            found.append(float((guessed == pool.test_labels[rows]).double().mean()))
    return found[0], found[1]


def _boundary(
    setting: Classes, arm: str, fill: Fill, model: Learner, optimizer: torch.optim.Optimizer, monitor: Monitor,
    pool: Pool, tasks: tuple[tuple[int, ...], tuple[int, ...]], losses: Sequence[float], seed: int,
) -> Boundary:  # fmt: skip
    """Returns a boundary at which the rows of the new classes have been chosen and nothing has been trained."""
    old, new = tasks
    before = _known(model, pool, old)
    grow(model, optimizer, len(new))
    if setting.fresh:
        optimizer.state.clear()
    fresh, kept = pool.rows(new), pool.rows(old, setting.keep)
    with torch.no_grad():
        features = [
            torch.cat([model.body(part) for part in torch.split(pool.inputs[rows], 1000)]) for rows in (fresh, kept)
        ]
    task = Task(
        model.head, new, old, features[0], pool.labels[fresh], features[1], pool.labels[kept], setting.loss,
        torch.Generator().manual_seed(seed), monitor, optimizer,
    )
    started = time.process_time()
    report = fill(task)
    seconds = time.process_time() - started
    starts = accuracies(model, pool, old, new)
    nothing = np.zeros(0)
    return Boundary(
        len(losses), new, len(new) / (len(old) + len(new)), float(np.mean(losses[-BEFORE:])), np.nan, np.nan, before,
        nothing, np.zeros(0, dtype=np.int64), np.array([starts[0]]), np.array([starts[1]]), seconds, report,
    )  # fmt: skip


def _known(model: Learner, pool: Pool, classes: Sequence[int]) -> float:
    rows = pool.tests(classes)
    with torch.no_grad():
        guessed = model(pool.test_inputs[rows]).argmax(dim=1)
    return float((guessed == pool.test_labels[rows]).double().mean())


def _random_first(
    model: Learner, batch: tuple[Tensor, Tensor], new: Sequence[int], kind: Loss, seed: int
) -> float:
    """Returns the loss of a batch with random rows in the place of the new ones."""
    head = copy.deepcopy(model.head)
    draw_rows(head, new, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return float(loss_of(head(model.body(batch[0])), batch[1], kind))


def grow(model: Learner, optimizer: torch.optim.Optimizer, count: int) -> None:
    """Gives a head more rows, of zeros; the optimizer keeps what it knows of the old ones."""
    old = model.head
    with torch.random.fork_rng(devices=[]):
        model.head = nn.Linear(old.in_features, old.out_features + count)
    with torch.no_grad():
        for before, after in zip(old.parameters(), model.head.parameters(), strict=True):
            after.copy_(_padded(before, count))
            for group in optimizer.param_groups:
                group["params"] = [after if each is before else each for each in group["params"]]
            state = optimizer.state.pop(before, {})
            optimizer.state[after] = {
                name: _padded(each, count) if each.shape == before.shape else each for name, each in state.items()
            }


def _padded(tensor: Tensor, count: int) -> Tensor:
    return torch.cat([tensor.detach(), tensor.new_zeros(count, *tensor.shape[1:])])


def draw_rows(head: nn.Linear, rows: Sequence[int], draw: torch.Generator) -> None:
    """Draws rows of a head as torch draws those of a new one, uniform within 1/sqrt(d); their biases are 0."""
    bound = head.in_features**-0.5
    with torch.no_grad():
        for row in rows:
            head.weight[row].uniform_(-bound, bound, generator=draw)
        head.bias[list(rows)] = 0.0


def _step(
    model: Learner, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, kind: Loss,
    monitor: Monitor | None = None,
) -> float:  # fmt: skip
    loss = loss_of(model(inputs), labels, kind)
    if monitor is not None:
        monitor.observe(loss)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _drawn(pool: Pool, rows: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    chosen = rows[torch.randint(len(rows), (count,), generator=draw)]
    return pool.inputs[chosen], pool.labels[chosen]


def _optimizer(model: Learner, setting: Classes) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=setting.decay)
