"""What `init_new_rows` refuses, and what it warns of: said before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.heads.layer import Layer
from foreshock.heads.statistics import HeadStatistics

REPLAY = 0.2  # share of old examples below which their moments say little
_LONG = 3.0  # times as long as the old rows, or as short
_ROUGH = 1e12  # condition numbers from here on leave few digits of float64


def ids(new: Iterable[int] | Tensor, rows: int) -> list[int]:
    """Returns the ids of the new rows, looked over.

    Raises:
        UsageError: none, one twice, one that is no row of the head, or something that is no id.
    """
    if not isinstance(new, (Tensor, Iterable)):
        raise UsageError(f"new must hold row ids, such as [{new!r}] or range(5, 10); got {type(new).__name__} {new!r}")
    listed = new.flatten().tolist() if isinstance(new, Tensor) else list(new)
    if not listed:
        raise UsageError("new is empty: give the ids of the rows to initialise, such as range(5, 10)")
    try:
        plain = [int(each) for each in listed]
    except (TypeError, ValueError) as error:
        raise UsageError(f"new must hold row ids, integers; got {listed!r}") from error
    if any(isinstance(each, bool) for each in listed) or plain != listed:
        raise UsageError(f"new must hold row ids, integers; got {listed!r}")
    wrong = sorted({each for each in plain if not 0 <= each < rows})
    if wrong:
        raise UsageError(f"new holds {wrong}, but the head has the rows 0 to {rows - 1}: grow_rows() adds some")
    twice = sorted({each for each in plain if plain.count(each) > 1})
    if twice:
        raise UsageError(f"new holds {twice} more than once; give every id once")
    return plain


def choice(name: str, given: object, allowed: object, *extra: object) -> None:
    """Raises where an argument is none of the values of a `Literal`."""
    values = (*get_args(allowed), *extra)
    if given not in values:
        raise UsageError(f"{name} must be one of {', '.join(map(repr, values))}; got {given!r}")


def share(name: str, given: float, *, most: float = 1.0) -> None:
    """Raises where a number is not between 0 and a limit."""
    if not isinstance(given, Real) or not 0 <= given <= most:
        raise UsageError(f"{name} must be a number between 0 and {most:g}; got {given!r}")


def positive(name: str, given: float) -> None:
    """Raises where an argument is no number above 0."""
    if not isinstance(given, Real) or not 0 < given < math.inf:
        raise UsageError(f"{name} must be above 0, for the solve is singular without a ridge; got {given!r}")


def kinds(statistics: object, optimizer: object, generator: object, monitor: object) -> None:
    """Raises where one of the helpers is none: before rows are written, not when it is asked."""
    if not isinstance(statistics, HeadStatistics):
        raise UsageError(f"statistics must be HeadStatistics; got {type(statistics).__name__}")
    if optimizer is not None and not isinstance(getattr(optimizer, "state", None), Mapping):
        raise UsageError(f"optimizer must be the one that trains the head, or None; got {type(optimizer).__name__}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UsageError(f"generator must be a torch.Generator or None; got {type(generator).__name__}")
    if monitor is not None and not (hasattr(monitor, "note") and hasattr(monitor, "step")):
        raise UsageError(f"monitor must be a foreshock.Monitor or None; got {type(monitor).__name__}")


def fitting(statistics: HeadStatistics, new: Sequence[int], head: Layer, *, needed: bool) -> None:
    """Raises where statistics and head do not belong together, or a new class has no examples."""
    rows, seen = len(head.weight), statistics.counts
    beyond = [label for label in seen if label >= rows]
    if beyond:
        raise UsageError(
            f"the statistics hold classes {beyond[:5]}, but the head has {rows} rows: add rows with grow_rows() first"
        )
    empty = [label for label in new if not seen.get(label)]
    if empty and needed:
        raise UsageError(
            f"no examples of the new classes {empty} in the statistics: update() them with some, or leave these out of "
            "new"
        )
    if head.kind == "cosine" and not statistics.unit:
        raise UsageError(
            "this head divides features by their norm: make the statistics with HeadStatistics(dim, unit=True)"
        )
    if head.kind != "cosine" and statistics.unit:
        raise UsageError(
            "the statistics are of features divided by their norm (unit=True), but this head reads them as they are"
        )


def warnings(statistics: HeadStatistics, new: Sequence[int], rows: int) -> list[str]:
    """Returns what makes the rows less sure, by the examples that there are."""
    said, counts, fresh = [], statistics.counts, set(new)
    n, d = sum(counts.values()), statistics.dim
    old = sum(count for label, count in counts.items() if label not in fresh)
    if n < 2 * d:
        said.append(f"{n:g} examples for {d} features, fewer than two for each: the rows lean on the ridge")
    if rows > len(fresh):
        if not old:
            said.append("no examples of old classes: nothing tells how much of them the new rows take")
        elif old < REPLAY * n:
            said.append(
                f"old classes are {old / n:.0%} of the examples, below {REPLAY:.0%}: keep more of them to rehearse"
            )
        unseen = sum(label not in counts for label in range(rows) if label not in fresh)
        if old and unseen:
            said.append(
                f"{unseen} of {rows - len(fresh)} old rows have no examples: their accuracy is not watched over"
            )
    return said


def doubts(head: Layer, new: Sequence[int], rows: Tensor, condition: float | None, pooled: bool) -> list[str]:
    """Returns what the rows themselves make doubtful."""
    said = []
    others = torch.ones(len(head.weight), dtype=torch.bool, device=rows.device)
    others[list(new)] = False
    if head.kind == "linear" and bool(others.any()):
        ratio = float(rows.norm(dim=1).mean() / head.weight[others].norm(dim=1).mean().clamp(min=1e-300))
        if not 1 / _LONG <= ratio <= _LONG:
            said.append(
                f"the new rows are {ratio:.2g} times as long as the old ones, which matters where they are tied to "
                "embeddings"
            )
    if condition is not None and condition > _ROUGH:
        said.append(f"condition number {condition:.1e}: raise lam, or give scaled=True")
    if pooled:
        said.append(
            "second moments were not kept by class: the covariance within classes counts as one (per_class=True)"
        )
    return said
