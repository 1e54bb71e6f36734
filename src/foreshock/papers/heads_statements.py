"""What is claimed of new head rows: by the paper, of the digits as measured before, and by this library of itself."""

from __future__ import annotations

import math

from foreshock.papers.studies import Statement

__all__ = ["SOURCE", "STATEMENTS"]

SOURCE = "A Good Start Matters, arXiv 2503.06385v2 (CoLLAs 2025, PMLR 330)"
DIGITS = "measured on digits before, 3 seeds, and widened"
OURS = "target of this library"
INF = math.inf
SLACK = 0.01  # of an accuracy: half a standard error of a thousand test images

SETTINGS = {
    "five": "Garments 5+5", "six": "Garments 6+4", "pairs": "Garments 5x2", "five-moving": "5+5, backbone moving",
    "six-moving": "6+4, backbone moving", "pairs-moving": "5x2, backbone moving", "five-50": "5+5, 50 kept",
    "five-200": "5+5, 200 kept",
}  # fmt: skip
SQUARED = {
    "five-mse": "5+5, MSE", "six-mse": "6+4, MSE", "pairs-mse": "5x2, MSE", "five-mse-moving": "5+5, MSE, moving",
}  # fmt: skip
SHIPPED = {"digits": "Digits", "digits-mse": "Digits, MSE", **SETTINGS, **SQUARED}
PUBLISHED = ("five", "six", "pairs", "five-moving", "six-moving", "pairs-moving")
MEANS = {"class-mean": "raw class means", "unit-mean": "means of unit features"}
DRIVEN = {**MEANS, "ls": "least squares"}


def _of(number: str, text: str, low: float, high: float, source: str = SOURCE) -> Statement:
    return Statement(number, text, low, high, source)


_PROTOTYPE = (
    _of("digits-mse, ls: first over random", "Digits, MSE, least squares: first loss over that of random rows", 0, 0.25,
        DIGITS),
    _of("digits-mse, ls: recovered: fewer steps", "... steps until the loss is back, times fewer", 1.5, INF, DIGITS),
    _of("digits, ls: first over random", "Digits, CE, least squares: first loss over that of random rows", 0.7, 0.9,
        DIGITS),
    _of("digits, class-mean: first over random", "... raw class means", 10, INF, DIGITS),
    _of("digits, ls-grid: first over random", "... least squares and a grid of scales and offsets", 0, 0.4, DIGITS),
    _of("digits, calibrated: first over random", "... least squares, calibrated", 0, 0.4, DIGITS),
    _of("digits, class-mean: old@0", "... raw class means: accuracy of old classes before training", 0, 0.05, DIGITS),
    _of("digits, unit-mean: old@0", "... means of unit features: the same", 0, 0.05, DIGITS),
    _of("digits: calibrated old@0 less grid's", "... calibrated over the classes' balance: above the grid by", 0, INF,
        DIGITS),
)  # fmt: skip


def _published(name: str) -> tuple[Statement, ...]:
    """Returns what the paper says of its setting, for one of ours."""
    title = SETTINGS[name]
    return (
        _of(f"{name}, random: new@0", f"{title}, CE, random rows: new classes known untrained", 0, 0.05),
        *(_of(f"{name}, {arm}: new@0", f"... {text}", 0.7823, 1) for arm, text in MEANS.items()),
        *(
            _of(f"{name}, {arm}: converged: fewer steps", f"... {text}: updates to converge, times fewer", 7, INF)
            for arm, text in DRIVEN.items()
        ),
        *(
            _of(f"{name}, {arm}: level: fewer steps", f"... {text}: updates to equal it, times fewer", 1 / 0.7, INF)
            for arm, text in DRIVEN.items()
        ),
        *(_of(f"{name}, {arm}: raised", f"... {text}: boundaries at which the loss peaks", 0, 0)
          for arm, text in DRIVEN.items()),
    )  # fmt: skip


def _squared(name: str) -> tuple[Statement, ...]:
    title = SQUARED[name]
    return (
        _of(f"{name}, ls: first over random", f"Garments {title}, least squares: first loss over random's", 0, 0.25,
            DIGITS),
        _of(f"{name}, ls: recovered: fewer steps", "... steps until the loss is back, times fewer", 1.5, INF, DIGITS),
    )  # fmt: skip


def _own(name: str) -> tuple[Statement, ...]:
    """Returns what `init_new_rows` as it comes is to do."""
    arm = f"{name}, foreshock"
    return (
        _of(f"{arm}: first over random", f"{SHIPPED[name]}, as shipped: first loss over random's", 0, 1 / 3, OURS),
        _of(f"{arm}: peak over random", "... highest loss of 20 steps over random's", 0, 1 / 3, OURS),
        _of(f"{arm}: kept", "... share of the old classes' accuracy at the start", 0.95, INF, OURS),
        _of(f"{arm}: final old over random", "... old classes at the end, above random's", -SLACK, 1, OURS),
        _of(f"{arm}: final new over random", "... new classes at the end, above random's", -SLACK, 1, OURS),
        _of(f"{arm}: raised", "... boundaries at which the loss peaks", 0, 0, OURS),
    )


def _token(name: str, title: str) -> tuple[Statement, ...]:
    arm = f"{name}, foreshock"
    return (
        _of(f"{arm}: first over random", f"{title}, as many new as in the text: first loss over random's", 0, 1, OURS),
        _of(f"{arm}: kept", "... share of the old tokens' accuracy at the start", 0.95, INF, OURS),
        _of(f"{arm}: final old over random", "... old tokens at the end, above random's", -SLACK, 1, OURS),
    )


STATEMENTS = (
    *_PROTOTYPE,
    *(each for name in PUBLISHED for each in _published(name)),
    *(each for name in SQUARED for each in _squared(name)),
    *(each for name in SHIPPED for each in _own(name)),
    *_token("words", "24 words as tokens"),
    *_token("words-tied", "24 words, tied to the embedding"),
)
"""All claims; those whose numbers a training does not give are left out when it is judged."""
