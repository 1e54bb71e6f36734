"""The gradient noise scale: unbiased pairs, averaged, then divided, with a band or with a reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foreshock.batch_size.average import MovingMean
from foreshock.batch_size.pairs import Pair, adaptdl_pair, floats, pair
from foreshock.batch_size.ratio import ratio_band, student
from foreshock.errors import UsageError

__all__ = ["NoiseEstimate", "NoiseScale", "Pair", "adaptdl_pair", "pair"]

Status = Literal["ok", "undefined", "gated"]

LEAST = 5.0  # steps, by weight, below which the spread over steps is not known


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """The simple noise scale, B_simple = tr Sigma / |G|^2, in examples, and what it is made of.

    Attributes:
        noise_scale: the ratio of the means; NaN unless the status is "ok".
        tr_sigma: mean of the estimates of tr Sigma, the trace of the covariance of one example's gradient.
        g_sq: mean of the estimates of |G|^2; may be negative.
        se: standard error of `noise_scale`, by the delta method; infinite unless the status is "ok".
        low, high: its band, by Fieller's theorem: where it is undefined `high` is infinite, and `low` still holds.
        n: steps that were averaged.
        status: "undefined" where |G|^2 is not distinguishable from 0, so that the ratio has no upper bound; "gated"
            where gradients are known to be no measure of the loss.
        tr_sigma_se, g_sq_se: standard errors of the two.
        skipped: steps left out: not finite, without sizes, or gated.
        reasons: why it is not "ok", in words.
        source: what it was measured by, in words.
        preconditioned: whether gradients were divided by the optimizer's denominators before.
        confidence: of the band.
    """

    noise_scale: float
    tr_sigma: float
    g_sq: float
    se: float
    low: float
    high: float
    n: int
    status: Status
    tr_sigma_se: float = math.inf
    g_sq_se: float = math.inf
    skipped: int = 0
    reasons: tuple[str, ...] = ()
    source: str = "pairs"
    preconditioned: bool = False
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self) | {"reasons": list(self.reasons)}


class NoiseScale:
    """Averages the estimates of tr Sigma and |G|^2 over steps, each for itself, and divides then.

    |G|^2 of one step is small, noisy and often below 0: the mean of the steps' own ratios does not exist. Updates that
    are not finite, or negative, are left out and counted.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scale = NoiseScale(8, 64)
    >>> for _ in range(300):  # examples' gradients are (1, 0, ..., 0) and noise, tr Sigma = 100
    ...     grads = np.eye(1, 100) + rng.standard_normal((8, 100)) / np.sqrt(8)
    ...     scale.update((grads**2).sum(1), (grads.mean(0) ** 2).sum())
    >>> value = scale.value()
    >>> value.status, value.low < 100 < value.high
    ('ok', True)

    Args:
        small: b, the size of the small batches, or a size for each; in examples. None: given with each update.
        big: B, the size of the big batch that they are part of; None likewise.
        ema: weight of the past at each step, .95 to .995 as a rule; 1 averages all steps alike.
        confidence: of the band.

    Raises:
        UsageError: sizes that are not positive, b not below B, or an argument out of range.

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1; the band is this library's.
    """

    def __init__(
        self, small: Any = None, big: float | None = None, *, ema: float = 0.99, confidence: float = 0.95
    ) -> None:
        if not 0.0 < ema <= 1.0:
            raise UsageError(f"NoiseScale(ema=...): must be above 0 and at most 1, got {ema!r}")
        if not 0.0 < confidence < 1.0:
            raise UsageError(f"NoiseScale(confidence=...): must be between 0 and 1, got {confidence!r}")
        if small is not None:
            sizes = floats(small)
            pair([1.0] * len(sizes), 1.0, small=sizes, big=math.nextafter(math.inf, 0) if big is None else big)
        self.small, self.big, self.ema, self.confidence = small, big, float(ema), float(confidence)
        self.skipped = 0
        self._moving = MovingMean(2, self.ema)
        self._gates: dict[str, int | None] = {}  # reason -> updates that it still holds for

    def update(self, small_sq_norms: Any, big_sq_norm: Any, *, small: Any = None, big: float | None = None) -> None:
        """Takes one step's squared gradient norms.

        Args:
            small_sq_norms: |g_b|^2 of the small batches, or their mean.
            big_sq_norm: |g_B|^2.
            small, big: the sizes at this step, where they are not those of the constructor.

        Raises:
            UsageError: no sizes, here or there.
        """
        small, big = self.small if small is None else small, self.big if big is None else big
        if small is None or big is None:
            raise UsageError("NoiseScale.update(small=..., big=...): sizes are needed, here or in the constructor")
        norms = [*floats(small_sq_norms), *floats(big_sq_norm)]
        try:
            found = pair(norms[:-1], norms[-1], small=small, big=big)
        except UsageError:
            found = Pair(math.nan, math.nan)
        self.take(found if all(norm >= 0.0 for norm in norms) else Pair(math.nan, math.nan))

    def take(self, found: Pair) -> None:
        """Takes one step's estimates, however they were made."""
        if self._gates:
            self.pass_by()
        elif math.isfinite(found.tr_sigma) and math.isfinite(found.g_sq):
            self._moving.update(found)
        else:
            self.skipped += 1

    def pass_by(self) -> None:
        """Counts a step that was not measured because of a gate."""
        self.skipped += 1
        self._gates = {why: None if left is None else left - 1 for why, left in self._gates.items() if left != 1}

    def value(self) -> NoiseEstimate:
        """Returns what is known by now."""
        moving = self._moving
        tr_sigma, g_sq = (float(each) for each in moving.mean)
        fields: dict[str, Any] = {
            "n": moving.n, "skipped": self.skipped, "confidence": self.confidence,
            "tr_sigma": tr_sigma if moving.n else math.nan, "g_sq": g_sq if moving.n else math.nan,
        }  # fmt: skip
        nothing: dict[str, Any] = {"noise_scale": math.nan, "se": math.inf, "low": 0.0, "high": math.inf}
        if moving.effective < LEAST:
            status: Status = "gated" if self._gates else "undefined"
            reasons = tuple(self._gates) or (f"{moving.n} steps, too few to know how much they scatter",)
            return NoiseEstimate(**fields, **nothing, status=status, reasons=reasons)
        (xx, xy), (_, yy) = moving.covariance().tolist()
        fields |= {"tr_sigma_se": math.sqrt(xx), "g_sq_se": math.sqrt(yy)}
        if self._gates:
            return NoiseEstimate(**fields, **nothing, status="gated", reasons=tuple(self._gates))
        found = ratio_band(tr_sigma, g_sq, (xx, xy, yy), student(self.confidence, moving.effective - 1))
        if not math.isfinite(found.high):
            why = "|G|^2 is not distinguishable from 0: the noise scale has no upper bound"
            fields |= {"noise_scale": math.nan, "status": "undefined", "reasons": (why,)}
        else:
            fields |= {"noise_scale": max(0.0, found.value), "status": "ok"}
        return NoiseEstimate(**fields, se=found.se, low=found.low, high=found.high)

    def gate(self, reason: str | None, *, steps: int | None = None) -> None:
        """Says that gradients mean nothing for now: updates are left out, and the status is "gated".

        Args:
            reason: why, in words; None lifts all gates, and what comes then counts afresh.
            steps: updates after which the gate lifts by itself; None: not before it is lifted.
        """
        if reason is not None:
            self._gates[reason] = steps
        elif self._gates:
            self._gates = {}
            self.restart()

    def lift(self, reason: str) -> None:
        """Lifts one gate."""
        self._gates.pop(reason, None)

    @property
    def gated(self) -> tuple[str, ...]:
        """The reasons that hold now."""
        return tuple(self._gates)

    def restart(self, keep: float = 0.0) -> None:
        """Forgets the past: after a change of the learning rate or of the batch, or a spike, it tells of another place.

        Args:
            keep: share of the weight of the past that stays, so that the mean is shortened; 0 forgets it all.
        """
        self._moving.restart(keep)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state in plain values: a resumed estimate goes on as if it had not stopped."""
        return {"moving": self._moving.state_dict(), "skipped": self.skipped, "gates": dict(self._gates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._moving.load_state_dict(state["moving"])
        self.skipped, self._gates = int(state["skipped"]), dict(state["gates"])
