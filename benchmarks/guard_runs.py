"""One guarded, unguarded or clean training of the guard's benchmark, from a description that travels to a process."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

import foreshock as fs
from foreshock.errors import ForeshockWarning, StoppedError
from foreshock.requeue import Requeue
from guard_calm import CALM
from guard_cases import CASES, CONTROL, Trouble, named, strikes
from guard_nets import Task, gpt
from guard_peers import PEERS, Hand

GUARD, MONITOR, PLAIN = "foreshock", "monitor alone", "plain AdamW"
CLEAN = "clean"


class Guarded(Hand):
    """foreshock as its documentation says: a monitor, a guard with the default policy, data that can be requeued."""

    def open(self) -> None:
        self.monitor = fs.Monitor(self.task.model, self.task.optimizer)
        self.monitor.__enter__()
        self.guard: Any = None

    def data(self, batches: Iterator[Any]) -> Iterable[Any]:
        requeue = Requeue(batches)
        self.guard = fs.Guard(self.monitor, scheduler=self.task.scheduler, data=requeue)
        return requeue

    def observe(self, loss: Tensor) -> None:
        self.monitor.observe(loss)

    def step(self, loss: Tensor) -> None:
        self.guard.step()

    def close(self) -> None:
        self.monitor.close()
        self.acts = sum(each.kind != "proceed" for each in self.guard.actions)

    def log(self) -> list[str]:
        return [f"{each.step}: {described(each)}" for each in self.guard.actions]


class Watched(Hand):
    """A monitor that is not asked."""

    def open(self) -> None:
        self.monitor = fs.Monitor(self.task.model, self.task.optimizer)
        self.monitor.__enter__()

    def observe(self, loss: Tensor) -> None:
        self.monitor.observe(loss)

    def close(self) -> None:
        self.monitor.close()


def described(action: Any) -> str:
    """Returns an action in a line: what, with which settings, why."""
    fields = {k: v for k, v in action.to_dict().items() if k not in ("kind", "step", "reason", "cause") and v != ""}
    settings = " ".join(f"{k}={v}" for k, v in fields.items())
    cause = "/".join(map(str, action.cause)) if action.cause else "-"
    return f"{action.kind} {settings} [{cause}] {action.reason}"


@dataclass(frozen=True, slots=True)
class Work:
    """What to train: contender, a case by name or `CLEAN`, when it strikes, seed, steps, and on which task."""

    contender: str
    case: str
    when: str
    seed: int
    steps: int
    task: str = "GPT, AdamW, cosine"


@dataclass
class Outcome:
    """What became of a training.

    Attributes:
        work: what was trained.
        loss: on the validation text at the end; infinite where it is not a number.
        acts: interventions.
        at: steps at which the fault struck.
        seen: at the first of them, loss and gradient norm, and the loss right after, and their z over the 100 before.
        log: interventions, a line each.
        worst: largest training loss from the fault on, over the one before.
        seconds: of the whole training.
        failed: what ended it, if something did.
        losses, norms: of every attempt, before it; the norm is that of the gradient.
    """

    work: Work
    loss: float
    acts: int
    at: list[int]
    seen: dict[str, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    worst: float = math.nan
    seconds: float = 0.0
    failed: str = ""
    losses: list[float] = field(default_factory=list, repr=False)
    norms: list[float] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the losses and norms."""
        return {name: value for name, value in asdict(self).items() if name not in ("losses", "norms")}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Outcome:
        return cls(**fields | {"work": Work(**fields["work"])})


def hand_of(contender: str) -> type[Hand]:
    return {GUARD: Guarded, MONITOR: Watched}.get(contender) or PEERS[contender][0]


def task_of(work: Work) -> Task:
    brought = PEERS[work.contender][1] if work.contender in PEERS else None
    return gpt(work.seed, work.steps, optimizer=brought) if brought else CALM[work.task](work.seed, work.steps)


