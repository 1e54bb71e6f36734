"""Figures of the landscape-spike reproduction: spikes with their phases, surface and floor; and which there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foreshock.landscape import figures as landscape_figures
from foreshock.papers.drawing import EDGE, WIDTH, blank, heading
from foreshock.papers.landscape_anatomy import Spike, filled
from foreshock.papers.landscape_check_figures import arms, crossing, directions, frequencies
from foreshock.papers.studies import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures", "spike", "valley"]

LOSS, SHARP, ALONG = "#2358a8", "#c2410c", "#12807a"
# phase -> its shade: warmer as it gets worse, blue on the way back
PHASES = {"silent": "#f6edd6", "ascent": "#f3d3c4", "flattening": "#e5b5a8", "descent": "#d9e6f3"}


class Trained(Protocol):
    """What is drawn of a training."""

    losses: Any
    sharpness: Any
    chi_gradient: Any

    @property
    def edge(self) -> float: ...

    @property
    def spikes(self) -> list[Spike]: ...


def figures(found: Mapping[int, Mapping[str, Found]]) -> dict[str, Figure]:
    """Returns the figures that the studies at hand allow, of the first seed that has them, by file name."""
    drawn: dict[str, Any] = {}
    for studies in found.values():
        for name, study in studies.items():
            if study.drawn:
                drawn.setdefault(name, study.drawn)
    made: dict[str, Figure] = {}
    main, small = drawn.get("tl-gd", {}), drawn.get("cnn", {})
    if main:
        made["spike"] = spike(main["trace"], "TL-GD", f"20 tanh neurons, lr {main['trace'].lr:g}")
    if "surface" in main:
        made["valley"] = valley(main, main["trace"].edge, main["trace"].spikes[0])
        made["frequencies"] = frequencies(main)
    if small:
        made["cnn"] = spike(small["trace"], "CNN", f"1,000 images, lr {small['trace'].lr:g}", small.get("spike"))
    if "surface" in small:
        made["cnn-valley"] = cnn_valley(small)
    maps = {
        f"{title}, {when}": each
        for title, source in (("TL-GD", main), ("CNN", small)) for when, each in source.get("maps", {}).items()
    }
    if maps:
        made["condensation"] = landscape_figures.condensation(maps)
    if "crossing" in drawn and len(drawn["crossing"]["slope"]):
        made["crossing"] = crossing(drawn["crossing"])
    if "directions" in drawn:
        made["directions"] = directions(drawn["directions"])
    compared = {
        title: drawn[name]["arms"]
        for title, name in (("TL-GD", "condensation"), ("CNN", "cnn-condensation")) if "arms" in drawn.get(name, {})
    }
    if compared:
        made["arms"] = arms(compared)
    return made


def spike(trace: Trained, title: str, settings: str, chosen: Spike | None = None) -> Figure:
    """Returns loss, lambda_max and chi_grad over updates: all spikes on the left, one with its phases on the right.

    Args:
        trace: of the training.
        title, settings: of the figure.
        chosen: the spike on the right; by default the first.
    """
    from matplotlib.ticker import MaxNLocator

    spikes = trace.spikes
    one = chosen or (spikes[0] if spikes else None)
    last = len(trace.losses) - 1
    with blank(WIDTH, 3.9) as figure:
        grid = figure.subplots(
            3, 2 if one else 1, sharex="col", sharey="row", squeeze=False,
            gridspec_kw={"width_ratios": [1.25, 1] if one else [1], "height_ratios": [1.15, 1, 1]},
        )
        whole = (_start(trace, spikes), last)
        spans = [whole]
        if one:
            end = one.back if one.back is not None else last
            length = end - one.minimum
            spans.append((max(one.minimum - max(length // 2, 10), 0), min(end + length // 6, last)))
        for column, (first, until) in enumerate(spans):
            steps = np.arange(first, until + 1)
            for axes, values, colour in zip(
                grid[:, column], (trace.losses, trace.sharpness, trace.chi_gradient), (LOSS, SHARP, ALONG), strict=True
            ):
                axes.plot(steps, filled(values)[steps], color=colour, linewidth=0.9 if column else 0.7, zorder=3)
                axes.set_xlim(first, until)
            for each in spikes:
                _shade(grid[:, column], each, trace.edge, last, within=column == 0)
        heading(grid[0, 0], title, settings)
        _levels(grid, trace, whole)
        if one:
            heading(grid[0, 1], "one spike", f"x{one.height:.1f}")
            _names(grid[0, 1], one, spans[1])
        for axes in grid[-1]:
            axes.set_xlabel("updates")
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def _start(trace: Trained, spikes: list[Spike]) -> int:
    """Returns the update at which the left panels begin: in time to see lambda_max rise to the edge."""
    return max(int(spikes[0].up - 0.12 * (len(trace.losses) - spikes[0].up)), 0) if spikes else 0


def _levels(grid: Any, trace: Trained, span: tuple[int, int]) -> None:
    loss, sharp, along = grid[:, 0]
    shown = slice(span[0], span[1] + 1)
    loss.set(yscale="log", ylabel="loss")
    _plain(loss)
    sharp.set_ylabel(r"$\lambda_{\max}(H)$")
    values = filled(trace.sharpness)[shown]
    low, high = np.nanpercentile(values, 0.2), np.nanmax(values)
    sharp.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    along.set(ylabel=r"$\chi_{\mathrm{grad}}$", ylim=(0, max(1.5, 1.1 * np.nanmax(filled(trace.chi_gradient)[shown]))))
    for row, level, label in ((grid[1], trace.edge, f"2/lr = {trace.edge:g}"), (grid[2], 1.0, "loss rises")):
        for axes in row:
            _edge(axes, level, label if axes is row[-1] else "")


def _plain(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _edge(axes: Axes, level: float, label: str) -> None:
    """Draws a level, named at its right end on the side on which the curve is not."""
    curve = np.asarray(axes.lines[0].get_ydata(), dtype=float)
    above = float(np.nanmean(curve[-max(len(curve) // 6, 1) :])) > level
    axes.axhline(level, color=EDGE, linewidth=0.7, zorder=2)
    if label:
        axes.annotate(
            label, (1, level), xycoords=("axes fraction", "data"), xytext=(-3, -2 if above else 2),
            textcoords="offset points", fontsize=6.5, color=EDGE, va="top" if above else "bottom", ha="right",
        )


def phases(one: Spike, last: int) -> dict[str, tuple[int, int]]:
    """Returns the phases of a spike as (first, last) updates; those that did not come are left out."""
    down = one.down if one.down is not None and one.down < one.peak else one.peak
    end = one.back if one.back is not None else last
    found = {
        "silent": (one.up, one.minimum), "ascent": (one.minimum, down), "flattening": (down, one.peak),
        "descent": (one.peak, end),
    }
    return {name: pair for name, pair in found.items() if pair[1] > pair[0]}


def _shade(column: Any, one: Spike, edge: float, last: int, *, within: bool) -> None:
    for name, (first, until) in phases(one, last).items():
        for axes in column:
            axes.axvspan(first, until, color=PHASES[name], linewidth=0, zorder=0)


def _names(axes: Axes, one: Spike, span: tuple[int, int]) -> None:
    """Writes the phases over their stretches, where there is room."""
    for name, (first, until) in phases(one, span[1]).items():
        left, right = max(first, span[0]), min(until, span[1])
        if right - left > 0.14 * (span[1] - span[0]):
            axes.annotate(
                name, ((left + right) / 2, 0.985), xycoords=("data", "axes fraction"), ha="center", va="top",
                fontsize=6.5, color="#5d5346",
            )


def valley(drawn: Mapping[str, Any], edge: float, one: Spike) -> Figure:
    """Returns the loss on the plane of drift and u1 with the training on it, and the valley's floor beside it."""
    with blank(WIDTH, 2.75) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.5, 1]})
        marks = {"lowest": one.minimum, "peak": one.peak}
        landscape_figures.draw_surface(
            left, drawn["surface"], drawn["sharp"], level=edge, path=drawn["path"], marks=marks
        )
        heading(left, "Loss", "around the first spike")
        _floor(right, drawn["floor"], edge)
    return figure


