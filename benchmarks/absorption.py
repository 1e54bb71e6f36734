"""The warnings of a low-precision softmax on many trainings: how early, how often in vain, and whether the cure cures.

python benchmarks/absorption.py [--quick] [--only WORD] [--seeds N] [--seed-from N] [--cache DIR] [--jobs N] [--list]
                                [--json PATH]

Small networks are trained with torch's cross-entropy in float32 until rounding makes them spike, again with
`foreshock.cross_entropy`, and again in float64; others are trained as one ordinarily does, and have nothing to warn of
(`absorption_cases.py`). A monitor with its defaults watches each as a user's loop would (`absorption_record.py`); the
warnings are the events `absorbing`, `inflating` and `imminent` of the shipped detectors, folded over the record. Spikes
are labelled from the losses (`absorption_score.py`). `--cache` keeps the traces, so that a changed detector is scored
in seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from absorption_cases import ABSORBED, ARMS, CASES, DOUBLE, EXACT, HEALTHY, SPIKES, STOCK
from absorption_record import Trace, trace
from absorption_score import KINDS, Nearness, Warned, nearness, warned

QUICK = 4  # of so many cases one is taken
GOAL = 300  # steps that a warning is to come before the first spike
DIGITS = 5e-3  # relative difference of losses that agree to three digits, give or take the last

Found = dict[tuple[int, str], list[tuple[Trace, Warned]]]


def works(only: str, quick: bool, seeds: Sequence[int]) -> Iterator[tuple[int, str, int]]:
    """Yields (index of the case, arm, seed) of all trainings."""
    picked = [i for i, case in enumerate(CASES) if only in case.name or only == case.group]
    for i in picked[:: QUICK if quick else 1]:
        for arm in ARMS if CASES[i].group == SPIKES else (STOCK,):
            for seed in seeds:
                yield i, arm, seed


def gather(todo: Sequence[tuple[int, str, int]], cache: Path, jobs: int) -> Found:
    """Returns the scored traces by case and arm, trained where the cache lacks them."""
    if jobs > 1:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_train, [(*work, cache) for work in todo]))
    found: Found = {}
    for i, arm, seed in todo:
        seen = trace(CASES[i].as_arm(arm), seed, cache)
        found.setdefault((i, arm), []).append((seen, warned(seen.warnings(), seen.losses)))
    return found


def _train(work: tuple[int, str, int, Path]) -> None:
    index, arm, seed, cache = work
    torch.set_num_threads(1)
    trace(CASES[index].as_arm(arm), seed, cache)


def near(found: Found, index: int, arm: str) -> list[Nearness]:
    """Returns how near the losses of an arm are to float64's, seed by seed."""
    pairs = zip(found[index, arm], found[index, DOUBLE], strict=True)
    return [nearness(seen.losses, double.losses) for (seen, _), (double, _) in pairs]


def spiking(found: Found, indices: Sequence[int]) -> Table:
    """Returns the table of the trainings that spike."""
    shown = Table(title=f"{len(indices)} that spike; leads in steps before the first spike", title_justify="left")
    shown.add_column("training", no_wrap=True)
    for name in ("spikes", "first", *KINDS, "lead", "later foretold", "exact, float64", "apart: median, most, last"):
        shown.add_column(name, justify="right", no_wrap=True)
    for i in indices:
        scores = [score for _, score in found[i, STOCK]]
        cured = [" ".join(str(len(score.spikes)) for _, score in found[i, arm]) for arm in (EXACT, DOUBLE)]
        gaps = near(found, i, EXACT)
        shown.add_row(
            CASES[i].name,
            " ".join(str(len(score.spikes)) for score in scores),
            " ".join(str(min(score.spikes, default="-")) for score in scores),
            *(" ".join(str(score.leads.get(kind, "-")) for score in scores) for kind in KINDS),
            " ".join("-" if score.lead is None else str(score.lead) for score in scores),
            f"{sum(score.foretold for score in scores)} of {sum(score.later for score in scores)}",
            "; ".join(cured),
            ", ".join(f"{max(getattr(gap, name) for gap in gaps):.1e}" for name in ("typical", "most", "last")),
        )
    return shown


