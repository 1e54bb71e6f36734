"""What a step would have done without some of its examples: the experiment that confirms who is guilty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreshock.attribution.captured import Step
from foreshock.attribution.consumed import scaling
from foreshock.attribution.evaluate import Evaluation, Losses
from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.split import FITS, working
from foreshock.attribution.split_rules import Kept, find
from foreshock.errors import UsageError

__all__ = ["Counterfactual", "counterfactual_rows"]


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Losses after a step that was taken again.

    Attributes:
        before: the loss before the step.
        executed: after the step as it was.
        without: after the step without the rows.
        random: after the step without as many random other rows, for each draw.
    """

    before: float
    executed: float
    without: float
    random: tuple[float, ...]

    @property
    def removed(self) -> float:
        """The share of the rise that is gone without the rows."""
        rise = self.executed - self.before
        return (self.executed - self.without) / rise if rise else 0.0

    @property
    def removed_at_random(self) -> float:
        """The share that is gone without random rows, on average."""
        rise = self.executed - self.before
        mean = sum(self.random) / len(self.random) if self.random else self.executed
        return (self.executed - mean) / rise if rise else 0.0


def counterfactual_rows(
    step: Step,
    per_example_loss: Losses,
    rows: Sequence[int],
    *,
    culprit_loss: Losses | None = None,
    names: nn.Module | Sequence[str] | None = None,
    draws: int = 5,
    generator: torch.Generator | None = None,
) -> Counterfactual:
    """Returns the loss after a step without some examples of its batch, and without as many random ones.

    The step is taken again by the rule of its optimizer from the state it had, moments and denominator included, on
    the mean gradient of the examples that are left; a gradient that was clipped is clipped to the same norm. Everything
    is put back.

    Args:
        step: what `capture` kept.
        per_example_loss: the losses that rose, (n,).
        rows: places of the examples to leave out in the step's batch, e.g. `attribution.top(5)`.
        culprit_loss: the losses of the step's batch, where `per_example_loss` is of another.
        names: the model, or names.
        draws: how many times random rows are left out.
        generator: where they are drawn from; by default one seeded 0.

    Raises:
        UsageError: rows that are not there, no rows left, or an optimizer that is not known.
    """
    own = culprit_loss or per_example_loss
    roots, _ = modules_and_names(names or list(step.names), step.params, (per_example_loss, own))
    evaluation = Evaluation(step.params, roots)
    rule = find(step.source.kind)
    if rule is None or step.split.missed > FITS:
        raise UsageError(f"counterfactual_rows: how {step.split.optimizer} made this step is not known")
    with evaluation.opened():
        evaluation.put(step.before, step.after, 0.0)
        before, n = _mean(evaluation, per_example_loss), len(evaluation.losses(own))
        out = sorted(set(rows))
        if not out or out[0] < 0 or out[-1] >= n or len(out) == n:
            raise UsageError(f"counterfactual_rows(rows): some but not all of 0 ... {n - 1}, got {list(rows)[:20]}")
        evaluation.put(step.before, step.after, 1.0)
        executed = _mean(evaluation, per_example_loss)
        again = _Again(evaluation, step, own, n)
        without = again.loss(out, per_example_loss)
        draw = generator or torch.Generator().manual_seed(0)
        others = [i for i in range(n) if i not in out]
        random = []
        for _ in range(draws):
            order = torch.randperm(len(others), generator=draw, device=draw.device)[: len(out)].tolist()
            random.append(again.loss([others[i] for i in order], per_example_loss))
    return Counterfactual(before, executed, without, tuple(random))


class _Again:
    """Takes a step again on a part of its batch."""

    def __init__(self, evaluation: Evaluation, step: Step, own: Losses, n: int) -> None:
        self._evaluation, self._step, self._own, self._n = evaluation, step, own, n
        self._wanted = [group is not None and grad is not None for group, grad in
                        zip(step.source.groups, step.grads, strict=True)]  # fmt: skip
        scale = scaling(step.grads, self._gradient([]))
        self._factor = scale.whole
        self._limit = _norm(step.grads) if scale.whole < 1.0 else None

    def loss(self, out: Sequence[int], losses: Losses) -> float:
        """Returns the mean loss after the step without some rows."""
        grads = self._gradient(out)
        size = _norm(grads)
        factor = self._factor if self._limit is None else min(1.0, self._limit / size if size else 1.0)
        source, rule = self._step.source, find(self._step.source.kind)
        assert rule is not None
        ends = []
        for i, start in enumerate(self._step.before):
            group, theta = source.groups[i], working(start)
            if not self._wanted[i] or group is None:
                ends.append(self._step.after[i])
                continue
            grad = grads[i].to(theta) * factor
            terms = rule(group, theta, Kept(source.states[i], False, theta), grad)
            pieces = terms.pieces(theta, grad)
            ends.append((theta + pieces.batch + pieces.history + pieces.l2 + pieces.decay).to(start.dtype))
        self._evaluation.put(self._step.before, ends, 1.0)
        return _mean(self._evaluation, losses)

    def _gradient(self, out: Sequence[int]) -> list[Tensor]:
        left = [i for i in range(self._n) if i not in set(out)]
        weights = torch.zeros(self._n, dtype=torch.float64, device=self._step.params[0].device)
        weights[left] = 1.0 / len(left)
        self._evaluation.put(self._step.before, self._step.after, 0.0)
        found = self._evaluation.gradient(self._own, weights, self._wanted)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, self._step.before, strict=True)]


def _mean(evaluation: Evaluation, losses: Losses) -> float:
    return float(evaluation.losses(losses).mean())


def _norm(grads: Sequence[Tensor | None]) -> float:
    return math.sqrt(sum(float(grad.double().square().sum()) for grad in grads if grad is not None))
