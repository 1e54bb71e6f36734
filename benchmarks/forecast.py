"""The curvature forecast on many trainings: what it foretells, how early, how often in vain, at what cost.

python benchmarks/forecast.py [--quick] [--split dev|held-out] [--only WORD] [--seeds N] [--seed-from N]
                              [--cache DIR] [--jobs N] [--no-cost] [--list] [--json PATH]

Small networks are trained full batch or on large batches, with many optimizers, some to spike by curvature and others
to stay calm, to ride the edge of stability, or to be disturbed by noise (`forecast_cases.py`); a monitor watches each
as a user's loop would. The alarms are the events `watch` and `imminent` of the shipped detectors, folded over the
record. Spikes are labelled from the losses, their causes by training again (`forecast_score.py`, `forecast_record.py`).

The monitor takes all readings that its schedule wants, whatever they cost. "... as it comes" is a monitor with its
defaults, whose readings may take 3 % of the time: steps of a millisecond leave almost none. Its cost is processor time
against an unmonitored twin that takes turns with it. `--cache` keeps the traces, so that a changed detector is scored
in seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import forecast_peers as peers
from forecast_cases import CASES, DEV, HELD_OUT, SEEDS, Case
from forecast_record import DEFAULT, DENSE, Trace, trace
from forecast_score import Alarm, Score, episodes, held_against, merged
from foreshock.detect import scan
from foreshock.run.event import family

QUICK = 3  # of so many cases one is taken
TURNED = 1.1  # rise of the loss after an alarm that shows that something did come
KINDS = ("watch", "imminent")
GROUPS = ("spikes", "edge", "calm", "noise")


@dataclass
class Tally:
    """What one detector did on all traces of a split."""

    leads: list[int] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)
    at_peak: int = 0
    false: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    ringing: int = 0
    late: int = 0
    undecided: int = 0
    noise: int = 0
    on_noise: int = 0

    def add(self, trace: Trace, score: Score) -> None:
        self.leads += score.leads
        self.missed += [{"trace": trace.name, "group": trace.case.group, **asdict(each)} for each in score.missed]
        self.at_peak += score.at_peak
        self.false += [
            {"trace": trace.name, "group": trace.case.group, "rose": rose, **asdict(each)} for each, rose in score.false
        ]
        self.steps[trace.case.group] = self.steps.get(trace.case.group, 0) + len(trace.losses)
        self.ringing += score.ringing
        self.late += score.late
        self.undecided += score.undecided
        self.noise += sum(spike.cause == "noise" for spike in trace.spikes)
        self.on_noise += len(score.on_noise)

    @property
    def total(self) -> int:
        """Spikes by curvature."""
        return len(self.leads) + len(self.missed)

    def false_rate(self, *groups: str) -> float:
        """Returns false alarms per 10,000 steps of these groups."""
        steps = sum(self.steps.get(group, 0) for group in groups)
        return 1e4 * sum(each["group"] in groups for each in self.false) / steps if steps else math.nan


def forecast(trace: Trace, kinds: Sequence[str] = KINDS) -> list[Alarm]:
    """Returns the alarms of the shipped detectors on a trace."""
    return merged([
        Alarm(event.raised, math.inf if event.end is None else event.end)
        for event in scan(trace.run) if event.kind in kinds and family(event) == "curvature"
    ])  # fmt: skip


def by_rule(trace: Trace, rule: peers.Rule) -> list[Alarm]:
    """Returns the alarms of a peer on what the monitor recorded."""
    return episodes(rule(trace.run["loss"].tolist(), trace.run["grad_norm"].tolist()))


def gather(cases: Sequence[Case], seeds: slice, cache: Path, mode: str, jobs: int) -> Iterator[Trace]:
    """Yields the traces, trained where the cache lacks them."""
    works = [(case, seed, cache, mode) for case in cases for seed in SEEDS[case.split][seeds]]
    if jobs == 1:
        yield from (trace(*work) for work in works)
        return
    where = {(case.name, case.split): i for i, case in enumerate(CASES)}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        named = [(where[case.name, case.split], seed, cache, mode) for case, seed, cache, mode in works]
        for work, _ in zip(works, pool.map(_by_index, named), strict=True):
            yield trace(*work)


def _by_index(work: tuple[int, int, Path, str]) -> None:
    index, seed, cache, mode = work
    torch.set_num_threads(1)
    trace(CASES[index], seed, cache, mode)


def contenders() -> dict[str, Callable[[Trace], list[Alarm]]]:
    """Returns what is scored on the dense traces."""
    found: dict[str, Callable[[Trace], list[Alarm]]] = {"watch or imminent": forecast}
    for kind in KINDS:
        found[f"{kind} alone"] = lambda each, kind=kind: forecast(each, (kind,))  # type: ignore[misc]
    for name, rule in peers.rules().items():
        found[name] = lambda each, rule=rule: by_rule(each, rule)  # type: ignore[misc]
    return found


def table(title: str, tallies: dict[str, Tally]) -> Table:
    """Returns the table of one split."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("alarm", no_wrap=True)
    for name in (
        "foretold", "recall", "by the peak", "lead: least, median", "false", "of those x1.1",
        "per 10k (edge; calm, noise)", "ringing, late, open", "on noise",
    ):  # fmt: skip
        shown.add_column(name, justify="right")
    for name, tally in tallies.items():
        leads = f"{min(tally.leads)}, {statistics.median(tally.leads):.0f}" if tally.leads else "-"
        total = tally.total or math.nan
        rates = [tally.false_rate(*groups) for groups in (GROUPS, ("edge",), ("calm", "noise"))]
        shown.add_row(
            name, f"{len(tally.leads)} of {tally.total}", f"{len(tally.leads) / total:.3f}",
            f"{tally.at_peak / total:.2f}", leads, str(len(tally.false)),
            str(sum(each["rose"] >= TURNED for each in tally.false)),
            "{:.2f} ({:.2f}; {:.2f})".format(*rates), f"{tally.ringing}, {tally.late}, {tally.undecided}",
            f"{tally.on_noise} of {tally.noise}",
        )  # fmt: skip
    return shown


