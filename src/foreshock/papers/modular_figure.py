"""The grokking figure: loss, test accuracy, absorbed share and |W_G| of two networks in three precisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_timeline_figure import EXACT, FLOAT64, STOCK
from foreshock.papers.drawing import WIDTH, blank, heading
from foreshock.papers.modular_training import SETTINGS, Grokking
from foreshock.papers.stage_figure import caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure"]

COLOURS = {"float64": FLOAT64, "stock": STOCK, "exact": EXACT, "stablemax": "#12807a", "perpendicular": "#8f3a84"}
NAMES = {
    "stock": "torch's loss", "float64": "float64", "exact": "exact loss", "stablemax": "StableMax",
    "perpendicular": "perpendicular",
}  # fmt: skip
FLOOR = 1e-12  # of the losses drawn


def figure(traces: Mapping[str, Mapping[str, Grokking]]) -> Figure:
    """Returns the figure: a column for each network, stripes where its spikes with torch's loss begin.

    Args:
        traces: network -> arm -> training.
    """
    with blank(WIDTH, 5.0) as drawn:
        heights = (1.2, 1.2, 0.8, 0.8)
        grid = drawn.subplots(4, len(traces), sharex="col", sharey="row", squeeze=False, height_ratios=heights)
        for column, (place, arms) in zip(grid.T, traces.items(), strict=True):
            _column(column, place, arms)
        loss, accuracy, absorbed, mean = grid[:, 0]
        loss.set(yscale="log", ylim=(FLOOR, 100), ylabel="loss")
        loss.minorticks_off()
        accuracy.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1], ylabel="test accuracy")
        absorbed.set(ylim=(-0.05, 1.1), yticks=[0, 0.5, 1], ylabel="absorbed")
        mean.set(yscale="log", ylabel=r"$|W_G|$")
        mean.minorticks_off()
    return drawn


def _column(axes: np.ndarray, place: str, arms: Mapping[str, Grokking]) -> None:
    setting = SETTINGS[place]
    heading(axes[0], setting.title, f"{setting.operation} mod {setting.prime}, {setting.share:.0%} taught")
    spikes = relapses(arms["stock"].losses)
    for each in spikes:
        for panel in axes:
            panel.axvline(each.first, color="#f0d9cf", linewidth=2.5, zorder=0)
    for name, colour in COLOURS.items():
        if name not in arms:
            continue
        trace, look = arms[name], _look(name)
        axes[1].plot(trace.steps, trace.accuracy, color=colour, **look)
        if name in ("stablemax", "perpendicular"):
            continue
        axes[0].plot(np.maximum(trace.truth, FLOOR), color=colour, **look)
        for panel, signal in ((axes[2], "softmax_absorbed"), (axes[3], "softmax_head_mean")):
            if signal in trace.run:
                panel.plot(*trace.run.measured(signal), color=colour, **look)
    axes[3].set(xlabel="step", xlim=(0, len(arms["stock"].losses)))
    caption(axes[1], *((NAMES[name], COLOURS[name]) for name in NAMES if name in arms))
    count = f"{len(spikes)} spike{'' if len(spikes) == 1 else 's'} with torch's loss"
    caption(axes[2], (count, STOCK))


def _look(name: str) -> dict[str, object]:
    """Returns how a line is drawn: float64 broad and pale, the exact loss in dashes over it, which it covers."""
    if name == "float64":
        return {"linewidth": 2.2, "alpha": 0.6, "zorder": 2}
    if name == "exact":
        return {"linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 4}
    return {"linewidth": 0.9, "zorder": 3}