def run(work: Work) -> Outcome:
    """Trains; a training that cannot go on ends with an infinite loss."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):  # one of the peers draws boxes
        torch.manual_seed(work.seed)  # dropout
        return _run(work)


def _run(work: Work) -> Outcome:
    begun = time.perf_counter()
    task = task_of(work)
    case = None if work.case == CLEAN else named(work.case)
    at = strikes(case, work.when, work.seed, work.steps) if case else []
    trouble = Trouble(case, at, task, work.seed)
    hand = hand_of(work.contender)(task)
    losses: list[float] = []
    norms: list[float] = []
    failed = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if work.contender in (GUARD, MONITOR):
            warnings.filterwarnings("always", category=ForeshockWarning)
        try:
            for step, batch in zip(range(work.steps), hand.data(trouble.batches()), strict=False):
                if trouble.leaves_out(step):
                    continue
                loss = trouble.loss(step, task.loss(trouble.batch(step, batch)))
                hand.observe(loss)
                loss.backward()
                trouble.gradients(step)
                trouble.before(step)
                losses.append(loss.item())
                norms.append(torch.nn.utils.get_total_norm(hand.gradients()).item())
                hand.step(loss)
                trouble.after(step)
                task.optimizer.zero_grad()
        except StoppedError as stopped:
            failed = f"stopped: {stopped}"
        except Exception as error:  # a peer that cannot go on has lost this run, not the benchmark
            if work.contender == GUARD:
                raise
            failed = f"{type(error).__name__}: {error}"
        hand.close()
    final = task.validate()
    final = final if math.isfinite(final) else math.inf
    seen = at_strike(losses, norms, at[0]) if at and len(losses) > at[0] else {}
    return Outcome(
        work, final, hand.acts, at, seen, hand.log(), worst_after(losses, at), time.perf_counter() - begun, failed,
        losses, norms,
    )  # fmt: skip


def at_strike(losses: Sequence[float], norms: Sequence[float], at: int) -> dict[str, float]:
    """Returns loss and gradient norm at a fault, with their robust z over the 100 steps before it."""
    seen: dict[str, float] = {}
    for name, values in (("loss", losses), ("norm", norms)):
        past = values[max(0, at - 100) : at]
        middle = statistics.median(past)
        spread = 1.4826 * statistics.median(abs(each - middle) for each in past)
        seen |= {name: values[at], f"{name}_z": (values[at] - middle) / spread, f"{name}_ratio": values[at] / middle}
        if len(values) > at + 1:
            seen[f"next_{name}_z"] = (values[at + 1] - middle) / spread
    return seen


def worst_after(losses: Sequence[float], at: Sequence[int]) -> float:
    """Returns the largest loss after a fault's first step, divided by the median of the 100 before it."""
    if not at or len(losses) <= at[0] + 1:
        return math.nan
    finite = [each if math.isfinite(each) else math.inf for each in losses[at[0] + 1 :]]
    return max(finite) / statistics.median(losses[max(0, at[0] - 100) : at[0]])


def matrix(
    contenders: Sequence[str], cases: Sequence[str], whens: Sequence[str], seeds: Sequence[int], steps: int
) -> list[Work]:
    """Returns every combination, and each contender's clean runs; those of the plain optimizer are always there."""
    works = [Work(name, CLEAN, "", seed, steps) for seed in seeds for name in dict.fromkeys([PLAIN, *contenders])]
    works += [
        Work(name, case, when, seed, steps)
        for seed in seeds for when in whens for case in cases
        for name in ((PLAIN,) if named(case).group == CONTROL else contenders)
    ]  # fmt: skip
    return works


def outcomes(works: Sequence[Work], jobs: int) -> Iterator[Outcome]:
    """Yields what became of the trainings, as they end."""
    if jobs == 1:
        yield from map(run, works)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, work) for work in works]):
            yield done.result()


__all__ = ["CASES", "CLEAN", "GUARD", "MONITOR", "PLAIN", "Outcome", "Work", "matrix", "outcomes", "run"]