def around(trace: Trace, step: int, reach: int = 120) -> str:
    """Returns the readings of chi around a step, as step:chi."""
    if "chi" not in trace.run:
        return "no reading"
    steps, chis = trace.run.measured("chi")
    near = [(s, c) for s, c in zip(steps.tolist(), chis.tolist(), strict=True) if abs(s - step) <= reach]
    thin = near[:: max(1, len(near) // 12)]
    return " ".join(f"{s}:{c:.3f}" for s, c in thin) or "no reading"


def listing(traces: Sequence[Trace], tally: Tally) -> Iterator[str]:
    """Yields a line for each miss and each false alarm of a forecast."""
    by_name = {each.name: each for each in traces}
    for each in tally.missed:
        chis = around(by_name[each["trace"]], each["trigger"])
        yield f"missed  {each['trace']} [{each['group']}] at {each['trigger']}, x{each['height']:.1f}; chi {chis}"
    for each in tally.false:
        found = by_name[each["trace"]]
        end = len(found.losses) if math.isinf(each["end"]) else int(each["end"])
        chis = around(found, each["raised"])
        yield f"false   {each['trace']} [{each['group']}] {each['raised']}-{end}, rose x{each['rose']:.2f}; chi {chis}"


def cost(paired: Sequence[Trace], dense: Sequence[Trace]) -> str:
    """Returns what watching costs, in words: monitors as they come, and with all the readings they want."""
    plain = sum(each.seconds[1] for each in paired)
    steps = sum(len(each.losses) for each in paired)
    ratios = sorted(each.seconds[0] / each.seconds[1] for each in paired)
    readings = [len(each.run.measured("chi")[0]) if "chi" in each.run else 0 for each in (*paired, *dense)]
    few, many = statistics.median(readings[: len(paired)]), statistics.median(readings[len(paired) :])
    extra = 1e3 * (sum(each.seconds[0] for each in paired) - plain) / steps
    return (
        f"A plain step takes {1e3 * plain / steps:.2f} ms. A monitor as it comes adds {extra:.2f} ms "
        f"(x{statistics.median(ratios):.2f} in the median, {few:.0f} readings of chi a run); with all the readings it "
        f"wants ({many:.0f} a run) training takes x{sum(each.seconds[0] for each in dense) / plain:.1f}."
    )


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every third case")
    parser.add_argument("--split", choices=(DEV, HELD_OUT))
    parser.add_argument("--only", default="", help="cases whose name or group holds this")
    parser.add_argument("--seeds", type=int, default=1, choices=(1, 2), help="how many of a split's seeds")
    parser.add_argument("--seed-from", type=int, default=0, choices=(0, 1), help="the first of them, by its place")
    parser.add_argument("--cache", type=Path, help="folder that keeps the traces")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-cost", action="store_true", help="leave out the monitors with default settings")
    parser.add_argument("--list", action="store_true", help="name each miss and each false alarm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = slice(options.seed_from, options.seed_from + options.seeds)
    console, begun = Console(width=max(160, Console().width)), time.perf_counter()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        for split in (DEV, HELD_OUT):
            cases = [
                case for case in CASES
                if case.split == split and (options.only in case.name or options.only in case.group)
            ][:: QUICK if options.quick else 1]  # fmt: skip
            if not cases or options.split not in (None, split):
                continue
            traces = list(gather(cases, seeds, cache, DENSE, options.jobs))
            tallies = {name: Tally() for name in contenders()}
            for name, find in contenders().items():
                for each in traces:
                    score = held_against(find(each), each.spikes, each.losses, peer=name in peers.rules())
                    tallies[name].add(each, score)
            words = ""
            if not options.no_cost:
                paired = list(gather(cases, seeds, cache, DEFAULT, 1))
                tight = Tally()
                for each, whole in zip(paired, traces, strict=True):
                    same = np.array_equal(each.losses, whole.losses, equal_nan=True)
                    assert same, f"{each.name}: watched otherwise, it became another training"
                    tight.add(whole, held_against(forecast(each), whole.spikes, whole.losses))
                tallies = {"... as it comes": tight, **tallies}
                words = cost(paired, traces)
            first = next(iter(tallies.values()))
            steps, n = sum(first.steps.values()), len({each.case.name for each in traces})
            title = f"{split}: {n} cases, {len(traces)} runs, {steps} steps, {first.total} spikes by curvature"
            console.print(table(title, tallies))
            console.print(words)
            if options.list:
                for line in listing(traces, tallies["watch or imminent"]):
                    console.print(line, highlight=False, markup=False, soft_wrap=True)
            result[split] = {"cost": words, **{name: asdict(tally) for name, tally in tallies.items()}}
    console.print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
