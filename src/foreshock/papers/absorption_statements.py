"""What is claimed of softmax absorption: intervals for the numbers of the trainings, judged seed by seed."""

from __future__ import annotations

import math

from foreshock.numerics.thresholds import absorption_bounds
from foreshock.papers.absorption_arms import ARMS, HALF
from foreshock.papers.absorption_thresholds import CLASSES, FORMATS, threshold_name
from foreshock.papers.studies import Statement

__all__ = ["SOURCE", "STATEMENTS"]

SOURCE = (
    "Liu, Cao, Li, Zhou 2026, Grokking or Glitching? How Low-Precision Drives Slingshot Loss Spikes, arXiv 2605.06152"
)
HERE = "measured on the reference configuration, seeds 0 to 2, and widened"
INF = math.inf


def _of(number: str, text: str, low: float, high: float, source: str = SOURCE) -> Statement:
    return Statement(number, text, low, high, source)


def _never(name: str) -> tuple[Statement, Statement]:
    title = ARMS[name].title
    return (
        _of(f"{name}: spikes by {HALF}", f"{title}: spikes by step {HALF:,}", 0, 0),
        _of(f"{name}: spikes", "... and in 5,000", 0, 0),
    )


def _often(name: str, least: int, early: int) -> tuple[Statement, Statement]:
    title = ARMS[name].title
    return (
        _of(f"{name}: spikes by {HALF}", f"{title}: spikes by step {HALF:,}", early, INF),
        _of(f"{name}: spikes", "... and in 5,000", least, 20, HERE),
    )


def _as_float64(name: str) -> tuple[Statement, ...]:
    title = ARMS[name].title
    return (
        _of(f"{name}: off float64 at {HALF}", f"{title}: loss off that of float64 at step {HALF:,}", 0, 0.02),
        _of(f"{name}: off float64", "... after 5,000", 0, 0.02),
        _of(f"{name}: off float64 at worst", "... at the worst step", 0, 0.02),
    )


def _common(name: str, mean: tuple[float, float], feature: tuple[float, float], cosine: tuple[float, float]) -> (
    tuple[Statement, ...]
):  # fmt: skip
    title = ARMS[name].title
    return (
        _of(f"{name}: W_G", f"{title}, at the end: |W_G|", *mean, HERE),
        _of(f"{name}: mu_G", "... |mu_G|", *feature, HERE),
        _of(f"{name}: cosine", "... their cosine", *cosine, HERE),
    )


def _threshold(name: str, classes: int) -> Statement:
    low, high = absorption_bounds(FORMATS[name].dtype, classes)
    margin = FORMATS[name].margin
    text = f"{name}, {classes:,} classes: gap at which the right class's gradient is 0, p ln2 to p ln2 + ln(K-1)"
    return _of(threshold_name(name, classes), text, low - margin, high + margin, HERE)


