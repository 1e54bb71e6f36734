"""The guard on trainings that a low-precision softmax makes spike: what is left of the spikes, and at what loss.

python benchmarks/guard_slingshot.py [--quick] [--only WORD] [--seeds N] [--seed-from N] [--jobs N] [--long N]
                                     [--json PATH]

The trainings are those that the warnings of absorption are judged on (`absorption_cases.py`): of those that spike each
is taken as it stands, then with `Guard(monitor)` in the loop and nothing else changed, all of monitor and guard at
their defaults, and then with the exact loss from the start, which is the training without the rounding. Ordinary
trainings, `--only healthy`, are there to be left alone. Spikes are labelled from the losses (`absorption_score.py`);
the last loss is the median over the last 100 steps of the exact loss over all the data, in float64, of the logits as
the network makes them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from absorption_cases import ABSORBED, CASES, EXACT, HEALTHY, SPIKES, STOCK, Case, Training
from absorption_score import spikes
from foreshock.guard.guard import Guard
from foreshock.monitor import Monitor

PLAIN, GUARDED = "unguarded", "guarded"
FRESH = 500  # seed from which nothing has been tuned
QUICK = 4  # of so many trainings one is taken
LAST = 100  # steps whose losses tell the last one


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Attributes:
        case, seed: which.
        arm: "unguarded", "guarded" or "exact".
        spikes: (first step, last step, highest loss) of each.
        actions: (step, kind, kind of the event that it answers to) of each intervention.
        last: the exact loss at the end.
        seconds: of processor time.
    """

    case: str
    seed: int
    arm: str
    spikes: list[tuple[int, int, float]]
    actions: list[tuple[int, str, str]]
    last: float
    seconds: float


def train(case: Case, seed: int, arm: str) -> Trained:
    """Returns one training, from its seed."""
    begun = time.process_time()
    training = Training(case.as_arm(EXACT if arm == EXACT else STOCK), seed)
    ends: list[float] = []
    actions: list[tuple[int, str, str]] = []

    def ended(step: int) -> None:
        if step >= case.steps - LAST:
            ends.append(training.truth())

    losses = []
    if arm == GUARDED:
        with Monitor(training.model, training.optimizer) as monitor:
            guard = Guard(monitor)
            for step in range(case.steps):
                losses.append(training.advance(step, monitor.observe, guard.step))
                ended(step)
            actions = [(each.step, each.kind, (each.cause or ("",))[0]) for each in monitor.run.actions]
    else:
        for step in range(case.steps):
            losses.append(training.advance(step))
            ended(step)
    found = [(begin, end, max(losses[begin : end + 1])) for begin, end in spikes(losses)]
    return Trained(case.name, seed, arm, found, actions, statistics.median(ends), time.process_time() - begun)


def _train(work: tuple[int, int, str, float]) -> Trained:
    torch.set_num_threads(1)
    index, seed, arm, long = work
    return train(lengthened(CASES[index], long), seed, arm)


def lengthened(case: Case, times: float) -> Case:
    """Returns a case of so many times its steps."""
    return replace(case, steps=round(times * case.steps))


def table(title: str, groups: Sequence[dict[str, Trained]]) -> Table:
    """Returns the table of some trainings, arm by arm."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("training", no_wrap=True)
    for name in ("seed", "spikes", "guarded", "first spike", "first action", "actions", "last", "guarded", "exact"):
        shown.add_column(name, justify="right", no_wrap=name != "actions")
    for arms in groups:
        plain, guarded, exact = arms[PLAIN], arms[GUARDED], arms.get(EXACT)
        counted = Counter(kind for _, kind, _ in guarded.actions)
        shown.add_row(
            plain.case, str(plain.seed), str(len(plain.spikes)),
            ", ".join(f"{peak:.2f} at {begin}" for begin, _, peak in guarded.spikes) or "0",
            str(plain.spikes[0][0]) if plain.spikes else "-",
            "{}: {}".format(*guarded.actions[0]) if guarded.actions else "-",
            ", ".join(f"{kind} {n}" for kind, n in counted.items()) or "-",
            *("-" if each is None else f"{each.last:.2g}" for each in (plain, guarded, exact)),
        )  # fmt: skip
    return shown


def summary(groups: Sequence[dict[str, Trained]]) -> dict[str, Any]:
    """Returns the figures over all trainings that spike, and over the others."""
    spiked = [arms for arms in groups if arms[PLAIN].spikes]
    calm = [arms for arms in groups if not arms[PLAIN].spikes]
    ratios = [arms[GUARDED].last / arms[EXACT].last for arms in spiked if EXACT in arms]
    return {
        "trainings that spike": len(spiked),
        "spikes unguarded": sum(len(arms[PLAIN].spikes) for arms in spiked),
        "spikes guarded": sum(len(arms[GUARDED].spikes) for arms in spiked),
        "actions a training": statistics.mean(len(arms[GUARDED].actions) for arms in spiked) if spiked else None,
        "last loss against the exact loss's, median": statistics.median(ratios) if ratios else None,
        "last loss against the exact loss's, most": max(ratios, default=None),
        "others": len(calm), "spikes there": sum(len(arms[GUARDED].spikes) for arms in calm),
        "actions there": sum(len(arms[GUARDED].actions) for arms in calm),
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK}th training")
    parser.add_argument("--only", default=SPIKES, help="a training, a group of them, or what their names hold")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--seed-from", type=int, default=FRESH, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--long", type=float, default=1.0, help="times the steps of each")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, begun = Console(width=max(170, Console().width)), time.perf_counter()
    picked = [i for i, case in enumerate(CASES) if options.only in (case.name, case.group)]
    picked = picked or [i for i, case in enumerate(CASES) if options.only in case.name]
    todo = [
        (i, seed, arm, options.long)
        for i in picked[:: QUICK if options.quick else 1]
        for seed in range(options.seed_from, options.seed_from + options.seeds)
        for arm in ((PLAIN, GUARDED, EXACT) if CASES[i].group == SPIKES else (PLAIN, GUARDED))
    ]
    if options.jobs > 1:
        with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
            done = list(pool.map(_train, todo))
    else:
        done = list(map(_train, todo))
    found: dict[tuple[int, int], dict[str, Trained]] = {}
    for (i, seed, arm, _), each in zip(todo, done, strict=True):
        found.setdefault((i, seed), {})[arm] = each
    for group in (SPIKES, ABSORBED, HEALTHY):
        shown = [arms for (i, _), arms in found.items() if CASES[i].group == group]
        if shown:
            console.print(table(f"{len(shown)} trainings, {group}", shown))
    for name, value in summary(list(found.values())).items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(f"{time.perf_counter() - begun:.0f} s; {sum(each.seconds for each in done):.0f} s of processor time")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in done], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
