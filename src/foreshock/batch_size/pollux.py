"""Pollux's model of throughput: seconds of a step from the batch of a replica, the replicas and the accumulation."""

from __future__ import annotations

import math

from foreshock.errors import UsageError

__all__ = ["geometric_batches", "pollux_seconds"]

CANDIDATES = 50  # sizes that Pollux looks at


def pollux_seconds(
    local_batch: float,
    *,
    compute: tuple[float, float],
    network: tuple[float, float] = (0.0, 0.0),
    overlap: float = 1.0,
    replicas: int = 1,
    accumulation: int = 1,
) -> float:
    """Returns the seconds of an optimizer step on several replicas.

    T_acc = a + b m for a pass over the m examples that a replica sees at once; T_net = c + d (replicas - 1) for the
    exchange of gradients, which only the last pass of a step waits for; the two overlap:
    T = (accumulation - 1) T_acc + (T_acc^g + T_net^g)^(1/g), from their sum at g = 1 to the larger one at g = inf.

    Args:
        local_batch: m.
        compute: a and b, seconds and seconds per example.
        network: c and d, seconds and seconds for each further replica.
        overlap: g, 1 to 10 in Pollux's fits.
        replicas: ranks that share a batch of `replicas * accumulation * m`; one has nothing to exchange.
        accumulation: passes for each step.

    Raises:
        UsageError: an argument that is not in its range.

    Source: Qiao et al. 2021, arXiv 2008.12260, equations 8 to 11.

    >>> pollux_seconds(10, compute=(1.0, 0.5)), pollux_seconds(10, compute=(1.0, 0.5), network=(4, 2), replicas=3)
    (6.0, 14.0)
    """
    if not (local_batch > 0 and overlap >= 1 and replicas >= 1 and accumulation >= 1 and min(*compute, *network) >= 0):
        raise UsageError(
            f"pollux_seconds: local_batch > 0, overlap, replicas and accumulation >= 1 and times >= 0 are needed, got "
            f"{local_batch!r}, {overlap!r}, {replicas!r}, {accumulation!r}, {compute!r} and {network!r}"
        )
    passed = compute[0] + compute[1] * local_batch
    waited = network[0] + network[1] * (replicas - 1) if replicas > 1 else 0.0
    larger, smaller = max(passed, waited), min(passed, waited)
    if larger == 0.0:
        return 0.0
    both = larger if math.isinf(overlap) else larger * float((1.0 + (smaller / larger) ** overlap) ** (1.0 / overlap))
    return (accumulation - 1) * passed + both


def geometric_batches(smallest: int, largest: int, count: int = CANDIDATES) -> tuple[int, ...]:
    """Returns up to `count` batch sizes, evenly spaced on the logarithmic scale, both ends among them.

    >>> geometric_batches(16, 256, 5)
    (16, 32, 64, 128, 256)
    """
    if not 1 <= smallest <= largest or count < 2:
        raise UsageError(
            f"geometric_batches: 1 <= smallest <= largest and count >= 2, got {smallest}, {largest} and {count}"
        )
    ratio = largest / smallest
    sizes = {round(smallest * ratio ** (place / (count - 1))) for place in range(count)}
    return tuple(sorted(sizes))
