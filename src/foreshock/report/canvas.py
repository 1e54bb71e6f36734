"""An empty matplotlib figure, without pyplot and without global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foreshock.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
