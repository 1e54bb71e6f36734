"""The diagnosis on trainings whose cause is known: how often it is named, from rules alone and after a replay.

python benchmarks/explain.py [--quick] [--seeds N] [--seed-from N] [--only WORD] [--jobs N] [--keep DIR] [--often]
                             [--judge] [--no-replay] [--list] [--json PATH]

Some 150 small networks are trained on real data, each with one thing planted in it (`explain_plants.py`,
`explain_spoilt.py`, `explain_cases.py`) or left to spike by itself, by curvature or by a softmax in low precision,
where what made the spike is measured without any rule (`explain_truth.py`). A monitor as it comes watches each, with a
history beside it.
The event is diagnosed from what was recorded; from gradient norm and learning rate beside the loss; from the loss;
and once more after the standard replay. Where some examples of a batch were spoilt, they are looked for among the
culprits of the step and of the event, and by loss and gradient norm.

`--keep` keeps the runs, so that changed rules are judged in seconds; `--often` gives readings of curvature half of the
time. All of it takes a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import explain_record
import explain_score as score
from explain_cases import CASES
from explain_curved import CURVED
from explain_score import Verdict
from foreshock.run import Run

ALL = (*CASES, *CURVED)
QUICK = 5  # of so many trainings one is taken
HELD_OUT = 100  # first seed that nothing was ever calibrated on


def gather(numbers: Sequence[int], seeds: Sequence[int], folder: Path, jobs: int, settings: dict[str, Any]) -> None:
    """Trains what the folder lacks."""
    have = [place.name for place in folder.iterdir() if not place.name.startswith(score.PART)]
    works = [
        (number, seed, folder, settings) for seed in seeds for number in numbers
        if not any(name.endswith(f"{ALL[number].name}-{seed}") for name in have)
    ]  # fmt: skip
    if jobs == 1:
        for work in works:
            _by_number(work)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_by_number, works))


def _by_number(work: tuple[int, int, Path, dict[str, Any]]) -> tuple[str, int, str]:
    number, seed, folder, settings = work
    return explain_record.one((ALL[number], seed, folder, settings))


def confused(title: str, verdicts: Sequence[Verdict]) -> Table:
    """Returns the confusion matrix as a table: a row for each planted cause."""
    shown = Table(title=f"{title}: {score.accuracy(verdicts):.3f} of {len(verdicts)} right", title_justify="left")
    shown.add_column("planted")
    for name in score.NAMES:
        shown.add_column(name.replace("_", " "), justify="right")
    for planted, row in score.confusion(verdicts).items():
        shown.add_row(planted, *(str(row.get(name, ".")) for name in score.NAMES))
    return shown


def calibrated(verdicts: Sequence[Verdict]) -> Table:
    """Returns the table of scores against truth."""
    shown = Table(title="scores against truth, every cause judged", title_justify="left")
    for name in ("score", "causes", "mean score", "share planted"):
        shown.add_column(name, justify="right")
    for low, high, n, mean, share in score.calibration(verdicts):
        shown.add_row(f"{low}-{high}", str(n), f"{mean:.2f}", f"{share:.2f}")
    return shown


def armed(runs: Sequence[Run]) -> Table:
    """Returns how often each arm removed (weakened) the event of each cause, of how many replays."""
    found = score.arms(runs)
    names = list(dict.fromkeys(arm for _, arm in found))
    shown = Table(title="replays: removed (weakened) / tried, by arm", title_justify="left")
    shown.add_column("planted")
    for name in names:
        shown.add_column(name.replace("_", " "), justify="right")
    for cause in score.NAMES:
        cells = []
        for name in names:
            told = found.get((cause, name))
            if told is None:
                cells.append(".")
            elif name == "reproducible":
                cells.append(f"{told['True']}/{told.total()}")
            else:
                tried = told.total() - told["not applicable"] - told["failed"]
                cells.append(f"{told['removed']} ({told['weakened']})/{tried}" if tried else "-")
        if any(cell != "." for cell in cells):
            shown.add_row(cause, *cells)
    return shown


def blamed(runs: Sequence[Run]) -> Table:
    """Returns what share of the bad examples each ranking finds: of those that carry a rise, of those that made one."""
    shown = Table(title="guilty examples among as many of the first", title_justify="left")
    for name in ("guilty of", "runs", "examples", "attribution", "gradient norm", "loss"):
        shown.add_column(name, justify="left" if name == "guilty of" else "right")
    facts = [found for run in runs if (found := score.rows(run)) is not None]
    for name, key, count in (
        ("the rise of their own batch, by `attribute_event`", "of_event", "carriers"),
        ("what their step did to the next batch, by `attribute`", "of_step", "guilty"),
    ):
        group = [each for each in facts if key in each]
        means = [score.mean([each[key][way] for each in group]) for way in ("culprits", "gradient", "loss")]
        total = sum(each[count] for each in group)
        shown.add_row(name, str(len(group)), str(total), *(f"{value:.3f}" for value in means))
    return shown


def wrong(verdicts: Sequence[Verdict], title: str) -> Iterator[str]:
    """Yields a line for each run whose cause was not named."""
    for each in verdicts:
        if not each.right:
            top = sorted(each.scores.items(), key=lambda item: -item[1])[:3]
            yield f"{title}: {each.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in top)


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every fifth training")
    parser.add_argument("--seeds", type=int, default=1, help="how many, each with all trainings")
    parser.add_argument("--seed-from", type=int, default=HELD_OUT, help="the first; 0 to 9 are for calibration")
    parser.add_argument("--only", default="", help="trainings whose name holds this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs")
    parser.add_argument("--judge", action="store_true", help="train nothing: judge what `--keep` has")
    parser.add_argument("--often", action="store_true", help="readings of curvature may take half of the time")
    parser.add_argument("--no-replay", action="store_true", help="the rules alone")
    parser.add_argument("--list", action="store_true", help="name each run that was not explained")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    numbers = [i for i, case in enumerate(ALL) if options.only in case.name][:: QUICK if options.quick else 1]
    seeds = range(options.seed_from, options.seed_from + options.seeds)
    settings: dict[str, Any] = {"experiments": not options.no_replay} | ({"max_overhead": 1.0} if options.often else {})
    console, begun = Console(width=max(200, Console().width)), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not options.judge:
            gather(numbers, seeds, folder, options.jobs, settings)
        runs = score.planted_runs(folder)
        result: dict[str, Any] = {}
        for name, view in score.VIEWS.items():
            verdicts = [found for run in runs if (found := score.judged(run, view)) is not None]
            console.print(confused(f"rules alone, {name}", verdicts))
            result[name] = {"accuracy": score.accuracy(verdicts), "confusion": score.confusion(verdicts)}
            if view is None:
                first = verdicts
        after = [found for run in runs if (found := score.judged(run, proven=True)) is not None]
        console.print(confused("after the replay", after))
        console.print(calibrated(first), calibrated(after), armed(runs), blamed(runs))
        discarded = sum(run.meta["planted"]["discarded"] for run in runs)
        console.print(f"{len(runs)} runs; {discarded} sizes, or spikes without a single cause, were discarded.")
        if options.list:
            for line in (*wrong(first, "rules"), *wrong(after, "replay")):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        result |= {"after": {"accuracy": score.accuracy(after), "confusion": score.confusion(after)}, "runs": len(runs)}
    console.print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
