"""`init_new_rows`: rows for new classes that the first batches need not pay for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.heads.calibrate import Scene, scale_and_offset
from foreshock.heads.report import NewRows
from foreshock.heads.solve import Solution, class_means, least_squares
from foreshock.heads.statistics import HeadStatistics

Method = Literal["ls", "class_mean", "unit_mean", "random"]
_DRAWS = 8  # of random rows, whose loss is the yardstick


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
    calibrate: str | None = "auto",
    loss: Literal["auto", "ce", "mse"] = "auto",
    generator: torch.Generator | None = None,
    monitor: Any = None,
) -> NewRows:
    """Writes rows for new classes into a head, leaves all others as they are, and returns what comes of it."""
    new = list(new)
    weight, bias = head.weight, head.bias
    draw = generator if generator is not None else torch.Generator().manual_seed(0)
    if method == "ls":
        rows = least_squares(
            statistics, new, lam=lam, scaled=scaled, bias=bias is not None, balanced=balanced,
            use=new if use == "new" else None,
        )  # fmt: skip
    elif method in ("class_mean", "unit_mean"):
        rows = class_means(statistics, new, unit=method == "unit_mean")
    elif method == "random":
        rows = _random(weight, len(new), draw)
    else:
        raise UsageError(f"method must be 'ls', 'class_mean', 'unit_mean' or 'random'; got {method!r}")
    scene, kind = _scene(head, statistics, new, loss)
    h = statistics.sample.features.double()
    s = c = None
    values, offset = rows.weight, rows.bias
    if kind == "ce" and calibrate is not None and method != "random":
        from dataclasses import replace

        s, c = scale_and_offset(replace(scene, scores=h @ values.mT + offset))
        values, offset = s * values, s * offset + c

    def first(values: Tensor, offset: Tensor) -> float:
        logits = h @ values.mT + offset
        return scene.loss(logits) if kind == "ce" else _mse(head, statistics, new, scene, logits)

    before = first(weight[new].double(), bias[new].double() if bias is not None else offset * 0)
    draws = [first(*(lambda each: (each.weight, each.bias))(_random(weight, len(new), draw))) for _ in range(_DRAWS)]
    random = sum(draws) / _DRAWS
    after = first(values, offset)
    hit_new, hit_old = scene.accuracy(h @ values.mT + offset)
    old = scene.target < 0
    only = float(scene.weights[old] @ scene.known[old].double() / scene.weights[old].sum())
    weight[new] = values.to(weight.dtype)
    if bias is not None:
        bias[new] = offset.to(bias.dtype)
    result = NewRows(
        tuple(new), method, kind, after, before, random, after / random, hit_new, hit_old, only, s, c,
        rows.lam, rows.condition, None, (),
    )  # fmt: skip
    if monitor is not None:
        monitor.note("rows_initialised", **result.to_dict())
    return result


def _random(weight: Tensor, k: int, draw: torch.Generator) -> Solution:
    """Returns rows as `nn.Linear` draws them, uniform within 1/sqrt(d), bias 0."""
    d = weight.shape[1]
    rows = (torch.rand(k, d, generator=draw, dtype=torch.float64) * 2 - 1) / d**0.5
    return Solution(rows, torch.zeros(k, dtype=torch.float64))


def _scene(head: nn.Module, statistics: HeadStatistics, new: list[int], loss: str) -> tuple[Scene, str]:
    h, y = statistics.sample.features.double(), statistics.sample.labels
    weight, bias = head.weight.double(), head.bias
    logits = h @ weight.mT + (0 if bias is None else bias.double())
    others = torch.ones(len(weight), dtype=torch.bool)
    others[new] = False
    place = torch.full((len(weight),), -1)
    place[new] = torch.arange(len(new))
    target = place[y]
    old_logits = logits.masked_fill(~others, -torch.inf)
    best, at = old_logits.max(1)
    right = torch.where(target < 0, logits.gather(1, y[:, None])[:, 0], 0.0)
    n_c = torch.bincount(y, minlength=len(weight)).double()
    k_new, k_old = int((n_c[new] > 0).sum()), int((n_c[others] > 0).sum())
    share = torch.where(target < 0, 0.5 / max(k_old, 1), 0.5 / max(k_new, 1))
    weights = share / n_c[y]
    weights = weights / weights.sum()
    scene = Scene(torch.zeros(len(y), len(new)), target, old_logits.logsumexp(1), right, best, at == y, weights)
    if loss != "auto":
        return scene, loss
    rows = target < 0
    hot = torch.nn.functional.one_hot(y, len(weight)).double()[rows][:, others]
    spread = (hot - hot.mean(0)).square().sum()
    return scene, "mse" if bool(rows.any()) and float((logits[rows][:, others] - hot).square().sum()) < float(spread) else "ce"


def _mse(head: nn.Module, statistics: HeadStatistics, new: list[int], scene: Scene, logits: Tensor) -> float:
    h, y = statistics.sample.features.double(), statistics.sample.labels
    whole = h @ head.weight.double().mT + (0 if head.bias is None else head.bias.double())
    whole[:, new] = logits
    hot = torch.nn.functional.one_hot(y, len(head.weight)).double()
    return float(scene.weights @ (0.5 * (whole - hot).square().sum(1)))
