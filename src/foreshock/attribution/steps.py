"""Who did it over several steps: momentum followed to the examples that put it there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foreshock.attribution.captured import Step
from foreshock.attribution.culprits import Pushed, pushed
from foreshock.attribution.directions import project
from foreshock.attribution.evaluate import Evaluation, Losses
from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.path import Path, column, integrate
from foreshock.attribution.result import Attribution
from foreshock.attribution.step import Nodes, checked, incomplete, measured, uniform
from foreshock.errors import UsageError

__all__ = ["attribute_steps"]


def attribute_steps(
    steps: Sequence[Step],
    per_example_loss: Losses,
    culprit_losses: Sequence[Losses],
    *,
    numbers: Sequence[int] | None = None,
    names: nn.Module | Sequence[str] | None = None,
    directions: Mapping[str, Any] | None = None,
    nodes: Nodes = "auto",
    dtype: torch.dtype | None = None,
) -> Attribution:
    """Returns what moved a loss over consecutive steps, which `capture` kept.

    The steps' attributions are added up, but what an example's gradient does later, through momentum, is the
    example's: with m_s = keep m_{s-1} + admit g_s and w_s what multiplies m in step s, its row is -<admit A_s, g_i>,

        A_s = e_s w_s + keep A_{s+1},

    computed backwards, one step at a time. History is then only what momentum brought from before the first step.

    Args:
        steps: in order, each beginning where the one before ended; what was written to the parameters in between is
            part of the rest.
        per_example_loss: the losses that changed, of one batch, (n,).
        culprit_losses: for each step the losses of its own batch.
        numbers: of the steps, for `labels`; 0, 1, ... by default.
        names: the model, or names for the parameters.
        directions: as for `attribute`; of the last step.
        nodes, dtype: as for `attribute`, for each step.

    Raises:
        UsageError: no step, or others of each.
    """
    if not steps or len(culprit_losses) != len(steps) or (numbers is not None and len(numbers) != len(steps)):
        raise UsageError(
            f"attribute_steps: as many steps as culprit_losses and numbers, at least one; got {len(steps)}, "
            f"{len(culprit_losses)} and {'none' if numbers is None else len(numbers)}"
        )
    params, at = steps[0].params, list(range(len(steps))) if numbers is None else list(numbers)
    if any([id(p) for p in step.params] != [id(p) for p in params] for step in steps):
        raise UsageError("attribute_steps: the steps are of other parameters, or in another order")
    given = list(steps[0].names) if names is None else names
    modules, labels = modules_and_names(given, params, (per_example_loss, *culprit_losses))
    whole = (steps[0].before, steps[-1].after)
    evaluation, (first, last), notes = measured(per_example_loss, params, whole, modules, dtype)
    walk = _Walk(evaluation, per_example_loss, labels, uniform(len(first), first), checked(nodes), last)
    found: list[Pushed] = []
    with evaluation.opened():
        for i in reversed(range(len(steps))):
            step = steps[i]
            if i + 1 < len(steps):
                gap = walk.back(step.after, steps[i + 1].before)
                if gap.nodes:
                    notes.append(
                        f"between steps {at[i]} and {at[i + 1]} something else changed the parameters: "
                        f"{gap.total:.3g} of the loss, in the rest"
                    )
            path = walk.back(step.before, step.after, first if i == 0 else None)
            if i + 1 == len(steps):
                projections = project(directions or {}, labels, path.gradient, step.before, step.after)
            evaluation.put(step.before, step.after, 0.0)
            shares = uniform(len(evaluation.losses(culprit_losses[i])), first)
            later = found[-1].carried if found else None
            model = names if isinstance(names, nn.Module) else None
            ends = (step.before, step.after)
            own, source = culprit_losses[i], step.of(params)
            found.append(pushed(evaluation, own, shares, source, ends, path.gradient, later=later, model=model))
            notes.extend(note if len(steps) == 1 else f"step {at[i]}: {note}" for note in found[-1].notes)
    rows = (last - first) * walk.weights
    change, total = float(rows.sum()), sum(walk.columns.values())
    if nodes == "auto":
        notes.extend(incomplete(total, change, walk.nodes))
    parts = _parts(found[::-1], at)
    sides = sum(parts[name] for name in ("history", "decay", "l2"))
    batch = 0.0 if parts["culprits"] is None else float(parts["culprits"].sum())
    return Attribution(
        rows=rows.cpu(), columns=walk.columns, total=total, measured=change, nodes=walk.nodes, projections=projections,
        loss=float((first * walk.weights).sum()), rest=total - batch - sides, notes=tuple(dict.fromkeys(notes)),
        **parts,
    )  # fmt: skip


class _Walk:
    """Goes along pieces of the parameters' way from its end to its beginning and adds up columns."""

    def __init__(
        self, evaluation: Evaluation, losses: Losses, labels: Sequence[str], weights: Tensor, nodes: int | None,
        last: Tensor,
    ) -> None:  # fmt: skip
        self._evaluation, self._losses, self._labels, self._nodes = evaluation, losses, labels, nodes
        self.weights, self._right = weights, last
        self.columns = dict.fromkeys(labels, 0.0)
        self.nodes = 0

    def back(self, before: Sequence[Tensor], after: Sequence[Tensor], left: Tensor | None = None) -> Path:
        """Returns the path gradient of a piece, and goes to its beginning; `left` are the losses there, if known."""
        if all(torch.equal(start, end) for start, end in zip(before, after, strict=True)):
            return Path((None,) * len(before), 0.0, 0)
        if left is None:
            self._evaluation.put(before, after, 0.0)
            left = self._evaluation.losses(self._losses)
        ends, values = (before, after), (left, self._right)
        path = integrate(self._evaluation, self._losses, self.weights, ends, values, self._nodes)
        for name, e, start, end in zip(self._labels, path.gradient, before, after, strict=True):
            self.columns[name] += column(e, start, end)
        self.nodes += path.nodes
        self._right = left
        return path


def _parts(found: Sequence[Pushed], numbers: Sequence[int]) -> dict[str, Any]:
    """Returns the rows of all steps one after the other, with their labels, and the sums of the rest."""
    rows = [each.rows for each in found if each.rows is not None]
    known = len(rows) == len(found)
    labels = [(number, i) for number, each in zip(numbers, rows, strict=False) for i in range(len(each))]
    weights = [float(each.abs().sum()) for each in rows]
    covered = sum((w * each.coverage for w, each in zip(weights, found, strict=False)), 0.0)
    return {
        "culprits": torch.cat(rows) if known else None,
        "labels": tuple(labels) if known else None,
        "history": found[0].history,
        "decay": sum(each.decay for each in found),
        "l2": sum(each.l2 for each in found),
        "coverage": covered / math.fsum(weights) if known and any(weights) else float(known),
        "clipped": found[-1].clipped,
    }
