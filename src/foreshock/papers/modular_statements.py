"""What is claimed of grokking and spikes: intervals for the numbers of the trainings on modular arithmetic."""

from __future__ import annotations

import math

from foreshock.papers.modular_arms import ARMS
from foreshock.papers.modular_training import RECTIFIED, SETTINGS, SQUARES
from foreshock.papers.studies import Statement

__all__ = ["GROKKING"]

SLINGSHOT = "Thilak et al. 2022, arXiv 2206.04817: with adaptive optimizers and without decay, cycles of spikes"
ROUNDING = "Liu et al. 2026, arXiv 2605.06152, section 4"
COLLAPSE = "Prieto et al. 2025, arXiv 2501.04697: rounding keeps networks from generalising"
HERE = "measured on seeds 0 to 2, and widened"
INF = math.inf


def _spikes(setting: str, name: str, least: float, most: float) -> Statement:
    title = f"{SETTINGS[setting].title}, modular addition, {ARMS[name].title}: spikes"
    return Statement(f"{setting}, {name}: spikes", title, least, most, SLINGSHOT if least else ROUNDING)


def _kept(setting: str, name: str, low: float, high: float, source: str) -> Statement:
    title = f"{SETTINGS[setting].title}, modular addition, {ARMS[name].title}: test accuracy at the end"
    return Statement(f"{setting}, {name}: last accuracy", title, low, high, source)


def _as_float64(setting: str) -> tuple[Statement, ...]:
    title = SETTINGS[setting].title
    return (
        Statement(f"{setting}: exact off float64 early", f"{title}, exact loss: off that of float64 within 1,000 steps",
                  0, 0.1, HERE),
        Statement(f"{setting}: exact off float64 at the end", "... at the end", 0, 0.1, HERE),
        Statement(f"{setting}, exact: levels", "... warnings of absorption", 0, 0, HERE),
        Statement(f"{setting}, float64: levels", f"{title}, float64: warnings of absorption", 0, 0, HERE),
    )  # fmt: skip


_SQUARES, _RECTIFIED = SQUARES.name, RECTIFIED.name
GROKKING = (
    _spikes(_SQUARES, "stock", 1, 20),
    *(_spikes(_SQUARES, name, 0, 0) for name in ("float64", "exact", "stablemax")),
    Statement(f"{_SQUARES}, stock: best accuracy", "Squares grok with torch's loss, too: best test accuracy",
              0.75, 1, HERE),
    Statement(f"{_SQUARES}, stock: accuracy before the first spike", "... lost again before any spike: test accuracy",
              0, 0.5, COLLAPSE),
    Statement(f"{_SQUARES}, stock: best accuracy after the first spike", "... which no spike brings back: best later",
              0, 0.5, HERE),
    _kept(_SQUARES, "stock", 0, 0.4, HERE),
    *(_kept(_SQUARES, name, 0.75, 1, HERE) for name in ("float64", "exact")),
    _kept(_SQUARES, "stablemax", 0.75, 1, COLLAPSE),
    Statement(f"{_SQUARES}, stock: lead of absorbing", "Absorption is named before the first spike by steps", 300, INF,
              HERE),
    *_as_float64(_SQUARES),
    _spikes(_RECTIFIED, "stock", 2, 20),
    *(_spikes(_RECTIFIED, name, 0, 0) for name in ("float64", "exact")),
    Statement(f"{_RECTIFIED}, stock: best accuracy", "Spikes alone teach nothing: best test accuracy with torch's loss",
              0, 0.2, HERE),
    Statement(f"{_RECTIFIED}, exact: best accuracy", "... nor does their absence: with the exact loss", 0, 0.2, HERE),
    _kept(_RECTIFIED, "perpendicular", 0.8, 1, COLLAPSE),
    Statement(f"{_RECTIFIED}, stock: lead of absorbing", "Absorption is named before the first spike by steps", 50,
              INF, HERE),
    *_as_float64(_RECTIFIED),
)  # fmt: skip
