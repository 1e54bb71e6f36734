"""One curvature spike drawn through its stages: loss, chi and what it foretells, raw curvature, the decay of v."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.detect.stages import Stages, stages
from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, edge_line, spread
from foreshock.run import Event, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ALONG", "CHI", "LOSS", "RAW", "SECOND", "caption", "passing", "staged"]

LOSS, CHI, ALONG, RAW, SECOND = "#15171c", "#c2410c", "#2358a8", "#4d7a1c", "#8f3a84"
MODE = "#96700a"
DECADES = 30  # ratio of the largest to the lowest value from which ticks within a decade are too many
SHADES = {
    "stable": "#e9eef6", "decoupled": "#d5e4f2", "silent": "#f6e3b4", "onset": "#f3b9a1", "refill": "#d9c3e6",
    "decay": "#e4eed9", "approach": "#d5e4f2", "flattening": "#d9c3e6", "descent": "#e4eed9",
}  # fmt: skip
NAMES = {"decoupled": "decoupled decay", "silent": "unstable, silent", "stable": "stable decrease"}


def passing(run: Run, up: int, last: int) -> Event:
    """Returns the watch event of chi above 1 from step `up` to `last`, for asking after its stages."""
    steps, values = _inside(run, "chi", (up, last))
    peak = int(np.argmax(values))
    height = float(values[peak]) - 1.0
    return Event("watch", up + 2, up, int(steps[peak]), last, height, height / 0.01, "chi")


def staged(run: Run, event: Event, window: tuple[int, int], *, limit: float, title: str = "") -> Figure:
    """Returns the figure of a spike.

    Args:
        run: with loss, chi, chi_gradient, hessian_top or gradient_top, and v_ratio (also per tensor).
        event: of the spike.
        window: first and last step to draw.
        limit: 2/lr, the limit of gradient descent on the raw curvature.
        title: above it.
    """
    found = stages(run, event)
    with blank(WIDTH, 5.2) as figure:
        grid = figure.subplots(5, 1, sharex=True, height_ratios=(0.32, 1.2, 1.1, 0.75, 0.9))
        for axes in grid[1:]:
            for stage in found.bounds:
                axes.axvspan(stage.first - 0.5, stage.last + 0.5, color=SHADES[stage.name], linewidth=0, zorder=0)
        _names(grid[0], found, window)
        steps, values = _inside(run, "loss", window)
        grid[1].plot(steps, values, color=LOSS)
        grid[1].set(yscale="log")
        if values.max() > DECADES * values.min():
            grid[1].minorticks_off()
        caption(grid[1], ("loss", LOSS))
        edge_line(grid[2])
        grid[2].plot(*_inside(run, "chi_gradient", window), color=ALONG)
        grid[2].plot(*_inside(run, "chi", window), color=CHI, linewidth=1.3)
        grid[2].set_ylim(*_around_one(run, window))
        caption(
            grid[2], (r"$\chi$, preconditioned curvature", CHI), (r"$\chi_P$, along the gradient", ALONG),
            ("edge at 1", EDGE),
        )
        edge_line(grid[3])
        steps, values = _inside(run, "hessian_top", window)
        grid[3].plot(steps, values / limit, color=RAW)
        grid[3].set_ylim(0, max(1.4, 1.2 * float(np.max(values / limit, initial=1.0))))
        usual = f"{np.median(values / limit):.2g}" if len(values) else "not read"
        caption(grid[3], (r"$\lambda_{\max}(H)$ without preconditioner, in units of 2/lr: " + usual, RAW))
        _moments(grid[4], run, found, window)
        grid[4].set(xlabel="step", xlim=window)
        if title:
            figure.suptitle(title, fontsize=8.5, fontweight="bold", x=0.01, ha="left")
    return figure


def caption(axes: Axes, *parts: tuple[str, str]) -> None:
    """Writes what a panel shows over its left end, each name in its line's colour."""
    at: Any = axes.transAxes
    place: tuple[float, float] = (0, 1)
    for text, colour in parts:
        at = axes.annotate(
            text, place, xycoords=at, xytext=(0 if at is axes.transAxes else 9, 2 if at is axes.transAxes else 0),
            textcoords="offset points", fontsize=7, color=colour, va="bottom", annotation_clip=False,
        )
        place = (1, 0)


def _names(axes: Axes, found: Stages, window: tuple[int, int]) -> None:
    """Writes the stages' names in a strip above the panels, each over its own span as far as there is room."""
    axes.set(ylim=(0, 1))
    axes.axis("off")
    shown = [stage for stage in found.bounds if stage.last >= window[0] and stage.first <= window[1]]
    middles = [(max(stage.first, window[0]) + min(stage.last, window[1])) / 2 for stage in shown]
    texts = [NAMES.get(stage.name, stage.name) for stage in shown]
    places = spread(middles, 0.115 * (window[1] - window[0]))
    for stage, middle, place, text in zip(shown, middles, places, texts, strict=True):
        axes.axvspan(stage.first - 0.5, stage.last + 0.5, 0, 0.22, color=SHADES[stage.name], linewidth=0)
        axes.annotate(
            text, (middle, 0.12), (place, 0.95), fontsize=7, ha="center", va="top", color=EDGE,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 0},
        )


def _moments(axes: Axes, run: Run, found: Stages, window: tuple[int, int]) -> None:
    """Draws |v| of the tensor at the edge, in units of its value at the window's start, with the free decay."""
    tensor = found.marks.tensor
    name = f"v_ratio/{tensor}" if f"v_ratio/{tensor}" in run else "v_ratio"
    steps, ratios = _inside(run, name, window)
    size = np.exp(np.cumsum(np.log(ratios)))
    axes.plot(steps, size / size[0], color=SECOND)
    betas = run.meta["optimizers"][0]["groups"][0]["betas"]
    axes.plot(steps, betas[1] ** (steps - steps[0]), color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
    known = "chi_denominator" in run
    if known:
        # afterwards another direction is on top
        over = window[1] if found.marks.down is None else min(found.marks.down, window[1])
        at, denominators = _inside(run, "chi_denominator", (window[0], over))
        axes.plot(at, (denominators / denominators[0]) ** 2 * size[np.searchsorted(steps, at[0])] / size[0], color=MODE)
        size = np.concatenate([size / size[0], (denominators / denominators[0]) ** 2])
    of = f" of {tensor}, the tensor at the edge" if name != "v_ratio" else ""
    axes.set_yscale("log")
    if size.max() < DECADES * size.min():
        axes.set_yscale("linear")
    axes.minorticks_off()
    unstable = [("v in the unstable direction", MODE)] if known else []
    caption(axes, (f"|v|{of}", SECOND), *unstable, (f"free decay, {betas[1]:g} a step (dashed)", GREY))


def _inside(run: Run, name: str, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = run.measured(name)
    inside = (steps >= window[0]) & (steps <= window[1])
    return steps[inside], values[inside]


def _around_one(run: Run, window: tuple[int, int]) -> tuple[float, float]:
    """Returns the range of chi, a third beyond it below, where the curvature along the gradient mostly is."""
    _, values = _inside(run, "chi", window)
    return float(values.min()) - 0.3, max(1.1, float(values.max()) + 0.04)

