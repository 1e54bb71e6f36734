"""What the gradient of the logits shows as it goes by in a backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.numerics.absorption import average, by_rows, row_sums, weighed
from foreshock.probes.head import Head
from foreshock.probes.logits import SoftmaxNode
from foreshock.probes.named import Named
from foreshock.probes.nodes import name_of, saved, saved_tensors, signed
from foreshock.probes.novelty import Novelty


@dataclass(slots=True)
class Watch:
    """One backward pass that is waited for.

    Attributes:
        softmax: where it will be looked at.
        head: the layer before it, if there is one.
        right: (N,) right classes, where the graph has them.
        ignored: which of them stand for a row that does not count.
        places: (N,) which row of the head's input each row was made of, where that is known.
        hooks: to be removed.
        rows: logits (N, K), targets and which rows count, between the softmax's node and the next.
        sums: (9 or 11, N) sums over the classes of each row, see `numerics.absorption.row_sums`.
        counted: (N,) whether a row counts.
        mean: (d,) mean of the features.
        layer: (d + 1,) sums over the classes of the head.
        novelty: which classes have been seen before.
        new: () share of the rows whose class is new.
    """

    softmax: SoftmaxNode
    head: Head | Named | None
    right: Tensor | None
    ignored: int | None
    places: Tensor | None
    hooks: list[Any]
    rows: tuple[Tensor, Tensor | None, Tensor | None] | None = None
    sums: Tensor | None = None
    counted: Tensor | None = None
    mean: Tensor | None = None
    layer: Tensor | None = None
    novelty: Novelty | None = None
    new: Tensor | None = None


def watching(softmax: SoftmaxNode, head: Head | Named | None, novelty: Novelty | None = None) -> Watch:
    """Returns a watch without hooks. Right classes and choices of rows are read now: backward frees them before it
    comes to the softmax."""
    return Watch(softmax, head, *_right(softmax), None if head is None else head.rows(softmax.dim), [],
                 novelty=novelty)


def catch(watch: Watch, given: Tensor) -> None:
    """Keeps the logits, up to a constant a row, targets and which rows count, while the softmax's node still has them.

    Args:
        watch: for whose softmax.
        given: the gradient that its node was given: of log-probabilities it is minus the targets, scaled.
    """
    softmax, counted, target = watch.softmax, None, watch.right
    kind, dim = softmax.kind, softmax.dim
    if kind == "exact":
        values, right, spread, mass = (*saved_tensors(softmax.node), None, None, None, None)[:4]
        if values is None or right is None:
            return
        counted = by_rows(given, dim)[:, 0] != 0
        target = by_rows(right, dim)[:, 0] if spread is None else _spread(values, right, spread, mass, dim)
    else:
        values = saved(softmax.node, "self" if kind == "logsumexp" else "result")
        if values is None:
            return
        values = values.log() if kind == "softmax" else values
        if target is not None and watch.ignored is not None:
            counted = target != watch.ignored
        elif kind == "log":
            target = -by_rows(given, dim)
            counted = (target != 0).any(1)
    watch.rows = by_rows(values, dim), target, counted


def measure(watch: Watch, gradient: Tensor) -> None:
    """Takes all that is wanted of the gradient of the logits: a few sums for each row, and the mean feature."""
    if watch.rows is None:
        return
    values, target, counted = watch.rows
    g = by_rows(gradient, watch.softmax.at)
    g = g if watch.softmax.rows is None else g[watch.softmax.rows]
    if g.shape != values.shape:
        return
    if target is None:
        least = g.min(1)
        target = torch.where(least.values < 0, least.indices, values.argmax(1))
    counted = (g != 0).any(1) if counted is None else counted
    watch.sums = row_sums(values, g, target, counted)
    watch.counted = counted = weighed(watch.sums, counted, g.shape[1], torch.finfo(g.dtype).smallest_normal)
    if watch.novelty is not None and target.dim() == 1:
        watch.new = watch.novelty.take(target, counted, g.shape[1])
        watch.novelty = None  # a second backward pass of the same loss brings nothing new
    features = None if watch.head is None else watch.head.features()
    if features is not None and watch.head is not None:
        weights = counted
        if watch.places is not None:
            weights = torch.zeros(len(features), device=features.device)
            weights.index_add_(0, watch.places, counted.to(weights))
        elif len(features) != len(counted):
            weights = torch.ones(len(features), device=features.device)
        watch.mean = average(features, weights)


def _right(softmax: SoftmaxNode) -> tuple[Tensor | None, int | None]:
    """Returns the right class of each row and the index of ignored rows, where the graph has kept them."""
    if softmax.nll is not None:
        target = saved(softmax.nll, "target")
        if target is not None and target.numel() == softmax.count:
            return target.reshape(-1), signed(softmax.nll._saved_ignore_index)
    if softmax.chooser is not None and name_of(softmax.chooser) == "Gather":
        index = saved(softmax.chooser, "index")
        if index is not None and index.numel() == softmax.count and index.dim() == len(softmax.shape):
            return by_rows(index, softmax.dim)[:, 0], None
    return None, None


def _spread(values: Tensor, right: Tensor, spread: Tensor, mass: Tensor | None, dim: int) -> Tensor:
    """Returns the (N, K) targets of an exact loss."""
    targets = spread.expand_as(values)
    if mass is not None:
        targets = targets.scatter_add(dim, right, mass.to(targets.dtype))
    return by_rows(targets, dim)
