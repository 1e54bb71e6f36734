"""Rules of others that see the same losses and gradient norms: each says at which records it alarms.

They look at what has happened, so an alarm before the loss has risen is not what most of them were made for; the table
therefore also shows what they find by the peak. Rules are restated here from their sources; trainscope's detector is
run as it is installed (`pip install trainscope==1.8.1`), and left out where it is not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

Rule = Callable[[Sequence[float], Sequence[float]], list[int]]
"""(losses, gradient norms), one a step -> indices of alarms."""


class _Window:
    """Mean and standard deviation of the last n values."""

    def __init__(self, n: int) -> None:
        self._values: deque[float] = deque(maxlen=n)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._values.append(value)

    def above(self, value: float, sigmas: float) -> bool:
        """Returns whether a value is more than so many standard deviations above the mean, or not finite."""
        n = len(self._values)
        mean = math.fsum(self._values) / n
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self._values) / (n - 1))
        return not value <= mean + sigmas * deviation


def z_score(sigmas: float, *, window: int = 100, least: int = 20) -> Rule:
    """Returns the rule that the gradient norm is so many standard deviations above the mean of the last 100."""

    def rule(losses: Sequence[float], norms: Sequence[float]) -> list[int]:
        seen, alarms = _Window(window), []
        for step, norm in enumerate(norms):
            if len(seen) >= least and seen.above(norm, sigmas):
                alarms.append(step)
            seen.add(norm)
        return alarms

    return rule


def olmo(losses: Sequence[float], norms: Sequence[float]) -> list[int]:
    """Returns the steps that OLMo-core's SkipStepOptimizer would skip: loss or gradient norm 6 standard deviations off.

    Its window holds the 128 values before, and it waits for 64; deviations to below, which it skips as well, are not
    counted against it here.
    """
    past, past_norms, alarms = _Window(128), _Window(128), []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if len(past) >= 63 and (past.above(loss, 6.0) or past_norms.above(norm, 6.0)):
            alarms.append(step)
        past.add(loss)
        past_norms.add(norm)
    return alarms


def zclip(losses: Sequence[float], norms: Sequence[float]) -> list[int]:
    """Returns the steps whose gradient ZClip would clip: z > 2.5 over moving averages of .97 (arXiv 2504.02507).

    Its averages take the clipped norm in, mean + 2.5^2 standard deviations / z.
    """
    first = [norm for norm in norms[:25] if math.isfinite(norm)]
    mean = math.fsum(first) / max(1, len(first))
    variance = math.fsum((norm - mean) ** 2 for norm in first) / max(1, len(first))
    alarms = []
    for step, norm in enumerate(norms[25:], 25):
        z = (norm - mean) / (math.sqrt(variance) + 1e-6)
        if not z <= 2.5:
            alarms.append(step)
            norm = mean + 2.5 * math.sqrt(variance) * 2.5 / z if math.isfinite(z) else mean
        mean = 0.97 * mean + 0.03 * norm
        variance = 0.97 * variance + 0.03 * (norm - mean) ** 2
    return alarms


def trainscope() -> Rule | None:
    """Returns the rule of trainscope's CUSUM on the loss at its default setting, its alarms of rises alone; None
    where it is not installed. (It alarms at falls of the loss too.)"""
    try:
        from trainscope.core.detectors import ChangePointDetector  # type: ignore[import-not-found]
    except ImportError:
        return None

    def rule(losses: Sequence[float], norms: Sequence[float]) -> list[int]:
        detector, alarms = ChangePointDetector(), []
        for step, loss in enumerate(losses):
            score = detector.update(loss) if math.isfinite(loss) else None
            if score is not None and score > 0:
                alarms.append(step)
        return alarms

    return rule


def rules() -> dict[str, Rule]:
    """Returns the peers by name."""
    found = {
        "gradient norm, z > 3": z_score(3.0), "gradient norm, z > 6": z_score(6.0), "OLMo's skip-step rule": olmo,
        "ZClip's rule": zclip,
    }  # fmt: skip
    theirs = trainscope()
    return found if theirs is None else found | {"trainscope's CUSUM": theirs}
