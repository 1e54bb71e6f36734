"""Curvature followed along a training: along each step from one forward pass, and the edge by a tracker."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from curvature_nets import Bench
from curvature_peers import Answer

from foreshock.curvature import Hessian
from foreshock.curvature.forward import StepCurvature, step_curvature
from foreshock.curvature.space import dot
from foreshock.stability import planned_step

Cost = Callable[[Callable[[], Answer]], tuple[float, Answer]]
Line = tuple[str, float, float, float, str]  # row, cost, products, error, note


def along_steps(bench: Bench, cost: Cost, wanted: Sequence[str], quick: bool) -> Iterator[Line]:
    """Yields the curvature along a few optimizer steps, from the loss after each, against exact products."""
    if "step" not in wanted:
        return
    costs, errors = [], []
    for _ in range(2 if quick else 5):
        operator = Hessian(bench.loss(), bench.params)
        grads = operator.gradient()
        move = planned_step(bench.optimizer, grads)
        flat = operator.space.flatten(move)
        truth = dot(flat, operator @ flat)
        before = bench.loss().detach()
        held = [param.detach().clone() for param in bench.params]
        with torch.no_grad():
            for param, each in zip(bench.params, move, strict=True):
                param.add_(each)
        found: list[StepCurvature] = []

        def work(before: torch.Tensor = before, grads: object = grads, move: object = move) -> Answer:
            found.append(step_curvature(bench.loss, before, grads, move))  # type: ignore[arg-type]  # noqa: B023
            return Answer()

        costs.append(cost(work)[0])
        errors.append(abs(found[0].bend / truth - 1))
        with torch.no_grad():
            for param, old in zip(bench.params, held, strict=True):
                param.copy_(old)
        bench.step()
    yield "step", statistics.median(costs), 0, statistics.median(errors), "median error, against d'Hd before the step"


def tracked(bench: Bench, cost: Cost, wanted: Sequence[str], quick: bool) -> Iterator[Line]:
    """Yields nothing yet."""
    return iter(())
