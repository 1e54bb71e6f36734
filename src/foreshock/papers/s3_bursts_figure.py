"""The figure of the bursts: how high the loss goes after one bad step, over how far the optimizer was to go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from foreshock.papers.drawing import GREY, WIDTH, blank, heading
from foreshock.papers.s3_bursts import KINDS, RATES, Struck
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure"]

COLOURS = {"S3": "#c43b3b", "AdamW": "#2a63b0"}
MARKERS = "osD^vPX<>"  # in turn for those of one colour
LEAST = 1e-3  # nats: a rise that is none


def figure(found: Mapping[int, Mapping[str, Found]]) -> Figure | None:
    """Returns rises of the loss over lr D, a panel for each kind of burst and of rates; None where nothing was struck.

    Args:
        found: seed -> study -> what it found.
    """
    everything = [study for studies in found.values() for study in studies.values()]
    struck = [each for study in everything for each in study.drawn.get("bursts", ())]
    if not struck:
        return None
    with blank(WIDTH, 5.0) as drawn:
        grid = drawn.subplots(len(KINDS), len(RATES), sharex=True, sharey="row", squeeze=False)
        for row, kind in zip(grid, KINDS, strict=True):
            for axes, rate in zip(row, RATES, strict=True):
                _panel(axes, [each for each in struck if (each.rate, each.kind) == (rate, kind)])
                heading(axes, kind.capitalize(), f"all with {rate}")
        drawn.supxlabel("lr D, how far the optimizer is to go after a burst", fontsize=8)
        drawn.supylabel("rise of the held-out loss, nats", fontsize=8)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=7.5,
                     handlelength=1.2, columnspacing=1.6)  # fmt: skip
    return drawn


def _panel(axes: Axes, struck: list[Struck]) -> None:
    """Draws one point for each optimizer, the geometric mean over seeds, with a line over the seeds."""
    from matplotlib.ticker import NullFormatter

    seen: list[str] = []
    for arm in sorted({each.arm for each in struck}):
        own = [each for each in struck if each.arm == arm]
        x = float(np.exp(np.mean([math.log(each.lr * each.displacement) for each in own])))
        rises = np.clip([each.rise for each in own], LEAST, 1e3)
        y = float(np.exp(np.log(rises).mean()))
        colour = next((COLOURS[kind] for kind in COLOURS if arm.startswith(kind)), GREY)
        axes.plot([x, x], [rises.min(), rises.max()], color=colour, linewidth=0.8, alpha=0.6)
        marker = MARKERS[seen.count(colour) % len(MARKERS)]
        axes.plot([x], [y], marker, color=colour, markersize=4.5, label=arm)
        seen.append(colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
