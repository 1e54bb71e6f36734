"""Figures of the checks on landscape spikes: frequencies, crossings on purpose, eigendirections, arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, heading, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foreshock.papers.landscape_arms import Arm

__all__ = ["arms", "crossing", "directions", "frequencies"]

BLUE, PALE, RED, GREEN = "#2358a8", "#a9bcd8", "#c2410c", "#12807a"
NOTE = (
    "top: change of the\noutput along the\nsharpest directions\n\nbelow: its real change,\nmean over single\nupdates"
)
SHOWN = 6  # frequencies that have a bar of their own
KINDS = {
    "usual": ("trained", BLUE), "start": ("at the start", "#8b8f99"), "fast": ("target of 8 waves", RED),
    "large": ("large input weights", GREEN),
}
ARMS = {"checkpoint": "#8b8f99", "natural": RED, "quiet": BLUE, "merged": GREEN}


def frequencies(drawn: Mapping[str, Any]) -> Figure:
    """Returns spectra of the output change: along the five sharpest directions, and really, in three windows."""
    along = {f"$J u_{j + 1}$": shares for j, shares in enumerate(drawn["directions"])}
    names = {"calm": "ordinary descent", "ascent": "ascent", "descent": "descent"}
    really = {names[name]: shares for name, shares in drawn["windows"].items()}
    with blank(WIDTH, 2.6) as figure:
        grid = figure.subplots(2, max(len(along), 1), sharex=True, sharey=True)
        for row, spectra in zip(grid, (along, really), strict=True):
            for axes in row[len(spectra) :]:
                axes.set_visible(False)
            for axes, (name, shares) in zip(row, spectra.items(), strict=False):
                heights = [*shares[:SHOWN], shares[SHOWN:].sum()]
                top = int(np.argmax(heights))
                tints = [BLUE if k == top else PALE for k in range(SHOWN + 1)]
                axes.bar(range(SHOWN + 1), heights, width=0.8, color=tints)
                axes.annotate(
                    f"{heights[top]:.0%}", (top, heights[top]), xytext=(0, 1.5), textcoords="offset points",
                    ha="center", fontsize=6.5, color=BLUE,
                )
                heading(axes, name)
                axes.set(ylim=(0, 1.15), yticks=[0, 0.5, 1])
                axes.set_xticks(range(SHOWN + 1), [*map(str, range(SHOWN)), ">"])
        grid[0, 0].set_ylabel("share")
        grid[1, 0].set_ylabel("share")
        for axes in grid[1]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel("waves over the grid (sin x: 1, sin 4x: 4)", fontsize=8)
        note = grid[1, -1]
        note.set_visible(True)
        note.axis("off")
        note.text(
            0, 0.9, NOTE, transform=note.transAxes, fontsize=6.5, color=GREY, va="top",
        )
    return figure


def crossing(drawn: Mapping[str, Any]) -> Figure:
    """Returns how far the loss rises after the edge was crossed on purpose, by the slope of lambda_max in ln L."""
    slope, rise = drawn["slope"], drawn["rise"]
    with blank(WIDTH * 0.6, 2.4) as figure:
        axes = figure.subplots()
        axes.axvline(0, color="#8b8f99", linewidth=0.6)
        axes.axhline(1, color=EDGE, linewidth=0.7, zorder=1)
        colours = np.where(slope < 0, RED, BLUE)
        axes.scatter(slope, rise, s=9, c=colours, alpha=0.75, linewidths=0, zorder=3)
        axes.set(
            xlabel=r"$d\lambda_{\max}/d\ln L$ before", ylabel="highest loss / loss", xscale="symlog", yscale="log",
            ylim=(0.95, max(1.3, 1.25 * rise.max())),
        )
        decades = [-100, -10, -1, 0, 1, 10, 100]
        axes.set_xticks(decades, [f"{value:g}".replace("-", "\u2212") for value in decades])
        axes.set_xlim(-1.6 * max(-slope.min(), 1.0), 1.6 * max(slope.max(), 1.0))
        ticks = [value for value in (1, 1.5, 2, 3, 5) if value < 1.1 * rise.max()]
        axes.set_yticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
        axes.text(0.02, 0.98, "lower is sharper", transform=axes.transAxes, fontsize=7, color=RED, va="top")
        axes.text(
            0.98, 0.98, "lower is flatter", transform=axes.transAxes, fontsize=7, color=BLUE, va="top", ha="right"
        )
        heading(axes, "Edge crossed on purpose", r"$\chi$ raised to 1.02")
    return figure


def directions(drawn: Mapping[str, Any]) -> Figure:
    """Returns the mean frequency of J u_j over j, medians over networks, and the eigenvalues' own frequencies."""
    with blank(WIDTH * 0.6, 2.4) as figure:
        axes = figure.subplots()
        ends = []
        for name, (label, colour) in KINDS.items():
            means = np.array([shares @ np.arange(shares.shape[1]) for _, shares in drawn["spectra"][name]])
            j = np.arange(1, means.shape[1] + 1)
            middle = np.median(means, axis=0)
            if name == "usual":
                axes.fill_between(j, *np.percentile(means, [25, 75], axis=0), color=colour, alpha=0.15, linewidth=0)
            axes.plot(j, middle, "o-", color=colour, markersize=2.5)
            ends.append((float(middle[-1]), label, colour))
        heights = spread([end for end, _, _ in ends], 0.35)
        for height, (_, label, colour) in zip(heights, ends, strict=True):
            axes.annotate(
                label, (1, height), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                fontsize=7, color=colour, va="center", annotation_clip=False,
            )
        axes.set(xlabel="eigendirection j, the sharpest first", ylabel="mean frequency of $J u_j$", ylim=(0, None))
        axes.set_xticks(range(1, len(j) + 1))
        heading(axes, "Sharp is slow", "tanh networks of 10 to 40 neurons")
    return figure


def arms(compared: Mapping[str, Sequence[Arm]]) -> Figure:
    """Returns, for each network, mean |cos| of input weights and test error of the arms at equal loss."""
    from matplotlib.ticker import MaxNLocator

    with blank(WIDTH, 1.5) as figure:
        grid = figure.subplots(1, 2 * len(compared), squeeze=False)[0]
        for place, (title, found) in enumerate(compared.items()):
            rows = np.arange(len(found))[::-1]
            for axes, what, values in (
                (grid[2 * place], "mean |cos|", [arm.found.mean for arm in found]),
                (grid[2 * place + 1], "test error", [arm.test for arm in found]),
            ):
                colours = [ARMS[arm.name] for arm in found]
                axes.hlines(rows, 0, values, color=colours, linewidth=1.2)
                axes.scatter(values, rows, s=14, c=colours, zorder=3, linewidths=0)
                for row, value, colour in zip(rows, values, colours, strict=True):
                    axes.annotate(
                        f"{value:.3g}", (value, row), xytext=(4, 0), textcoords="offset points", va="center",
                        fontsize=6.5, color=colour,
                    )
                axes.set(xlim=(0, 1.35 * max(values)), ylim=(-0.6, len(found) - 0.4), xlabel=what)
                axes.set_yticks(rows, [arm.name for arm in found] if axes is grid[2 * place] else [""] * len(found))
                axes.tick_params(axis="y", length=0)
                axes.xaxis.set_major_locator(MaxNLocator(3))
            heading(grid[2 * place], title, "at equal loss")
    return figure
