"""Runs as a low-precision softmax makes them, and as healthy ones look, without training: signals by interpolation.

The slow slide follows the timeline of the reference run (200 digits, float32, Adam; arXiv 2605.06152 and our readings
of it): half of the rows absorbed from step 578, residual above .1 from 625, cosine below -.8 from 790, class mean of
the head twice as large at 840, one nat per step at 1025, spike at 1240; then the same again, shorter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foreshock.run import Run, absent

Floats = NDArray[np.float64]

# step: absorbed, residual, error, wrong, median margin, |W_G|, |W*|, |mu_G|, cosine, sensitivity, mean logit
SLIDE = np.array([
    [0, 0.00, 3e-8, 5e-8, 9e-1, 0.3, 0.21, 3.0, 10, -0.05, 0.100, -0.1],
    [300, 0.00, 1.5e-5, 1.6e-5, 1.8e-3, 8, 0.223, 3.77, 32, -0.25, 0.014, -1.9],
    [500, 0.30, 4.4e-3, 5.1e-3, 3.5e-6, 14, 0.237, 4.28, 47, -0.24, 0.009, -2.7],
    [580, 0.52, 2.9e-2, 4.1e-2, 3.6e-7, 17, 0.242, 4.42, 51, -0.25, 0.011, -3.2],
    [640, 0.73, 1.4e-1, 1.9e-1, 7.6e-8, 18, 0.248, 4.51, 54, -0.29, 0.020, -4.0],
    [700, 0.88, 3.5e-1, 4.8e-1, 2.6e-8, 18, 0.266, 4.58, 57, -0.44, 0.084, -6.7],
    [800, 0.95, 6.5e-1, 8.2e-1, 1.7e-8, 18, 0.393, 4.60, 69, -0.83, 0.20, -23],
    [900, 0.94, 5.4e-1, 7.5e-1, 1.5e-8, 18, 0.614, 4.60, 119, -0.947, 0.36, -69],
    [1000, 0.95, 5.2e-1, 6.9e-1, 1.3e-8, 18, 0.867, 4.63, 250, -0.974, 0.81, -212],
    [1100, 0.93, 4.8e-1, 7.2e-1, 1.4e-8, 18, 1.13, 4.66, 580, -0.984, 1.85, -648],
    [1235, 0.92, 4.0e-1, 5.6e-1, 1.4e-8, 18, 1.42, 4.68, 1730, -0.988, 4.3, -2430],
])  # fmt: skip
CYCLE = np.array([
    [20, 0.56, 4.1e-6, 1e-5, 1e-3, 3, 1.43, 4.68, 1810, -0.988, 3.3, -2560],
    [60, 0.74, 1.7e-3, 8e-4, 3.3e-6, 10, 1.43, 4.68, 1800, -0.988, 0.65, -2550],
    [180, 0.78, 2.3e-2, 2.8e-2, 2.4e-7, 15, 1.43, 4.68, 1800, -0.988, 0.02, -2550],
    [280, 0.86, 1.8e-1, 2.5e-1, 2.7e-8, 17, 1.43, 4.68, 1800, -0.988, 0.02, -2550],
    [360, 0.98, 6.8e-1, 7.8e-1, 9.8e-9, 18, 1.43, 4.68, 1810, -0.988, 0.15, -2560],
    [490, 0.95, 4.4e-1, 5.7e-1, 1.0e-8, 18, 1.44, 4.68, 2000, -0.988, 1.6, -2800],
    [539, 0.95, 5.4e-1, 6.4e-1, 1.0e-8, 18, 1.46, 4.68, 2250, -0.987, 4.0, -3200],
])  # fmt: skip
NAMES = (
    "absorbed", "residual", "error", "wrong", "margin_median", "head_mean", "head_centred", "feature_mean", "cosine",
    "sensitivity", "logit",
)  # fmt: skip
SPIKE, PERIOD = 1240, 540
_LOGARITHMIC = frozenset({"residual", "error", "wrong", "head_mean", "feature_mean", "sensitivity"})


def slingshot(steps: int = 2440, *, every: int = 10, seed: int = 0, noise: float = 0.05) -> Run:
    """Returns a run with spikes at 1240, 1780, 2320, ..., read at every `every`-th step, readings noisy."""
    at = np.arange(steps)
    since = np.where(at < SPIKE, at, (at - SPIKE) % PERIOD)
    first = at < SPIKE
    columns = {name: np.where(first, _along(SLIDE, i, since), _along(CYCLE, i, since)) for i, name in enumerate(NAMES)}
    loss = np.where(columns["absorbed"] > 0.5, columns["wrong"] * (1 - columns["absorbed"]) / 0.5, columns["wrong"])
    loss = np.where(~first & (since < 20), 0.3 * np.exp(-since / 4.0) + 1e-3, loss)
    return sparse({"loss": loss, **{f"softmax_{name}": values for name, values in columns.items()}}, every, seed, noise)


def constant(steps: int = 1500, *, every: int = 10, loss: float = 1e-8, noise: float = 0.05, **signals: float) -> Run:
    """Returns a run whose readings stay as given, with a loss that falls tenfold to `loss`."""
    at = np.arange(steps)
    falling = loss * 10.0 ** (1 - at / (steps - 1))
    return sparse(
        {"loss": falling, **{f"softmax_{name}": np.full(steps, value) for name, value in signals.items()}},
        every, 0, noise,
    )  # fmt: skip


HEALTHY = {
    "exact loss": {"absorbed": 0.0, "residual": 3e-8, "error": 1e-7, "head_mean": 0.25, "head_centred": 4.6,
                   "cosine": -0.26, "sensitivity": 0.02},
    "ordinary training": {"absorbed": 0.0, "residual": 2e-7, "error": 1e-6, "head_mean": 0.25, "head_centred": 2.0,
                          "cosine": 0.1, "sensitivity": 0.3},
    "template text": {"absorbed": 0.03, "residual": 1e-5, "error": 1e-6, "head_mean": 8.0, "head_centred": 60.0,
                      "cosine": -0.9, "sensitivity": 1.5},
    "half of the rows collapsed": {"absorbed": 0.5, "residual": 0.05, "error": 0.04, "head_mean": 4.0,
                                   "head_centred": 9.0, "cosine": -0.95, "sensitivity": 2.0},
    "float64 finds it right": {"absorbed": 0.9, "residual": 0.4, "error": 0.05, "head_mean": 0.25,
                               "head_centred": 4.6, "cosine": -0.9, "sensitivity": 2.0},
    "label smoothing": {"residual": 1e-5, "error": 7e-5, "head_mean": 0.3, "head_centred": 4.3, "cosine": -0.1,
                        "sensitivity": 0.005},
    "regression": {},
}  # fmt: skip
"""Readings of runs in which nothing is to be raised."""


def sparse(columns: dict[str, Floats], every: int, seed: int, noise: float) -> Run:
    """Returns a run whose softmax signals are there at every `every`-th step only, with lognormal noise on them."""
    chooser = np.random.default_rng(seed)
    made = {}
    for name, values in columns.items():
        if name == "loss":
            made[name] = values
            continue
        steady = name in ("softmax_cosine", "softmax_absorbed", "softmax_head_mean", "softmax_head_centred")
        kept = absent(len(values))
        noisy = values * (1 if steady else np.exp(noise * chooser.standard_normal(len(values))))
        kept[::every] = noisy[::every]
        made[name] = kept
    return Run.from_arrays(made)


def _along(table: Floats, place: int, at: NDArray[np.int64]) -> Floats:
    knots, values = table[:, 0], table[:, place + 1]
    if NAMES[place] in _LOGARITHMIC:
        return np.exp(np.interp(at, knots, np.log(values)))
    return np.interp(at, knots, values)
