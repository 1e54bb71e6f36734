"""An empty matplotlib figure, without pyplot and without global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foreshock.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER: Any = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlelocation": "left",
    "axes.edgecolor": "#8b8f99", "xtick.color": "#3b414d", "ytick.color": "#3b414d", "lines.linewidth": 1.0,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "pdf.fonttype": 42, "svg.fonttype": "none", "figure.dpi": 150, "savefig.dpi": 300,
}  # fmt: skip
"""The look of figures for print: thin axes without a frame, small type, text that stays text."""


@contextmanager
def blank(width: float, height: float, style: Any) -> Iterator[Figure]:
    """Gives an empty figure of a size in inches; what is drawn in the block is drawn in the style, matplotlib settings.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as MplFigure
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'foreshock[figures]'") from error
    with mpl.rc_context(style):
        figure = MplFigure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
