"""New rows of a head by least squares, so that new classes do not begin with a spike of the loss.

`HeadStatistics` sums up what the head reads, `grow_rows` adds rows, `init_new_rows` writes them and reports. The closed
forms alone are `least_squares` and `class_means`; `fresh_state` and `grown_state` see to the optimizer.
"""

from __future__ import annotations

from foreshock.heads.grow import grow_rows
from foreshock.heads.report import NewRows
from foreshock.heads.rows import init_new_rows
from foreshock.heads.solve import Solution, class_means, least_squares
from foreshock.heads.state import fresh_state, grown_state
from foreshock.heads.statistics import HeadStatistics

__all__ = [
    "HeadStatistics",
    "NewRows",
    "Solution",
    "class_means",
    "fresh_state",
    "grow_rows",
    "grown_state",
    "init_new_rows",
    "least_squares",
]