def _floor(axes: Axes, floor: Any, edge: float) -> None:
    heading(axes, "Valley floor", "lower is sharper")
    axes.plot(floor.offsets, floor.losses, "o-", color=LOSS, markersize=3)
    axes.set(xlabel="along the drift", ylabel="loss on the floor")
    axes.yaxis.label.set_color(LOSS)
    other = axes.twinx()
    other.spines["right"].set_visible(True)
    other.plot(floor.offsets, floor.curvatures, "s-", color=SHARP, markersize=3)
    other.set_ylabel("curvature along $u_1$", color=SHARP)
    other.axhline(edge, color=EDGE, linewidth=0.7, zorder=1)
    other.annotate(
        f"2/lr = {edge:g}", (1, edge), xycoords=("axes fraction", "data"), xytext=(-3, 2),
        textcoords="offset points", ha="right", fontsize=6.5, color=EDGE,
    )


def cnn_valley(drawn: Mapping[str, Any]) -> Figure:
    """Returns the loss of the CNN around its spike, with the training on it, and shares of low frequencies.

    Other than TL-GD's, its ascent leaves the plane: the sharpest direction turns on the way.
    """
    one = drawn["spike"]
    with blank(WIDTH, 2.75) as figure:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.35, 1]})
        landscape_figures.draw_surface(
            left, drawn["surface"], drawn["sharp"], level=drawn["trace"].edge, path=drawn["path"],
            marks={"lowest": one.minimum, "peak": one.peak},
        )
        heading(left, "Loss", "CNN, around the spike")
        path = drawn["path"]
        away = float(path.off[path.steps == one.peak][0])
        left.text(
            0.99, 0.015, f"at the peak the training is {away:.2g} off this plane", transform=left.transAxes, ha="right",
            va="bottom", fontsize=6.5, color="#3b414d",
        )
        names = {
            "low-u1": "$J u_1$", "low-u2": "$J u_2$", "low-u8": "$J u_8$", "low-chance": "random $J u$",
            "low-calm": "ordinary", "low-ascent": "ascent", "low-descent": "descent",
        }
        shown = {label: drawn["shares"][name] for name, label in names.items() if name in drawn["shares"]}
        colours = [SHARP if "scent" in label else LOSS if "u_" in label else "#a9b0bd" for label in shown]
        places = np.arange(len(shown))[::-1]
        right.barh(places, list(shown.values()), color=colours, height=0.7)
        for place, value in zip(places, shown.values(), strict=True):
            right.annotate(
                f"{value:.2f}", (value, place), xytext=(2, 0), textcoords="offset points", va="center", fontsize=6.5
            )
        right.set_yticks(places, list(shown))
        right.set(xlim=(0, 1.12), xlabel="share of low frequencies")
        right.tick_params(axis="y", length=0)
        heading(right, "Output change", "along $u_j$, and really")
    return figure


