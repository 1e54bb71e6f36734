"""Figures of a landscape: a surface with the training on it, the map of a layer's cosines, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.errors import UsageError
from foreshock.landscape.cosines import Condensation
from foreshock.landscape.plane import Projection
from foreshock.landscape.surfaces import Surface
from foreshock.report import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["condensation", "draw_surface", "spectrum", "surface"]

WIDTH = 6.3  # inches: the text width of a usual page
INK, GREY, PATH, LEVEL = "#15171c", "#6f7480", "#15171c", "#c2410c"
COLOURS = ("#2358a8", "#c2410c", "#12807a", "#8f3a84", "#96700a", "#4d7a1c")
_LOSS = ("#f7f8fb", "#dfe7f2", "#b9cce4", "#8aaad0", "#5a83b8", "#35609c", "#1f3f72")
_MAP = ("#fbfbf9", "#f0e3cf", "#e2b98c", "#cf7f4f", "#a4432f", "#5c1a1f")
_BANDS = 14  # of loss


def surface(
    loss: Surface, sharp: Surface | None = None, *, level: float | None = None, path: Projection | None = None,
    marks: Mapping[str, int] | None = None,
) -> Figure:
    """Returns contours of the loss on a plane, the level line of the sharpness, and the training on top.

    The axes have scales of their own: a valley is often narrow beside the drift along it.

    Args:
        loss: to be drawn; bands are even in ln L where the loss is positive.
        sharp: lambda_max or chi over the same plane; its level line is drawn.
        level: of that line: 2/lr, or 1 for chi (the default there).
        path: `plane.project(trajectory)`.
        marks: names of steps of the path: {"minimum": 5134, "peak": 5183}.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: two surfaces on different planes, or a level line without a level.
    """
    with canvas.blank(WIDTH * 0.72, 3.3, canvas.PAPER) as figure:
        axes = figure.subplots()
        bands = draw_surface(axes, loss, sharp, level=level, path=path, marks=marks)
        bar = figure.colorbar(bands, ax=axes, pad=0.02, fraction=0.05, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.set_title("loss", fontsize=7, color=GREY, loc="left", pad=4)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        bar.ax.minorticks_off()
    return figure


def draw_surface(
    axes: Axes, loss: Surface, sharp: Surface | None = None, *, level: float | None = None,
    path: Projection | None = None, marks: Mapping[str, int] | None = None,
) -> Any:
    """Draws what `surface` does on axes of one's own; returns the bands, for a colour bar."""
    if sharp is not None and sharp.plane is not loss.plane:
        raise UsageError("surface(loss, sharp): the two surfaces are on different planes")
    for each in (loss, sharp):
        if each is not None and min(each.values.shape) < 2:
            raise UsageError(f"surface: contours need a grid of 2 x 2 points at least, got {each.values.shape}")
    if sharp is not None and level is None:
        if sharp.quantity != "chi":
            raise UsageError("surface(level=...): the sharpness at the edge is needed, 2/lr for gradient descent")
        level = 1.0
    bands = _bands(axes, loss)
    first, second = loss.plane.names
    axes.set(xlabel=f"along {_written(first)}", ylabel=f"along {_written(second)}")
    if sharp is not None and level is not None:
        _level(axes, sharp, level)
    if path is not None:
        _path(axes, path, marks or {})
    axes.set(xlim=(loss.alphas.min(), loss.alphas.max()), ylim=(loss.betas.min(), loss.betas.max()))
    return bands


