"""What the trainings of the guard's benchmark say: losses relative to clean runs, interventions, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from rich.table import Table

from guard_cases import CASES
from guard_runs import CLEAN, GUARD, PLAIN, Outcome

GOAL = 0.005  # rise of the final validation loss over the clean run of the same seed


def relative(found: Sequence[Outcome]) -> dict[int, float]:
    """Returns, by place, the final validation loss over that of the plain optimizer's clean run of the seed, less 1."""
    clean = {
        (each.work.seed, each.work.steps, each.work.task): each.loss
        for each in found if each.work.contender == PLAIN and each.work.case == CLEAN
    }  # fmt: skip
    return {
        i: each.loss / clean[key] - 1.0
        for i, each in enumerate(found)
        if (key := (each.work.seed, each.work.steps, each.work.task)) in clean
    }


def percent(value: float) -> str:
    """Returns a share in per cent with its sign.

    >>> percent(0.0123), percent(-0.001), percent(float("inf")), percent(0.9)
    ('+1.2', '-0.10', 'lost', '+90')
    """
    if not math.isfinite(value):
        return "lost"
    digits = 2 if abs(value) < 0.00995 else 1 if abs(value) < 0.0995 else 0
    return f"{100 * value:+.{digits}f}"


def damage(found: Sequence[Outcome], contenders: Sequence[str]) -> Table:
    """Returns the table of what is left of each fault's damage: the median over runs and the worst, in per cent."""
    relatives = relative(found)
    shown = Table(
        title="final validation loss over the clean run's of the same seed, per cent: median (worst) over runs",
        title_justify="left",
    )
    shown.add_column("fault", no_wrap=True)
    for name in contenders:
        shown.add_column(name, justify="right")
    names = [CLEAN, *(case.name for case in CASES)]
    for case in names:
        cells = []
        for contender in contenders:
            values = [
                relatives[i] for i, each in enumerate(found)
                if i in relatives and each.work.case == case and each.work.contender == contender
            ]  # fmt: skip
            cells.append(f"{percent(statistics.median(values))} ({percent(max(values))})" if values else "")
        if any(cells):
            shown.add_row(case, *cells)
    return shown


def doings(found: Sequence[Outcome], contenders: Sequence[str]) -> Table:
    """Returns the table of interventions, the median over runs."""
    shown = Table(title="interventions: median over runs", title_justify="left")
    shown.add_column("fault", no_wrap=True)
    for name in contenders:
        shown.add_column(name, justify="right")
    for case in [CLEAN, *(case.name for case in CASES)]:
        cells = []
        for contender in contenders:
            acts = [
                each.acts for each in found if each.work.case == case and each.work.contender == contender
            ]  # fmt: skip
            cells.append(f"{statistics.median(acts):.0f}" if acts else "")
        if any(cells):
            shown.add_row(case, *cells)
    return shown


def severity(found: Sequence[Outcome]) -> Table:
    """Returns the table of what a fault looks like at its step, from the plain optimizer's runs."""
    shown = Table(title="the faults, as the unguarded run sees them (medians)", title_justify="left")
    columns = (
        "loss, z", "next loss, z", "gradient norm, x", "next norm, z", "worst loss after, x",
    )  # fmt: skip
    shown.add_column("fault", no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right")
    for case in CASES:
        seen = [each for each in found if each.work.case == case.name and each.work.contender == PLAIN and each.seen]
        if not seen:
            continue
        keys = ("loss_z", "next_loss_z", "norm_ratio", "next_norm_z")
        values = [middle([each.seen.get(key, math.nan) for each in seen]) for key in keys]
        shown.add_row(case.name, *(f"{value:.3g}" for value in (*values, middle([each.worst for each in seen]))))
    return shown


def middle(values: Sequence[float]) -> float:
    """Returns the median; NaN where one of the values is.

    >>> middle([1.0, 3.0, 2.0]), middle([1.0, float("nan")])
    (2.0, nan)
    """
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def failures(found: Sequence[Outcome]) -> Iterator[str]:
    """Yields, for each guarded run that missed the goal, what the guard did."""
    for i, value in relative(found).items():
        each = found[i]
        late = each.work.case != CLEAN and value > GOAL
        if each.work.contender == GUARD and (late or (each.work.case == CLEAN and each.acts)):
            work = each.work
            yield f"{work.case}, {work.when or 'never'}, seed {work.seed}, at {each.at}: {percent(value)} %"
            yield from (f"    {line}" for line in each.log[:12])
            if each.failed:
                yield f"    {each.failed}"


def verdict(found: Sequence[Outcome]) -> str:
    """Returns in a sentence how many of the guarded runs with a fault reached the goal."""
    relatives = relative(found)
    values = [
        value for i, value in relatives.items() if found[i].work.contender == GUARD and found[i].work.case != CLEAN
    ]
    if not values:
        return "no guarded run met a fault"
    reached = sum(value <= GOAL for value in values)
    return (
        f"{reached} of {len(values)} guarded runs ended within {100 * GOAL:g} % of the clean run of their seed; "
        f"median {percent(statistics.median(values))} %, worst {percent(max(values))} %"
    )
