"""The studies of the S3 reproduction: optimizers at raised learning rates, ablations, half the steps, the sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from foreshock.errors import MissingExtraError
from foreshock.papers.s3_arms import ABLATIONS, ADAMW, ARMS, EQUAL, MOVED, RIVALS, S3_ARM, Arm, library
from foreshock.papers.s3_tasks import TASKS, Task
from foreshock.papers.s3_training import Trace, train
from foreshock.papers.studies import Found, Live, Shelf
from foreshock.run import Run

__all__ = ["FACTORS", "HIGH", "ablations", "halves", "raised", "sweep"]

FACTORS = (1.0, 3.0, 10.0, 30.0)
HIGH = (10.0, 30.0)  # where ablations are judged by their spikes
SWEEP = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING = (100, 101)  # seeds of the sweep, which no other training uses

Study = Callable[[int, Live, int, Shelf], Found]


def raised(task: str) -> Study:
    """Returns the study of a task that trains every optimizer at each of `FACTORS`, and compares S3 with AdamW."""

    def study(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
        present, remarks = _present(RIVALS)
        wanted = [(arm, factor) for arm in present for factor in FACTORS]
        traces = list(_trained(TASKS[task](), wanted, seed, live, steps, shelf))
        numbers = {
            f"{task}: {name}": value for name, value in _against(traces).items() if not math.isnan(value)
        }
        return Found(numbers, _runs(traces), drawn={"traces": traces}, remarks=remarks)

    return study


def ablations(task: str) -> Study:
    """Returns the study of a task that changes one thing of S3, or AdamW's betas, at 1, 10 and 30 times the lr."""

    def study(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
        kinds = (ADAMW, EQUAL, S3_ARM, *ABLATIONS)
        wanted = [(arm, factor) for arm in kinds for factor in (1.0, *HIGH) if factor == 10.0 or not arm.keeps_decay]
        traces = list(_trained(TASKS[task](), [*wanted, (MOVED, 1.0)], seed, live, steps, shelf))
        spikes = {arm.name: _spikes(traces, arm, HIGH) for arm in kinds if not arm.keeps_decay}
        numbers = {
            "equal betas spare spikes": spikes["adamw"] - spikes["adamw-equal"],
            **{
                f"{name} adds spikes": spikes[name] - spikes["s3"] for name in ("s3-p2", "s3-p1", "s3-different")
            },
            **{
                f"{name} over S3": _ratio(_lowest(traces, ARMS[name]), _lowest(traces, S3_ARM))
                for name in ("s3-plain", "s3-different")
            },
            "from_adamw over AdamW at 1x": _ratio(_lowest(traces, MOVED), _of(traces, ADAMW)[0].final),
            "largest |u|, different betas": _largest(traces, ARMS["s3-different"]),
            "largest |u|, equal betas": max(_largest(traces, ARMS[name]) for name in ("s3", "s3-p2", "s3-p1")),
        }
        own = [each for each in traces if ARMS[each.arm] in (*ABLATIONS, MOVED)]
        return Found(
            {f"{task}: {name}": value for name, value in numbers.items()}, _runs(own), drawn={"traces": own},
        )

    return study


def halves(task: str) -> Study:
    """Returns the study of a task that gives S3 half of AdamW's steps, each with its lr along a cosine."""

    def study(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
        data = TASKS[task]()
        steps = steps or data.steps
        wholes = list(_trained(data, [(ADAMW, 1.0), (ADAMW, 3.0)], seed, live, steps, shelf, cosine=True))
        wanted = [(S3_ARM, factor) for factor in (1.0, 3.0, 10.0)]
        halved = list(_trained(data, wanted, seed, live, steps // 2, shelf, cosine=True))
        traces = [*wholes, *halved]
        return Found(
            {
                f"{task}: half the steps, loss": _ratio(_lowest(halved, S3_ARM), _lowest(wholes, ADAMW)),
                f"{task}: half the steps, held-out loss": _ratio(_held(halved, S3_ARM), _held(wholes, ADAMW)),
            },
            {f"{place}-cosine-{len(trace.losses)}": run for trace in traces for place, run in _runs([trace]).items()},
            drawn={"cosine": traces},
        )

    return study


def sweep(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the learning rate at which AdamW .9/.999 has the lowest held-out loss, over the one that is 1x here."""
    numbers, remarks = {}, []
    for name in ("digits", "images", "text"):
        try:
            task = TASKS[name]()
        except MissingExtraError as error:
            remarks.append(f"left out of the sweep: {name}; {error}")
            continue
        held = {}
        for lr in SWEEP:
            live(SWEEP.index(lr) / len(SWEEP), f"{task.title}: AdamW at {lr:g}")
            held[lr] = sum(train(replace(task, lr=lr), ADAMW, 1.0, each, steps=steps).held for each in TUNING)
        numbers[f"{name}: best lr over 1x"] = min(held, key=held.__getitem__) / task.lr
    return Found(numbers, remarks=remarks)


def _present(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """Returns those arms whose optimizers are installed, and what to install for the others."""
    try:
        library()
    except MissingExtraError as error:
        return [arm for arm in arms if not arm.rival], [f"left out: {error}"]
    return list(arms), []


def _trained(
    task: Task, wanted: Sequence[tuple[Arm, float]], seed: int, live: Live, steps: int, shelf: Shelf,
    *, cosine: bool = False,
) -> Iterator[Trace]:
    """Yields trainings, out of the shelf where another study has done them."""
    for place, (arm, factor) in enumerate(wanted):
        key = f"{task.name}/{arm.name}/{factor:g}/{steps}/{cosine}"
        if key not in shelf:
            live(place / len(wanted), f"seed {seed}, {task.title}: {arm.title}, {factor:g}x")
            shelf[key] = train(task, arm, factor, seed, steps=steps, cosine=cosine)
        yield shelf[key]


def _runs(traces: Sequence[Trace]) -> dict[str, Run]:
    return {f"{each.task}-{each.arm}-{each.factor:g}x-seed-{each.seed}": each.run for each in traces}


def _against(traces: Sequence[Trace]) -> dict[str, float]:
    """Returns what is claimed of S3 against AdamW .9/.999."""
    ours, theirs = ({each.factor: each for each in traces if each.arm == arm.name} for arm in (S3_ARM, ADAMW))
    target = _lowest(traces, ADAMW)
    spent = min(ours.values(), key=lambda each: each.reaches(target)).reaches(target)
    best, rival = (min(each.values(), key=lambda trace: trace.final) for each in (ours, theirs))
    return {
        "diverged at 10x": float(ours[10.0].diverged),
        "spikes at 10x": float(len(ours[10.0].spikes)),
        "spikes spared at 10x": float(len(theirs[10.0].spikes) - len(ours[10.0].spikes)),
        "spikes spared at 30x": float(len(theirs[30.0].spikes) - len(ours[30.0].spikes)),
        "loss at 10x over AdamW at 1x": _ratio(ours[10.0].final, theirs[1.0].final),
        "loss at 10x over AdamW at 10x": _ratio(ours[10.0].final, theirs[10.0].final),
        "loss at 30x over AdamW at 30x": _ratio(ours[30.0].final, theirs[30.0].final),
        "lr sensitivity over AdamW's": _ratio(*(_sensitivity(each.values()) for each in (ours, theirs))),
        "loss at 1x over AdamW at 1x": _ratio(ours[1.0].final, theirs[1.0].final),
        "best loss over AdamW's": _ratio(best.final, rival.final),
        "best held-out loss over AdamW's": _ratio(_held(traces, S3_ARM), _held(traces, ADAMW)),
        "best accuracy less AdamW's": _accuracy(traces, S3_ARM) - _accuracy(traces, ADAMW),
        "share of the steps": spent / min(theirs.values(), key=lambda each: each.reaches(target)).reaches(target),
        "largest |u|": _largest(traces, S3_ARM),
        "largest |u| of AdamW": _largest(traces, ADAMW),
    }


def _of(traces: Sequence[Trace], arm: Arm) -> list[Trace]:
    return [each for each in traces if each.arm == arm.name]


def _spikes(traces: Sequence[Trace], arm: Arm, factors: Sequence[float]) -> float:
    """Returns the spikes of an arm at some learning rates together."""
    return float(sum(len(each.spikes) for each in _of(traces, arm) if each.factor in factors))


def _lowest(traces: Sequence[Trace], arm: Arm) -> float:
    return min(each.final for each in _of(traces, arm))


def _held(traces: Sequence[Trace], arm: Arm) -> float:
    return min(each.held for each in _of(traces, arm))


def _accuracy(traces: Sequence[Trace], arm: Arm) -> float:
    return max(each.accuracy for each in _of(traces, arm))


def _sensitivity(traces: Collection[Trace]) -> float:
    """Returns the mean over learning rates of how far the final loss, or that at the start, is above the best.

    Source: Wortsman et al. 2023, arXiv 2309.14322 (LR sensitivity).
    """
    best = min(each.final for each in traces)
    return sum(min(each.final, float(each.losses[0])) - best for each in traces) / len(traces)


def _largest(traces: Sequence[Trace], arm: Arm) -> float:
    return max(each.largest for each in _of(traces, arm))


def _ratio(mine: float, other: float) -> float:
    return mine / other if math.isfinite(other) else math.nan