def condensation(layers: Mapping[str, Condensation]) -> Figure:
    """Returns the maps of cosines, one panel for each layer or time, neurons sorted so that groups lie side by side.

    Args:
        layers: name -> result with its cosines.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: no layer, or one whose cosines were not kept.
    """
    from matplotlib.colors import LinearSegmentedColormap

    if not layers:
        raise UsageError("condensation(layers): at least one is needed")
    maps = {name: each.map for name, each in layers.items()}
    columns = min(len(maps), 4)
    rows = -(-len(maps) // columns)
    side = min((WIDTH - 0.6) / columns, 1.9)
    colours = LinearSegmentedColormap.from_list("cosines", _MAP)
    with canvas.blank(side * columns + 0.6, (side + 0.62) * rows + 0.25, canvas.PAPER) as figure:
        figure.set_layout_engine("compressed")  # of panels that are square
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(maps) :]:
            axes.set_visible(False)
        for axes, (name, table) in zip(grid, maps.items(), strict=False):
            found = layers[name]
            image = axes.imshow(table, cmap=colours, vmin=0, vmax=1, interpolation="nearest", rasterized=True)
            axes.set_title(name, fontweight="bold", pad=23)
            axes.text(
                0, 1.02, f"mean {found.mean:.2f}, {found.share_aligned:.0%} aligned\n{found.effective:.1f} directions",
                transform=axes.transAxes, fontsize=6.5, color=GREY, va="bottom", linespacing=1.25,
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        bar = figure.colorbar(image, ax=list(grid[: len(maps)]), fraction=0.03, pad=0.015, aspect=20, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.set_title("|cos|", fontsize=7, color=GREY, loc="left", pad=4)
        figure.supxlabel("neurons, sorted by the leading eigenvector", fontsize=7, color=GREY)
    return figure


def spectrum(
    shares: Mapping[str, Sequence[float] | np.ndarray], *, first: int = 8, xlabel: str = "frequency"
) -> Figure:
    """Returns bars of the share of each frequency, one panel for each spectrum, over common axes.

    Args:
        shares: name -> shares of frequencies 0, 1, 2, ..., as of `spectrum_1d`.
        first: how many frequencies are drawn; those from there on are one bar.
        xlabel: what the frequencies are.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: no spectrum.
    """
    if not shares:
        raise UsageError("spectrum(shares): at least one is needed")
    columns = min(len(shares), 4)
    rows = -(-len(shares) // columns)
    with canvas.blank(max(WIDTH * columns / 4, 2.2), 1.35 * rows + 0.35, canvas.PAPER) as figure:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(shares) :]:
            axes.set_visible(False)
        for place, (axes, (name, values)) in enumerate(zip(grid, shares.items(), strict=False)):
            heights = np.asarray(values, dtype=float)
            rest = [heights[first:].sum()] if len(heights) > first else []
            drawn = [*heights[:first], *rest]
            labels = [*map(str, range(min(first, len(heights)))), *(f"{first}+" for _ in rest)]
            top = int(np.nanargmax(drawn)) if np.isfinite(drawn).any() else -1
            tints = [COLOURS[0] if i == top else "#a9bcd8" for i in range(len(drawn))]
            axes.bar(range(len(drawn)), drawn, width=0.78, color=tints)
            if top >= 0:
                axes.annotate(
                    f"{drawn[top]:.0%}", (top, drawn[top]), xytext=(0, 1.5), textcoords="offset points", ha="center",
                    fontsize=7, color=COLOURS[0],
                )  # fmt: skip
            axes.set_title(name, fontweight="bold", pad=4)
            axes.set(ylim=(0, 1.12), yticks=[0, 0.5, 1])
            axes.set_xticks(range(len(drawn)), labels)
            if place % columns == 0:
                axes.set_ylabel("share")
        figure.supxlabel(xlabel, fontsize=8)
    return figure


def _bands(axes: Axes, loss: Surface) -> Any:
    """Draws filled contours, even in ln L where that is possible, with thin lines between them."""
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap

    values = np.ma.masked_invalid(loss.values.T)
    low, high = float(values.min()), float(values.max())
    if not high > low:
        raise UsageError("surface(loss): the loss is the same at every point, so there are no contours")
    levels = np.geomspace(low, high, _BANDS + 1) if low > 0 and high / low > 2 else np.linspace(low, high, _BANDS + 1)
    levels[0], levels[-1] = low - 1e-9 * (high - low), high + 1e-9 * (high - low)
    colours = LinearSegmentedColormap.from_list("loss", _LOSS)
    norm = BoundaryNorm(levels, colours.N)
    bands = axes.contourf(loss.alphas, loss.betas, values, levels=levels, cmap=colours, norm=norm)
    axes.contour(loss.alphas, loss.betas, values, levels=levels, colors="white", linewidths=0.35, alpha=0.8)
    return bands


def _level(axes: Axes, sharp: Surface, level: float) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    values = np.ma.masked_invalid(sharp.values.T)
    name = r"\chi" if sharp.quantity == "chi" else r"\lambda_{\max}"
    if not values.min() < level < values.max():
        where = "above" if values.min() >= level else "below"
        axes.text(
            0.99, 0.985, rf"${name}$ {where} {level:g} everywhere", transform=axes.transAxes, ha="right", va="top",
            fontsize=7, color=LEVEL,
        )  # fmt: skip
        return
    lines = axes.contour(sharp.alphas, sharp.betas, values, levels=[level], colors=LEVEL, linewidths=1.4)
    labels = axes.clabel(lines, fmt={level: rf"${name} = {level:g}$"}, fontsize=7, inline=True, inline_spacing=4)
    others = [each for each in MaxNLocator(6).tick_values(values.min(), values.max()) if each != level]
    thin = axes.contour(
        sharp.alphas, sharp.betas, values, levels=others, colors=LEVEL, linewidths=0.6, linestyles="dashed"
    )
    labels += axes.clabel(thin, fmt="%g", fontsize=6, inline=True, inline_spacing=2)
    for label in labels:
        label.set_path_effects([withStroke(linewidth=1.6, foreground="white", alpha=0.85)])


def _path(axes: Axes, path: Projection, marks: Mapping[str, int]) -> None:
    axes.plot(path.alphas, path.betas, color=PATH, linewidth=0.3, alpha=0.35, zorder=3)
    axes.plot(path.alphas, path.betas, ".", color=PATH, markersize=1.6, markeredgewidth=0, zorder=3)
    axes.plot(path.alphas[0], path.betas[0], "o", color="white", markeredgecolor=PATH, markersize=3.5, zorder=4)
    axes.plot(path.alphas[-1], path.betas[-1], "o", color=PATH, markersize=3.5, zorder=4)
    for name, step in marks.items():
        place = int(np.abs(path.steps - step).argmin())
        point = (path.alphas[place], path.betas[place])
        axes.plot(*point, "o", color=LEVEL, markeredgecolor="white", markeredgewidth=0.6, markersize=4.5, zorder=5)
        axes.annotate(
            name, point, xytext=(5, 4), textcoords="offset points", fontsize=7, color=INK, zorder=6,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip


def _written(name: str) -> str:
    return f"$u_{name[1:]}$" if name[:1] == "u" and name[1:].isdigit() else name