_THRESHOLDS = (
    *(_threshold(name, classes) for name in FORMATS for classes in CLASSES),
    _of("loss reads 0 there as well", "The loss reads 0 from that very gap on: share", 1, 1, HERE),
    _of("one rival near", "float32, one rival near and the rest far: gap, off p ln2 for any K", 0, 0.02, HERE),
    _of("offset: stock", "float32, offsets to 1,000: the threshold of torch's loss moves by", 0, 0.02, HERE),
    _of("offset: by hand", "... that of logsumexp(z) - z_r, two classes, falls at 1,000 to", 9.9, 10.9, HERE),
    _of("exact loss: thresholds", "Exact loss: types and class counts at which anything is absorbed", 0, 0),
    _of("exact loss: error", "... float32, gaps to 85: relative error of the right class's gradient", 0, 1e-5, HERE),
    _of("exact loss: class sum", "... largest class sum, in units of the wrong mass", 0, 2e-6, HERE),
    _of("stock loss: error", "torch's loss there: relative error of the right class's gradient", 1, 1, HERE),
)
_TIMELINE = (
    *_often("stock", 4, 2),
    *_never("float64"),
    *_never("exact"),
    *_as_float64("exact"),
    _of("lead of absorbing", "Level absorbing: raised before the first spike by steps", 300, INF, HERE),
    _of("lead of inflating", "... inflating, by", 200, INF, HERE),
    _of("lead of imminent", "... imminent, by", 20, INF, HERE),
    _of("levels in order", "... in this order", 1, 1),
    _of("cosine before the spike", "By then W_G and mu_G point apart: lowest cosine", -1, -0.95),
    _of("W_G grows by", "... |W_G| since step 400, times", 3, INF, HERE),
    _of("mu_G grows by", "... |mu_G| since then, times", 10, INF, HERE),
    _of("W* grows by", "... the rest of the head since inflating, times", 0.95, 1.05, HERE),
    _of("rate of mu_G", "mu_G grows exponentially: d ln|mu_G| a step", 0.002, 0.02, HERE),
    _of("rate of W_G", "W_G, under Adam, linearly: a step, in units of lr sqrt(d)", 0.05, 1, HERE),
    _of("W_G over its limit", "... so that it does not reach |mu_G| / sqrt(K): share", 0, 0.1, HERE),
    _of("verdict", "Right-class gradients against float64's from the same logits: median error", 0.1, INF, HERE),
    _of("jump at the first spike", "Head's update before the first spike over its smallest", 1, 40, HERE),
    _of("jump at later spikes", "... before later ones, over its smallest since the last, median", 40, INF),
    _of("drift: identity", "Gradient of W_G is (1/NK) sum_i (sum_k g_ik) h_i: relative error", 0, 1e-5, HERE),
    _of("drift: cosine of theory", "... in the direction of (w/K) mu_G: cosine", 0.99, 1),
    _of("drift: theory too long by", "... which is too long, as rows are partly absorbed: times", 1, 20, HERE),
    *(
        statement
        for name in ("exact", "float64")
        for statement in (
            _of(f"{name}: levels", f"{ARMS[name].title}: levels raised", 0, 0),
            # in float64 rows do get beyond its own threshold of 36.7 nats, one in ten by step 5,000
            _of(f"{name}: absorbed", "... largest absorbed share", 0, 0 if name == "exact" else 0.4),
            _of(f"{name}: residual", "... largest class sum, as a share of the gradient", 0, 1e-5),
            _of(f"{name}: error", "... largest error against float64", 0, 1e-4),
            _of(f"{name}: lowest cosine", f"... lowest cosine, steps 400 to {HALF:,}", -0.8, 1),
            _of(f"{name}: W_G grows by", "... |W_G| grows by", 0.5, 1.5),
        )
    ),
    *_common("stock", (1.0, 2.2), (1e3, 3e4), (-1, -0.9)),
    *_common("float64", (0.1, 0.7), (30, 120), (-0.7, 0.3)),
    *_common("exact", (0.1, 0.7), (30, 120), (-0.7, 0.3)),
    *(
        _of(f"{name} at {step}", f"{text} at step {step:,}, seed 0", low, high, HERE)
        for name, text, rows in (
            ("absorbed", "Rows absorbed", {500: (0.2, 0.4), 800: (0.85, 1), 1000: (0.85, 1)}),
            ("w", "Wrong mass", {500: (3e-6, 4e-6), 800: (1.2e-8, 2.4e-8), 1000: (1e-8, 2e-8)}),
            ("W_G", "|W_G|", {500: (0.22, 0.26), 800: (0.3, 0.5), 1000: (0.65, 1.1)}),
            ("W*", "|W*|", {500: (4.2, 4.4), 800: (4.5, 4.7), 1000: (4.5, 4.8)}),
            ("mu_G", "|mu_G|", {500: (44, 50), 800: (60, 80), 1000: (150, 400)}),
            ("mean logit", "Mean logit", {500: (-4, -2), 800: (-35, -15), 1000: (-400, -100)}),
        )
        for step, (low, high) in rows.items()
    ),
)
_CURES = (
    *(each for name in ("float64-logits", "margin", "repaired") for each in (*_never(name), *_as_float64(name))),
    *_never("row-centred"),
    _of("row-centred: loss over float64's", "... but it trains on -w/K: final loss over that of float64", 20, 2000),
    *_common("row-centred", (0.1, 0.7), (15, 80), (-0.7, 0.3)),
    *_never("re-centred"),
    _of("re-centred: loss over float64's", "... with rows still absorbed: final loss over that of float64", 50, 5000),
    _of("re-centred: W_G", "... |W_G| at the end", 0, 1e-6),
)
_CAUSES = (
    *_often("emulated", 4, 2),
    *_common("emulated", (1.0, 2.2), (1e3, 3e4), (-1, -0.9)),
    *_never("exact-later"),
)
_SETTINGS = (
    *_never("eps-1e-6"),
    *_never("eps-1e-5"),
    *_often("clamp", 4, 2),
    *_often("decay-0.01", 4, 1),
    *_often("decay-0.1", 3, 1),
    _of("smoothing: W_G grows by", "Label smoothing: |W_G| at the end over that at step 400", 0, 3),
    *_never("one-layer"),
    *_common("one-layer", (3, INF), (50, INF), (-1, -0.9)),
)
_FORMATS = (
    *_often("bfloat16", 1, 0),
    *_often("float16", 2, 0),
)
_DESCENT = (
    _of("descent-stock: highest", "GD at lr 1e5 from step 800, torch's loss: highest loss", 1, INF),
    _of("descent-stock: final loss", "... which does not come back: final loss", 1, INF),
    _of("descent-exact: final loss", "... exact loss: final loss", 0, 1e-8),
    _of("descent-margin: final loss", "... margin form: final loss", 0, 1e-8),
)

STATEMENTS = (*_THRESHOLDS, *_TIMELINE, *_CURES, *_CAUSES, *_SETTINGS, *_FORMATS, *_DESCENT)
