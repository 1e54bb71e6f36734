"""Grokking beside spikes: two networks on modular addition, each with torch's loss, an exact one, and others."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_timeline import raised
from foreshock.papers.modular_arms import ARMS
from foreshock.papers.modular_training import RECTIFIED, SETTINGS, SQUARES, Grokking, train
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["PLAN", "STEPS", "grokking"]

PLAN = {
    SQUARES.name: ("stock", "float64", "exact", "stablemax"),
    RECTIFIED.name: ("stock", "float64", "exact", "perpendicular"),
}
"""Which arms are trained with which network."""

STEPS = max(setting.steps for setting in SETTINGS.values())
EARLY = 1000  # steps over which losses are compared with those in float64: before anything is absorbed, and long after


def grokking(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns spikes and test accuracy of eight trainings, and in which order they come and go.

    Args:
        seed: of networks, and of the part of the table that is taught.
        live: told how far it is.
        steps: at most so many; 0 for each network's own number.
        shelf: not used.
    """
    plan = [(SETTINGS[place], name) for place, names in PLAN.items() for name in names]
    total, done = sum(setting.steps for setting, _ in plan), 0
    traces: dict[str, dict[str, Grokking]] = {place: {} for place in PLAN}
    for setting, name in plan:

        def part(share: float, text: str, before: int = done, own: int = setting.steps) -> None:
            live((before + share * own) / total, text)

        own = min(setting.steps, steps or setting.steps)
        traces[setting.name][name] = train(setting, ARMS[name], seed, own, live=part)
        done += setting.steps
    numbers: dict[str, float] = {}
    for place, arms in traces.items():
        if len(arms["stock"].losses) == SETTINGS[place].steps:
            for name, trace in arms.items():
                numbers |= {f"{place}, {name}: {what}": value for what, value in _numbers(trace).items()}
            numbers |= {f"{place}: {what}": value for what, value in _beside(arms).items()}
    everything = [trace for arms in traces.values() for trace in arms.values()]
    return Found(
        numbers, {f"modular-{each.setting.name}-{each.arm.name}-seed-{seed}": each.run for each in everything},
        [_row(each) for each in everything], {"modular": traces},
    )  # fmt: skip


def _numbers(trace: Grokking) -> dict[str, float]:
    """Returns what is judged of one training; what belongs to a first spike only where there is one."""
    spikes, levels = relapses(trace.losses), raised(trace.run)
    numbers = {
        "spikes": float(len(spikes)), "best accuracy": float(trace.accuracy.max()),
        "last accuracy": float(trace.accuracy[-1]), "levels": float(sum(math.isfinite(level.step) for level in levels)),
    }  # fmt: skip
    if spikes:
        first = spikes[0].first
        before = trace.accuracy[trace.steps < first]
        numbers["accuracy before the first spike"] = float(before[-1]) if len(before) else math.nan
        numbers["best accuracy after the first spike"] = float(trace.accuracy[trace.steps >= first].max())
        numbers["lead of absorbing"] = first - levels[0].step
    return numbers


def _beside(arms: Mapping[str, Grokking]) -> dict[str, float]:
    """Returns how the exact loss compares with float64."""
    ratio = arms["exact"].truth / arms["float64"].truth
    return {
        "exact off float64 early": float(np.abs(ratio[:EARLY] - 1).max()),
        "exact off float64 at the end": abs(float(ratio[-1]) - 1),
    }


def _row(trace: Grokking) -> tuple[str, ...]:
    spikes = relapses(trace.losses)
    best, last = trace.accuracy.max(), trace.accuracy[-1]
    return (
        f"Modular, {trace.setting.title}, {trace.arm.title}: test {best:.2f}, at the end {last:.2f}",
        str(trace.seed), f"{len(trace.losses):,}", str(len(spikes)), str(spikes[0].first) if spikes else "-",
        f"{trace.truth[-1]:.3g}", f"{trace.end.head_mean:.2g}", f"{trace.end.feature_mean:.3g}",
        f"{trace.end.cosine:.2f}", f"{trace.seconds:.1f}",
    )  # fmt: skip
