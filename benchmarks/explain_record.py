"""Records the runs of the benchmark: trains a case until its plant makes an event, a monitor beside it."""

from __future__ import annotations

import shutil
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import explain_truth
import foreshock
from explain_cases import AFTER, TRIES, Case
from explain_curved import Alone, Curved
from explain_experiments import Suspects, replayed
from explain_score import PART, first_event
from explain_train import Training
from foreshock.attribution import capture


def record(case: Case, seed: int, place: Path, *, experiments: bool = False, **settings: Any) -> bool:
    """Writes the run of a case with a seed; returns whether any size made an event.

    Args:
        case: what is planted.
        seed: of all that is drawn.
        place: directory of the run.
        experiments: replay the event and attribute it, while the training is alive.
        settings: of the monitor.
    """
    part = place.with_name(PART + place.name)
    for attempt in range(TRIES):
        at, size = case.draw(seed, attempt)
        training = Training(case.net, case.optimizer, seed, case.make(size), at)
        shutil.rmtree(part, ignore_errors=True)
        planted = {
            "cause": case.cause, "at": at, "variant": case.variant, "net": case.net, "optimizer": case.optimizer,
            "seed": seed, "size": size, "discarded": attempt,
        }  # fmt: skip
        if _train(training, part, planted, experiments, settings):
            part.rename(place)
            return True
    shutil.rmtree(part, ignore_errors=True)
    return False


def _train(
    training: Training, place: Path, planted: dict[str, Any], experiments: bool, settings: dict[str, Any]
) -> bool:
    """Trains with a monitor, which writes the run; returns whether the plant made an event."""
    suspects, taken = None, None
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        monitor = stack.enter_context(
            foreshock.Monitor(training.model, training.optimizer, run=place, **settings)
        )
        if experiments:
            stack.enter_context(foreshock.History(monitor, scheduler=training.scheduler))
        for step in range(training.at + AFTER):
            training.disturb(step)
            batches = training.draw(step)
            if experiments and step in training.planted:
                suspects = Suspects(training, batches[0])
                with capture(training.optimizer, training.model) as taken:
                    training.advance(batches, monitor.observe)
            else:
                training.advance(batches, monitor.observe)
        planted |= {"rows": training.planted.get(training.at)}
        monitor.annotate(title=place.name.removeprefix(PART), planted=planted)
        event = first_event(monitor.run, training.at)
        if event is None or _of_the_end(training, event.onset):
            return False
        if experiments:
            refused = replayed(monitor, training, event)
            if suspects is not None and taken is not None:
                suspects.step(taken)
                suspects.event(monitor, event)
            monitor.annotate(planted_replay=refused, planted_rows=suspects and suspects.facts)
    return True


def _of_the_end(training: Training, onset: int) -> bool:
    """Returns whether an event only began when bad data had ended, as it may where the net has taken to them."""
    return training.plant.cause == "outlier_batch" and onset >= training.at + training.plant.steps


def curved(case: Curved, seed: int, folder: Path, *, experiments: bool = False, **settings: Any) -> str:
    """Records a training that is left to itself, up to a spike that has one cause; returns which, or "" without one.

    Args:
        case: what is trained.
        seed: of the start and the batches.
        folder: gets the run's directory, named after the cause.
        experiments: replay the event while the training is alive.
        settings: of the monitor.
    """
    known = explain_truth.find(case, seed)
    if known is None:
        return ""
    name = f"{known.cause}-{case.name}-{seed}"
    training, place = Alone(case, seed), folder / (PART + name)
    shutil.rmtree(place, ignore_errors=True)
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        monitor = stack.enter_context(
            foreshock.Monitor(training.model, training.optimizer, run=place, **settings)
        )
        if experiments:
            stack.enter_context(foreshock.History(monitor))
        for step in range(known.last + 1):
            training.advance(training.draw(step), monitor.observe)
        monitor.annotate(title=case.name, planted={
            "cause": known.cause, "at": known.at, "variant": case.variant, "net": case.net, "seed": seed,
            "optimizer": case.optimizer, "discarded": known.discarded, "rows": None, "event": list(known.event.key),
            "truth": known.facts,
        })  # fmt: skip
        if experiments:
            event = next((each for each in monitor.events if each.key == known.event.key), None)
            refused = "no such event" if event is None else replayed(monitor, training, event)
            monitor.annotate(planted_replay=refused)
    place.rename(folder / name)
    return known.cause


def one(work: tuple[Case | Curved, int, Path, dict[str, Any]]) -> tuple[str, int, str]:
    """Records in a process of its own; returns the case's name, the seed and the cause, "" where nothing came of it."""
    case, seed, folder, settings = work
    torch.set_num_threads(1)
    if isinstance(case, Curved):
        return case.name, seed, curved(case, seed, folder, **settings)
    return case.name, seed, case.cause if record(case, seed, folder / f"{case.name}-{seed}", **settings) else ""
