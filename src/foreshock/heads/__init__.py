"""New rows of a head by least squares, so that new classes do not begin with a spike of the loss."""

from __future__ import annotations

from foreshock.heads.report import NewRows
from foreshock.heads.rows import init_new_rows
from foreshock.heads.solve import Solution, class_means, least_squares
from foreshock.heads.statistics import HeadStatistics

__all__ = ["HeadStatistics", "NewRows", "Solution", "class_means", "init_new_rows", "least_squares"]
