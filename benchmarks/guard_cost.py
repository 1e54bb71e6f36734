"""What a guard costs: a training's steps with it, with a monitor alone and with nothing, in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from guard_cases import Trouble
from guard_nets import gpt
from guard_peers import Hand
from guard_runs import GUARD, MONITOR, PLAIN, hand_of

WARM_UP = 10


class Turn:
    """One contender's training, a step at a time."""

    def __init__(self, contender: str, steps: int) -> None:
        self.task = gpt(0, steps)
        self.hand: Hand = hand_of(contender)(self.task)
        self.batches: Iterator[Any] = iter(self.hand.data(Trouble(None, [], self.task, 0).batches()))
        self.spent: list[float] = []

    def __call__(self) -> None:
        batch = next(self.batches)
        begun = time.process_time()
        loss = self.task.loss(batch)
        self.hand.observe(loss)
        loss.backward()
        self.hand.step(loss)
        self.task.optimizer.zero_grad()
        self.spent.append(time.process_time() - begun)


def cost(rounds: int) -> dict[str, tuple[float, float]]:
    """Returns, by name, the median over rounds of the processor time of a step over that of the plain loop's step of
    the same round, and the same of the sums, in which snapshots and flushes are.

    Each contender trains its own copy; a round gives each one step, in an order that turns. "plain again" shows what
    the method cannot resolve, "over the monitor" what the guard adds to it.
    """
    turns = {
        "plain": Turn(PLAIN, rounds), "plain again": Turn(PLAIN, rounds), "monitor": Turn(MONITOR, rounds),
        "monitor and guard": Turn(GUARD, rounds),
    }  # fmt: skip
    names = list(turns)
    for i in range(rounds + WARM_UP):
        for j in range(len(names)):  # so that none always follows the same neighbour
            turns[names[(i + j) % len(names)]]()
    for each in turns.values():
        each.hand.close()
    spent = {name: each.spent[WARM_UP:] for name, each in turns.items()}

    def ratio(name: str, base: str) -> tuple[float, float]:
        pairs = [mine / theirs for mine, theirs in zip(spent[name], spent[base], strict=True)]
        return statistics.median(pairs), sum(spent[name]) / sum(spent[base])

    return {
        "plain again": ratio("plain again", "plain"), "monitor": ratio("monitor", "plain"),
        "monitor and guard": ratio("monitor and guard", "plain"),
        "guard over the monitor": ratio("monitor and guard", "monitor"),
    }  # fmt: skip
