"""Figures for papers, made with matplotlib: the same pictures as the page's, as `matplotlib.figure.Figure` objects."""

from __future__ import annotations
