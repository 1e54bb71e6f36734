"""Figures of the batch-size reproduction: steps against batch, noise scales, learning rates, the policy, switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.papers.batch_steps import Sweep, TradeOff
from foreshock.papers.batch_switches import MOMENTS, After
from foreshock.papers.batch_tasks import TASKS
from foreshock.papers.drawing import GREY, WIDTH, beside, blank, edge_line, heading
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

Studies = Mapping[int, Mapping[str, Found]]  # seed -> study -> what it found

COLOURS = {"digits": "#2b5fad", "fashion": "#c2410c", "austen": "#12807a", "digits-sgd": "#8f3a84"}
HANDLED = {"keep": "#2b5fad", "rescale": "#12807a", "reset": "#c2410c"}


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name."""
    drawn: dict[str, Any] = {}
    for studies in reversed(list(found.values())):  # the first seed's stays
        for study in studies.values():
            drawn |= study.drawn
    made = {"steps": _steps(drawn), "policy": _policy(drawn), "switches": _switches(drawn)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _steps(drawn: Mapping[str, Any]) -> Figure | None:
    sweeps = {name: drawn[f"sweep {name}"] for name in COLOURS if f"sweep {name}" in drawn}
    if not sweeps:
        return None
    with blank(WIDTH, 2.3) as figure:
        left, middle, right = figure.subplots(1, 3)
        for name, (found, law) in sweeps.items():
            colour = COLOURS[name]
            if name in TASKS:
                _tradeoff(left, found, law, colour, name)
                _noise(middle, found, law, colour)
            rates = found.rates
            sizes = np.array(sorted(rates), float)
            values = np.array([rates[int(size)] for size in sizes])
            right.plot(sizes, values / values[0], "o", ms=3, color=colour)
            if name.endswith("sgd"):
                top, noise = drawn[f"turning {name}"]
                curve = top / (1.0 + noise / sizes)
                right.plot(sizes, curve / values[0], color=colour, linewidth=0.8)
                beside(right, "SGD", (30, 7.5), colour, left=True)
        grid = np.array([8.0, 1024.0])
        right.plot(grid, np.sqrt(grid / 8), color=GREY, linewidth=0.7)
        beside(right, "root of B", (90, 3.0), GREY)
        heading(left, "Steps to the loss", "over S_min")
        heading(middle, "Noise scale", "dots: B_crit")
        heading(right, "Best learning rate", "over the first")
        left.set(xscale="log", yscale="log", xlabel="batch size / B_crit")
        middle.set(xscale="log", yscale="log", xlabel="step", yticks=[10, 30, 100, 300], yticklabels=[10, 30, 100, 300])
        middle.minorticks_off()
        right.set(xscale="log", yscale="log", xlabel="batch size")
    return figure


def _tradeoff(axes: Axes, found: Sweep, law: TradeOff, colour: str, name: str) -> None:
    sizes = np.array(sorted(found.steps), float)
    axes.plot(sizes / law.critical, np.array([found.steps[int(s)] for s in sizes]) / law.steps, "o", ms=3, color=colour,
              label=name)
    grid = np.geomspace(0.01, 30, 50)
    axes.plot(grid, 1 + 1 / grid, color=GREY, linewidth=0.7, zorder=1)
    axes.legend(fontsize=6, frameon=False, handletextpad=0.1)


def _noise(axes: Axes, found: Sweep, law: TradeOff, colour: str) -> None:
    steps = [each.step for each in found.noise]
    axes.plot(steps, [each.simple for each in found.noise], color=colour, linewidth=1)
    axes.plot([steps[-1]], [law.critical], "o", ms=4, color=colour)


def _policy(drawn: Mapping[str, Any]) -> Figure | None:
    names = [name for name in drawn if name.startswith("policy") and name.endswith("c=2")]
    if not names:
        return None
    rows = max(1, len(names) // 3)
    with blank(WIDTH, 1.6 * rows + 0.2) as figure:
        grid = figure.subplots(rows, 3, squeeze=False).ravel()
        for axes, name in zip(grid, names, strict=False):
            fixed, way = drawn[name]
            best = min(fixed.values())
            axes.plot(list(fixed), [value / best for value in fixed.values()], "o-", ms=2.5, linewidth=0.8, color=GREY)
            for suffix, colour in (("c=2", "#2b5fad"), ("c=4", "#c2410c")):
                _, way = drawn[name.removesuffix("c=2") + suffix]
                axes.plot([way.sizes[-1][1]], [way.time / best], "*", ms=7, color=colour, label=f"policy, {suffix}")
            axes.set(xscale="log", yscale="log", yticks=[1, 2, 5, 10, 20], yticklabels=[1, 2, 5, 10, 20])
            axes.minorticks_off()
            _, task, cost, _ = name.replace(",", "").split()
            heading(axes, task, cost)
        grid[0].legend(fontsize=6, frameon=False, handletextpad=0.1, loc="upper center")
        for axes in grid[-3:]:
            axes.set_xlabel("batch size, of the policy its last")
        figure.supylabel("time to the loss, over the\nfastest fixed size", fontsize=7, multialignment="center")
    return figure


def _switches(drawn: Mapping[str, Any]) -> Figure | None:
    names = [name for name in TASKS if f"switch {name} up" in drawn]
    if not names:
        return None
    with blank(WIDTH, 1.7 * len(names) + 0.2) as figure:
        grid = figure.subplots(len(names), 2, squeeze=False)
        for row, name in zip(grid, names, strict=True):
            for axes, way in zip(row, ("up", "down"), strict=True):
                found: Mapping[str, After] = drawn[f"switch {name} {way}"]
                for moments in MOMENTS:
                    after = found[moments]
                    chi = np.array(after.chi) / after.before
                    axes.plot(after.steps, chi, "o-", ms=2.5, linewidth=1, color=HANDLED[moments])
                    beside(axes, moments, (after.steps[0], float(chi[0])), HANDLED[moments])
                edge_line(axes)
                axes.set(xscale="log", yscale="log")
                heading(axes, name, "batch x 16, lr x 4" if way == "up" else "batch / 16, lr / 4")
        for axes in grid[-1]:
            axes.set_xlabel("steps after the switch")
        figure.supylabel("chi, over that before", fontsize=7)
    return figure
