"""`init_new_rows`: rows for new classes that the first batches need not pay for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.heads import layer as layers
from foreshock.heads.calibrate import calibrated, thinned
from foreshock.heads.grid import scale_and_offset
from foreshock.heads.report import NewRows
from foreshock.heads.scene import Scene, scene
from foreshock.heads.solve import Solution, class_means, least_squares
from foreshock.heads.statistics import HeadStatistics

Method = Literal["ls", "class_mean", "unit_mean", "random"]
Calibrate = Literal["auto", "ce", "scale", "grid"]
Loss = Literal["auto", "ce", "mse"]
_DRAWS = 8  # of random rows, whose mean loss is the yardstick
KEEP = 0.96  # of the old accuracy, held out


class Notes(Protocol):
    """What takes notes of a run, as `Monitor` does."""

    def note(self, kind: str, **fields: object) -> None: ...


@torch.no_grad()
def init_new_rows(
    head: nn.Module,
    statistics: HeadStatistics,
    new: Sequence[int],
    *,
    method: Method = "ls",
    lam: float = 0.05,
    scaled: bool = False,
    use: Literal["all", "new"] = "all",
    balanced: bool = True,
    calibrate: Calibrate | None = "auto",
    loss: Loss = "auto",
    keep: float = KEEP,
    new_share: float = 0.5,
    generator: torch.Generator | None = None,
    monitor: Notes | None = None,
) -> NewRows:
    """Writes rows for new classes into a head, leaves all others as they are, and returns what comes of it."""
    ids = list(new)
    old = layers.layer(head, statistics.dim)
    sample = statistics.sample
    examples = (sample.features.double(), sample.labels, sample.weights)
    met = scene(examples, old.logits, ids, len(old.weight), new_share=new_share)
    kind = loss if loss != "auto" else _trained_with(met)
    solution = _solution(old, statistics, ids, method, lam, scaled, use, balanced, generator)
    held_out = solution.held_out(*examples)
    rows, bias, s, c, mu = solution.weight, solution.bias, None, None, None
    if kind == "ce" and calibrate is not None and method != "random":
        if calibrate == "grid":
            even = scene(examples, old.logits, ids, len(old.weight), new_share=new_share, even=False)
            s, c = scale_and_offset(even, solution.scores(examples[0]), bias=old.has_bias)
            rows, bias = s * rows, s * bias + c
            held_out = s * held_out + c
        else:
            found = calibrated(
                *thinned(met, held_out), bias=old.has_bias, keep=keep, shared=calibrate != "scale"
            )
            s, c, mu = found.scale, float(found.offsets.mean()), found.old_weight
            rows, bias = s * rows + found.direction, s * bias + found.offsets
            held_out = found.held_out if len(found.held_out) == len(held_out) else examples[0] @ rows.mT + bias

    def first(rows: Tensor, bias: Tensor) -> float:
        return met.loss(old.factor * (examples[0] @ rows.mT) + bias, kind)

    before = first(old.weight[ids], old.bias[ids])
    draws = [_random(old, ids, torch.Generator().manual_seed(seed)) for seed in range(_DRAWS)]
    random = sum(first(each.weight, each.bias) for each in draws) / _DRAWS
    after = first(rows, bias)
    hits = met.hits(held_out)
    layers.write(old, ids, rows, bias)
    result = NewRows(
        tuple(ids), method, kind, after, before, random, after / random,
        met.share(hits, ~met.old), met.share(hits, met.old), met.share(met.known, met.old), s, c,
        solution.lam, solution.condition, None, (),
    )  # fmt: skip
    if monitor is not None:
        monitor.note("rows_initialised", **result.to_dict())
    return result


def _solution(
    old: layers.Layer, statistics: HeadStatistics, ids: list[int], method: Method, lam: float, scaled: bool,
    use: str, balanced: bool, generator: torch.Generator | None,
) -> Solution:  # fmt: skip
    if method == "ls":
        return least_squares(
            statistics, ids, lam=lam, scaled=scaled, bias=old.has_bias, balanced=balanced,
            use=ids if use == "new" else None,
        )  # fmt: skip
    if method in ("class_mean", "unit_mean"):
        return class_means(statistics, ids, unit=method == "unit_mean")
    if method == "random":
        return _random(old, ids, generator or torch.Generator().manual_seed(0))
    raise UsageError(f"method must be 'ls', 'class_mean', 'unit_mean' or 'random'; got {method!r}")


def _random(old: layers.Layer, ids: list[int], draw: torch.Generator) -> Solution:
    """Returns rows as `nn.Linear` draws them, uniform within 1/sqrt(d), with bias 0."""
    d = old.weight.shape[1]
    rows = (torch.rand(len(ids), d, generator=draw, dtype=torch.float64) * 2 - 1) / d**0.5
    return Solution(tuple(ids), rows.to(old.weight.device), old.weight.new_zeros(len(ids)))


def _trained_with(met: Scene) -> Literal["ce", "mse"]:
    """Returns the loss that the old rows were trained with, by their logits of old examples.

    Squared errors to the indicators below those of the best constant are a regression's.
    """
    old, w = met.old, met.weights
    if not bool(old.any()):
        return "ce"
    share = met.weights.new_zeros(int(met.labels.max()) + 1).index_add_(0, met.labels[old], w[old])
    share = share / share.sum()
    spread = float((share * (1 - share)).sum())
    return "mse" if float(w[old] @ met.gaps[old] / w[old].sum()) < spread else "ce"
