"""What the ranks of a group must know alike before they decide, so that all of them decide the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from foreshock import distributed

MOST = 64  # steps that a rank can name; a ring holds a handful


def mark(value: object) -> tuple[float, float]:
    """Returns a number of 20 bits that stands for a value, and its square; both are to be added up over the ranks.

    Sums of whole numbers below 2^53 are exact, so all ranks find the same by `same`.

    >>> marks = [mark((10, 20)), mark((10, 20)), mark((10, 30))]
    >>> [same(*map(sum, zip(*some)), len(some)) for some in (marks[:2], marks)]
    [True, False]
    """
    number = zlib.crc32(repr(value).encode()) & 0xFFFFF
    return float(number), float(number * number)


def same(total: float, squares: float, ranks: int) -> bool:
    """Returns whether all ranks had the same value: their variance is zero."""
    return ranks * int(squares) == int(total) ** 2


def common(numbers: Sequence[int], group: distributed.Group, device: torch.device) -> tuple[int, ...]:
    """Returns the numbers that every rank has, ascending; one collective."""
    rank, ranks = distributed.place(group)
    table = torch.zeros(ranks, MOST, dtype=torch.int64)
    mine = sorted(numbers)[-MOST:]
    table[rank, : len(mine)] = torch.tensor(mine, dtype=torch.int64) + 1
    rows = distributed.sum_(table.to(device), group).tolist()
    return tuple(sorted(set.intersection(*({each - 1 for each in row if each} for row in rows))))


def anywhere(found: bool, group: distributed.Group, device: torch.device) -> bool:
    """Returns whether any rank has found something; one collective."""
    return bool(distributed.sum_(torch.tensor(float(found), device=device), group) > 0.0)