def others(found: Found, indices: Sequence[int], title: str) -> Table:
    """Returns the table of the trainings that do not spike, with their largest readings."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("training", no_wrap=True)
    for name in ("steps", "last loss", "absorbed", "residual", "spikes", *KINDS):
        shown.add_column(name, justify="right", no_wrap=True)
    for i in indices:
        rows = found[i, STOCK]
        shown.add_row(
            CASES[i].name, str(CASES[i].steps), " ".join(f"{seen.losses[-1]:.1e}" for seen, _ in rows),
            *(" ".join(f"{seen.most(name):.2g}" for seen, _ in rows) for name in ("absorbed", "residual")),
            " ".join(str(len(score.spikes)) for _, score in rows),
            *(" ".join(str(score.first.get(kind, "-")) for _, score in rows) for kind in KINDS),
        )  # fmt: skip
    return shown


def summary(found: Found) -> dict[str, Any]:
    """Returns the figures that are promised, over all traces."""
    stock = [rows for (i, arm), rows in found.items() if CASES[i].group == SPIKES and arm == STOCK]
    scored = [score for rows in stock for _, score in rows]
    spiked = [score for score in scored if score.spikes]
    leads = [score.lead for score in spiked if score.lead is not None]
    cured = [score for (_, arm), rows in found.items() if arm == EXACT for _, score in rows]
    calm = [
        (seen, score) for rows in found.values() for seen, score in rows if seen.case.group == HEALTHY
    ]  # fmt: skip
    gaps = [gap for i, arm in found if arm == EXACT and CASES[i].cast is None for gap in near(found, i, EXACT)]
    return {
        "trainings that spiked": len(spiked), "of": len(scored),
        "spikes": sum(len(score.spikes) for score in spiked),
        "warned before the first": len(leads),
        f"by {GOAL} steps or more": sum(lead >= GOAL for lead in leads),
        "lead, least": min(leads, default=None),
        "lead, median": statistics.median(leads) if leads else None,
        "later spikes": sum(score.later for score in spiked), "foretold": sum(score.foretold for score in spiked),
        "healthy trainings": len(calm), "with a warning": sum(bool(score.first) for _, score in calm),
        "steps of those": sum(len(seen.losses) for seen, _ in calm),
        "spikes with the exact loss": sum(len(score.spikes) for score in cured),
        "trainings with the exact loss": len(cured),
        "exact loss within three digits of float64, median over the steps": sum(gap.typical < DIGITS for gap in gaps),
    }  # fmt: skip


def listing(found: Found) -> Iterator[str]:
    """Yields a line for each training that the promises fail on."""
    for (i, arm), rows in found.items():
        for seen, score in rows:
            if seen.case.group == HEALTHY and score.first:
                yield f"in vain   {seen.name}: {dict(score.first)}, last loss {seen.losses[-1]:.1e}"
            if seen.case.group == HEALTHY and arm == EXACT and score.spikes:
                yield f"uncured   {seen.name}: {list(score.spikes)}"
            if seen.case.group == SPIKES and not score.spikes:
                yield f"no spike  {seen.name}: last loss {seen.losses[-1]:.1e}, {dict(score.first)}"
            if score.spikes and CASES[i].group == SPIKES and arm == STOCK and not (score.lead or 0) >= GOAL:
                yield f"late      {seen.name}: {score.spikes[0]}, {dict(score.first)}"


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK}th case")
    parser.add_argument("--only", default="", help="cases whose name holds this, or of this group")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--seed-from", type=int, default=0, help="the first of them")
    parser.add_argument("--cache", type=Path, help="folder that keeps the traces")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name each training that a promise fails on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, begun = Console(width=max(150, Console().width)), time.perf_counter()
    todo = list(works(options.only, options.quick, range(options.seed_from, options.seed_from + options.seeds)))
    with tempfile.TemporaryDirectory() as scratch:
        found = gather(todo, options.cache or Path(scratch), options.jobs)
    groups: dict[str, list[int]] = {group: [] for group in (SPIKES, HEALTHY, ABSORBED)}
    for i in dict.fromkeys(i for i, _ in found):
        groups[CASES[i].group].append(i)
    if groups[SPIKES]:
        console.print(spiking(found, groups[SPIKES]))
    for group, title in ((HEALTHY, "ordinary trainings"), (ABSORBED, "absorbed, but no spike came")):
        if groups[group]:
            console.print(others(found, groups[group], title))
    result = summary(found)
    for name, value in result.items() if groups[SPIKES] else ():
        console.print(f"{name}: {value}", highlight=False)
    if options.list:
        for line in listing(found):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    spent = sum(seen.seconds for rows in found.values() for seen, _ in rows)
    console.print(f"{time.perf_counter() - begun:.0f} s; {spent:.0f} s of processor time in training")
    if options.json:
        rows = [
            {"case": seen.case.name, "arm": arm, "seed": seen.seed, **asdict(score)}
            for (_, arm), each in found.items() for seen, score in each
        ]  # fmt: skip
        options.json.write_text(json.dumps({"summary": result, "rows": rows}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
