"""How a batch is made up: ranks times micro-batch times accumulation, and the nearest size that can be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from foreshock.errors import UsageError

__all__ = ["Split", "feasible", "split"]


MORE = 3  # numbers of passes that are looked at, from the least that fits


@dataclass(frozen=True, slots=True)
class Split:
    """A batch of `batch = ranks * micro_batch * accumulation` examples."""

    batch: int
    micro_batch: int
    accumulation: int
    ranks: int = 1


def split(batch: float, *, largest: int, ranks: int = 1, multiple: int = 1) -> Split:
    """Returns the feasible batch nearest to a size, in ratio, and of equally near ones that of the fewest passes.

    One or two more passes than needed are looked at, since smaller micro-batches may come nearer to the size.

    Args:
        batch: wanted size.
        largest: micro-batch that fits into a rank's memory.
        ranks: data-parallel ranks.
        multiple: micro-batches are multiples of it, for the kernels' sake.

    Raises:
        UsageError: numbers that are not positive, or no multiple that fits.

    >>> split(1000, largest=48, ranks=8, multiple=16)
    Split(batch=1024, micro_batch=32, accumulation=4, ranks=8)
    """
    if not (batch > 0 and math.isfinite(batch) and ranks >= 1 and multiple >= 1 and largest >= multiple):
        raise UsageError(
            f"split: batch > 0, ranks >= 1 and largest >= multiple >= 1 are needed, got {batch!r}, {ranks!r}, "
            f"{largest!r} and {multiple!r}"
        )
    top = largest // multiple * multiple
    fewest = max(1, math.floor(batch / (ranks * top)))
    found = []
    for accumulation in range(fewest, fewest + MORE):
        exact = batch / (ranks * accumulation * multiple)
        for units in {max(1, math.floor(exact)), math.ceil(exact)}:
            micro = min(top, units * multiple)
            found.append(Split(ranks * micro * accumulation, micro, accumulation, ranks))
    return min(found, key=lambda each: (round(abs(math.log(each.batch / batch)), 9), each.accumulation))


def feasible(batches: Iterable[float], *, largest: int, ranks: int = 1, multiple: int = 1) -> tuple[Split, ...]:
    """Returns the feasible batches nearest to several sizes, ascending, each once; errors as in `split`.

    >>> [each.batch for each in feasible([10, 12, 100], largest=16, multiple=8)]
    [8, 16, 96]
    """
    found = {each.batch: each for each in (split(b, largest=largest, ranks=ranks, multiple=multiple) for b in batches)}
    return tuple(found[size] for size in sorted(found))
