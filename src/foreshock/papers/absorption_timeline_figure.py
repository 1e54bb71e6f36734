"""The timeline figure: three losses over the whole run, and the way to the first spike with its levels marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_timeline import BEGIN, LOW, Level
from foreshock.papers.absorption_training import Trace
from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, spread
from foreshock.papers.stage_figure import caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EXACT", "FLOAT64", "STOCK", "timeline"]

STOCK, FLOAT64, EXACT = "#c2410c", "#8b8f99", "#2358a8"
COLOURS = {"stock": STOCK, "float64": FLOAT64, "exact": EXACT}
RESIDUAL, HEAD, REST, FEATURE = "#8f3a84", "#c2410c", "#4d7a1c", "#96700a"
MARKS = {"absorbing": "#96700a", "inflating": "#b4541f", "imminent": "#b3261e"}
AFTER = 60  # steps that are shown after the first spike has begun
ROOM = 0.16  # between labels of levels, as a share of the axis


def timeline(traces: Mapping[str, Trace], levels: Sequence[Level]) -> Figure | None:
    """Returns the figure of a stock run beside float64 and the exact loss; None without a spike to lead up to.

    Args:
        traces: "stock", "float64" and "exact", watched by a monitor.
        levels: when each was raised in the stock run.
    """
    stock = traces["stock"]
    rises = relapses(stock.losses, LOW)
    if not rises:
        return None
    first = rises[0].first
    window = BEGIN // 2, min(first + AFTER, len(stock.losses) - 1)
    with blank(WIDTH, 6.4) as figure:
        whole, loss, absorbed, norms, cosine, shift = figure.subplots(6, 1, height_ratios=(1.25, 1, 0.8, 1, 0.75, 0.8))
        _whole(whole, traces, len(relapses(stock.losses)), window)
        for name, trace in traces.items():
            steps = np.arange(window[0], window[1] + 1)
            _line(loss, steps, trace.truth[window[0] : window[1] + 1], COLOURS[name], name)
        loss.set_yscale("log")
        caption(loss, ("loss until the first spike", EDGE))
        for name in ("softmax_absorbed", "softmax_residual"):
            _pair(absorbed, traces, name, window, STOCK if name == "softmax_absorbed" else RESIDUAL)
        absorbed.set(ylim=(-0.05, 1.1), yticks=[0, 0.5, 1])
        caption(
            absorbed, ("share of rows absorbed", STOCK), (r"class sum $\rho$, of the gradient", RESIDUAL),
            ("dashed: with the exact loss", GREY),
        )
        for name, colour in (("head_centred", REST), ("head_mean", HEAD), ("feature_mean", FEATURE)):
            _pair(norms, traces, f"softmax_{name}", window, colour, relative=True)
        norms.set_yscale("log")
        caption(
            norms, (r"mean of the head $|W_G|$", HEAD), (r"the rest of it $|W^*|$", REST),
            (r"mean feature $|\mu_G|$", FEATURE), (f"in units of step {BEGIN}", GREY),
        )
        _pair(cosine, traces, "softmax_cosine", window, STOCK)
        cosine.set(ylim=(-1.1, 0.6), yticks=[-1, 0])
        caption(cosine, (r"$\cos(W_G, \mu_G)$", STOCK))
        _pair(shift, traces, "softmax_sensitivity", window, STOCK)
        shift.axhline(1, color=EDGE, linewidth=0.7, zorder=1)
        shift.set(yscale="log", xlabel="step")
        caption(shift, ("nats by which one step moves a logit", STOCK), ("level at 1", EDGE))
        panels = (loss, absorbed, norms, cosine, shift)
        for axes in panels:
            axes.set_xlim(window)
            axes.minorticks_off()
            axes.tick_params(labelbottom=axes is shift)
            for level in levels:
                axes.axvline(level.step, color=MARKS[level.name], linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
        _named(loss, levels, first, window)
    return figure


def _whole(axes: Axes, traces: Mapping[str, Trace], spikes: int, window: tuple[int, int]) -> None:
    """Draws the losses of the whole run, the part that is drawn below shaded."""
    axes.axvspan(*window, color="#f6e3b4", linewidth=0, zorder=0)
    names = {"stock": f"float32, torch's loss: {spikes} spike{'s' if spikes != 1 else ''}", "float64": "float64",
             "exact": "float32, exact loss"}  # fmt: skip
    for name, trace in traces.items():
        _line(axes, np.arange(len(trace.truth)), trace.truth, COLOURS[name], name)
    axes.set(yscale="log", xlim=(0, len(traces["stock"].truth)))
    axes.minorticks_off()
    caption(axes, *((text, COLOURS[name]) for name, text in names.items()), ("shaded: below", "#96700a"))


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, name: str) -> None:
    """Draws a loss: the exact one as dashes over the one in float64, which it covers."""
    dashes = {"exact": (0, (4, 3))}.get(name, "-")
    below = name == "float64"
    axes.plot(
        steps, np.maximum(values, 1e-300), color=colour, linestyle=dashes, linewidth=2.2 if below else 0.9,
        alpha=0.6 if below else 1, zorder=4 if name == "exact" else 2,
    )  # fmt: skip


def _pair(
    axes: Axes, traces: Mapping[str, Trace], name: str, window: tuple[int, int], colour: str, *, relative: bool = False
) -> None:
    """Draws a signal of the stock run, and thin and dashed that of the run with the exact loss."""
    for which in ("exact", "stock"):
        if name not in traces[which].run:
            continue
        steps, values = traces[which].run.measured(name)
        unit = values[np.searchsorted(steps, BEGIN)] if relative else 1.0
        inside = (steps >= window[0]) & (steps <= window[1])
        look = {"linewidth": 1.0, "zorder": 3} if which == "stock" else {"linewidth": 0.7, "linestyle": (0, (4, 3))}
        axes.plot(steps[inside], values[inside] / unit, color=colour, **look)


def _named(axes: Axes, levels: Sequence[Level], first: int, window: tuple[int, int]) -> None:
    """Writes each level's name and its lead at the top of its line."""
    known = [level for level in levels if math.isfinite(level.step)]
    places = spread([level.step for level in known], ROOM * (window[1] - window[0]))
    for level, place in zip(known, places, strict=True):
        axes.annotate(
            f"{level.name}\n{first - level.step:.0f} steps ahead", (place, 0.98), xycoords=("data", "axes fraction"),
            xytext=(3, 0), textcoords="offset points", fontsize=7, color=MARKS[level.name], va="top", linespacing=1.1,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip
