"""The look of a reproduction's figures: one text width, thin axes, one colour for one thing, labels at the lines."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from foreshock.report import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EDGE", "WIDTH", "beside", "blank", "edge_line", "heading", "save", "spread"]

WIDTH = 6.3  # inches: the text width of a usual two-column page, and of a one-column one on A4
EDGE = "#15171c"
GREY = "#6f7480"


def blank(width: float, height: float) -> AbstractContextManager[Figure]:
    """Gives an empty figure of a size in inches, in this style; see `report.canvas.blank`."""
    return canvas.blank(width, height, canvas.PAPER)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the ending says the format. In the house style: 300 dots per inch, text in PDF stays text."""
    import matplotlib as mpl

    with mpl.rc_context(canvas.PAPER):
        figure.savefig(path)


def heading(axes: Axes, text: str, detail: str = "") -> None:
    """Puts a bold title over the left end of the axes, with its settings in grey behind it."""
    title = axes.set_title(text, fontweight="bold", pad=4)
    if detail:
        axes.annotate(
            detail, (1, 0), xycoords=title, xytext=(4, 0), textcoords="offset points", fontsize=7, color=GREY,
            va="bottom", annotation_clip=False,
        )


def edge_line(axes: Axes, label: str = "") -> None:
    """Draws the edge, a thin line at 1, with its name above its left end."""
    axes.axhline(1, color=EDGE, linewidth=0.7, zorder=1)
    if label:
        axes.annotate(
            label, (0, 1), xycoords=("axes fraction", "data"), xytext=(3, 2), textcoords="offset points", fontsize=7,
            color=EDGE, va="bottom",
        )


def beside(axes: Axes, label: str, point: tuple[float, float], colour: str, *, left: bool = False) -> None:
    """Puts the name of a line below one of its points, to the right of it or to its left."""
    axes.annotate(
        label, point, xytext=(0 if left else 4, -3), textcoords="offset points", fontsize=7, color=colour,
        ha="right" if left else "left", va="top",
    )


def spread(values: list[float], gap: float) -> list[float]:
    """Returns heights of labels near `values`, in the same order, at least `gap` apart.

    >>> spread([1.0, 1.02, 3.0], 0.5)
    [0.76, 1.26, 3.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[int]] = []
    for place in order:
        groups.append([place])
        while len(groups) > 1 and _middle(values, groups[-1]) - _middle(values, groups[-2]) < gap * (
            len(groups[-1]) + len(groups[-2])
        ) / 2:
            last = groups.pop()
            groups[-1] += last
    result = list(values)
    for group in groups:
        for i, place in enumerate(group):
            result[place] = round(_middle(values, group) + (i - (len(group) - 1) / 2) * gap, 12)
    return result


def _middle(values: list[float], group: list[int]) -> float:
    return sum(values[place] for place in group) / len(group)
