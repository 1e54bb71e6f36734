"""What is claimed of S3, by its paper or by reason: intervals for the numbers of the studies, judged seed by seed."""

from __future__ import annotations

import math

from foreshock.papers.s3_streams import ORDERS
from foreshock.papers.studies import Statement

__all__ = ["SOURCE", "STATEMENTS"]

SOURCE = "SoftSignSGD (S3), arXiv 2507.06464"
DERIVED = "derived from the update rule"
INF = math.inf
ROUNDING = 1e-3  # of parameters in float32, in learning rates
EQUAL = 1.02  # what counts as no worse: 2 %, ours
TITLES = {"sines": "Sines", "digits": "Digits", "images": "Images", "text": "Text"}


def _of(number: str, text: str, low: float, high: float, source: str = SOURCE) -> Statement:
    return Statement(number, text, low, high, source)


_STREAMS = (
    *(_of(f"streams: S3 p {p:g}", f"S3, p = {p:g}: largest |u|, seven streams of gradients", 0, 1 + 1e-4)
      for p in ORDERS),
    _of("streams: S3 reaches 1", "... p = 3, 300 equal gradients: |u|", 1 - 1e-4, 1 + 1e-4, DERIVED),
    _of("streams: first step", "... the first |u| over (1 - beta^2)^(2/3)", 1 - 1e-4, 1 + 1e-4, DERIVED),
    _of("streams: S3 .9/.999", "Different betas, .9 and .999: largest |u|, of at most 3.61", 1.01, 3.62, DERIVED),
    _of("streams: Adam .9/.999", "Adam .9/.999: largest |u|, of at most 7.27", 5, 7.28, DERIVED),
    _of("streams: Adam .95/.95", "Adam .95/.95, with equal betas: largest |u|", 0, 1 + 1e-4),
)  # fmt: skip


def _task(name: str) -> tuple[Statement, ...]:
    title = TITLES[name]
    return (
        _of(f"{name}: largest |u|", f"{title}, S3 at 1x to 30x: largest |u|", 0, 1 + ROUNDING),
        _of(f"{name}: largest |u| of AdamW", "... AdamW .9/.999: largest |u|, not bounded by 1", 1 + ROUNDING, INF),
        _of(f"{name}: diverged at 10x", "S3 at 10x AdamW's lr: diverged", 0, 0),
        _of(f"{name}: spikes at 10x", "... spikes", 0, 0),
        _of(f"{name}: spikes spared at 10x", "... fewer spikes than AdamW at 10x, by", 1, INF),
        _of(f"{name}: spikes spared at 30x", "S3 at 30x: fewer spikes than AdamW at 30x, by", 1, INF),
        _of(f"{name}: loss at 10x over AdamW at 1x", "S3 at 10x: final loss over AdamW's at 1x", 0, EQUAL),
        _of(f"{name}: loss at 10x over AdamW at 10x", "... over AdamW's at 10x", 0, EQUAL),
        _of(f"{name}: loss at 30x over AdamW at 30x", "S3 at 30x: final loss over AdamW's at 30x", 0, EQUAL),
        _of(f"{name}: lr sensitivity over AdamW's", "Mean loss over 1x to 30x less the best, S3 over AdamW", 0, 1),
        _of(f"{name}: loss at 1x over AdamW at 1x", "S3 at AdamW's own lr: final loss over AdamW's", 0, EQUAL),
        _of(f"{name}: best loss over AdamW's", "Each at its best lr: final loss, S3 over AdamW", 0, EQUAL),
        _of(f"{name}: best held-out loss over AdamW's", "... held-out loss, S3 over AdamW", 0, EQUAL),
        _of(f"{name}: best accuracy less AdamW's", "... share of right answers, S3 less AdamW", -0.01, INF),
        _of(f"{name}: share of the steps", "Steps S3 needs to AdamW's best loss, over AdamW's", 0, 0.5),
    )


def _halved(name: str) -> tuple[Statement, ...]:
    title = TITLES[name]
    return (
        _of(f"{name}: half the steps, loss", f"{title}, cosine, S3 with half the steps: loss over AdamW's", 0, EQUAL),
        _of(f"{name}: half the steps, held-out loss", "... held-out loss over AdamW's", 0, EQUAL),
    )


def _ablated(name: str) -> tuple[Statement, ...]:
    title = TITLES[name]
    return (
        _of(f"{name}: equal betas spare spikes", f"{title}, 10x and 30x: AdamW .95/.95: fewer spikes, by", 1, INF),
        _of(f"{name}: s3-different adds spikes", "... S3 with different betas, .9/.999: more spikes, by", 1, INF),
        _of(f"{name}: s3-p2 adds spikes", "... S3 with p = 2: more spikes, by", 1, INF, DERIVED),
        _of(f"{name}: s3-p1 adds spikes", "... S3 with p = 1: more spikes, by", 1, INF, DERIVED),
        _of(f"{name}: s3-plain over S3", "S3 without Nesterov: best loss over S3's", 1, INF),
        _of(f"{name}: s3-different over S3", "S3 with different betas: best loss over S3's", 1, INF),
        _of(f"{name}: from_adamw over AdamW at 1x", "S3.from_adamw at 1x: final loss over AdamW's", 0, EQUAL,
            "of this library: equal steps under noise, 1.5x the lr"),
        _of(f"{name}: largest |u|, equal betas", "p = 1, 2, 3, equal betas: largest |u|", 0, 1 + ROUNDING),
        _of(f"{name}: largest |u|, different betas", "Different betas: largest |u|, not bounded by 1",
            1 + ROUNDING, INF, DERIVED),
    )  # fmt: skip


_ROUNDING = (
    _of("rounding: spikes of Adam .9/.95", "200 digits beyond the fit, float32: spikes with Adam .9/.95", 1, INF,
        "arXiv 2605.06152"),
    _of("rounding: spikes of S3", "... with S3: spikes", 0, 0, "no claim of the paper: asked here"),
    _of("rounding: spikes of S3 at 3x", "... with S3 at 3x", 0, 0, "no claim of the paper: asked here"),
)  # fmt: skip

_SWEEP = tuple(
    _of(f"{name}: best lr over 1x", f"{TITLES[name]}: AdamW's best lr of the sweep over the one that is 1x", 1, 1,
        "chosen here, by the lowest held-out loss of seeds 100 and 101")
    for name in ("digits", "images", "text")
)  # fmt: skip

STATEMENTS = (
    *_STREAMS,
    *(statement for name in TITLES for statement in (*_task(name), *_ablated(name))),
    *(statement for name in ("digits", "images", "text") for statement in _halved(name)),
    *_ROUNDING,
    *_SWEEP,
)
