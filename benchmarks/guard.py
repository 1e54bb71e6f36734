"""The guard on trainings in which something goes wrong: what is left of the damage, at what price, beside others.

python benchmarks/guard.py [--full] [--only WORD] [--contenders NAME,...] [--seeds N] [--whens WORD,...] [--steps N]
                           [--clean N] [--no-cost] [--jobs N] [--list] [--json PATH]

A tiny GPT (115,000 parameters, contexts of 64 characters, batches of 8, AdamW with warm-up and cosine, nothing
clipped) reads Jane Austen for 1,200 steps, and at a step drawn by the seed one thing goes wrong: the faults of
`foreshock.testing.faults` (`guard_cases.py`), and variants that no threshold was chosen on. The loop is a user's:
a number of attempts, a fault's batch replaced by the loader's next one unless the fault is "sticky". Scored is the
validation loss at the end (65,536 characters, lr 0) over that of the plain clean run of the same seed; "20 batches left
out" shows how far that moves by itself. Clean runs of other optimizers, schedules, precisions and data
(`guard_calm.py`) show false interventions. Peers are in `guard_peers.py`.

The default takes some 8 minutes on one idle core; `--full` has every fault, time, peer, several seeds and 10,000 clean
steps of each training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guard_calm import CALM
from guard_cases import CASES, CONTROL, KIT, TIMES, TWICE
from guard_cost import cost
from guard_peers import PEERS, available
from guard_runs import CLEAN, GUARD, PLAIN, Outcome, Work, matrix, outcomes
from guard_score import damage, doings, failures, severity, verdict

STEPS = 1200
QUICK_PEERS = (GUARD, PLAIN, "clip 1.0", "OLMo's skip-step")
QUICK_CLEAN = ("GPT, warm restarts", "digits, SGD, step decay", "digits, Adam, constant lr")


def false_alarms(found: Sequence[Outcome]) -> Table:
    """Returns the table of interventions in trainings in which nothing is wrong."""
    shown = Table(title="interventions in trainings in which nothing goes wrong", title_justify="left")
    for name in ("training", "steps", "seeds", "interventions", "what"):
        shown.add_column(name, justify="left" if name in ("training", "what") else "right")
    for task in CALM:
        runs = [each for each in found if each.work.task == task]
        if runs:
            steps, seeds = sum(each.work.steps for each in runs), len({each.work.seed for each in runs})
            lines = [line for each in runs for line in each.log]
            acts = str(sum(each.acts for each in runs))
            shown.add_row(task, str(steps), str(seeds), acts, escape("; ".join(lines[:3])[:100]))
    return shown


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every fault at every time, every peer, long clean runs")
    parser.add_argument("--only", default="", help="faults whose name or group holds this")
    parser.add_argument("--contenders", help=f"of {GUARD}, {', '.join(PEERS)}")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--whens", help=f"of {', '.join(TIMES)}, {TWICE}")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--clean", type=int, help="steps of the trainings in which nothing goes wrong; 0 for none")
    parser.add_argument("--no-cost", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="say what the guard did in each run that missed the goal")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, begun = Console(width=max(200, Console().width)), time.perf_counter()

    there = [GUARD, *available()]
    contenders = options.contenders.split(",") if options.contenders else there if options.full else [*QUICK_PEERS]
    whens = options.whens.split(",") if options.whens else [*TIMES, TWICE] if options.full else ["middle"]
    seeds = range(options.seeds or (3 if options.full else 1))
    chosen = options.only or ("" if options.full else KIT)
    cases = [case.name for case in CASES if chosen in case.name or chosen in case.group or case.group == CONTROL]
    if missing := [name for name in PEERS if name not in there]:
        console.print(f"not installed, so left out: {', '.join(missing)}")

    found = []
    for each in outcomes(matrix(contenders, cases, whens, seeds, options.steps), options.jobs):
        found.append(each)
        if options.list and each.work.contender == GUARD:
            console.print(f"{each.work.case} {each.work.when} {each.work.seed}: {each.loss:.4f}, {each.acts} acts")
    console.print(severity(found), damage(found, contenders), doings(found, contenders), sep="\n")
    console.print(verdict(found))
    if options.list:
        console.print("\n".join(failures(found)), markup=False)

    length = (10_000 if options.full else 1_500) if options.clean is None else options.clean
    calm: list[Outcome] = []
    if length:
        tasks = list(CALM) if options.full or options.clean else QUICK_CLEAN
        works = [Work(GUARD, CLEAN, "", seed, length, task) for task in tasks for seed in range(10, 10 + len(seeds))]
        calm = list(outcomes(works, options.jobs))
        console.print(false_alarms(calm))
    ratios = {}
    if not options.no_cost:
        ratios = cost(1200 if options.full else 300)
        for name, (median, sums) in ratios.items():
            console.print(f"{name}: {median:.3f}x a step in the median, {sums:.3f}x in all")
    console.print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"faults": [e.to_dict() for e in found], "clean": [e.to_dict() for e in calm], "cost": ratios})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
