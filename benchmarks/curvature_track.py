"""Curvature followed along a training: along each step from one forward pass, and the edge by a tracker."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch

from curvature_nets import Bench
from curvature_peers import Answer
from curvature_rows import OURS
from foreshock.curvature import Hessian, eigsh
from foreshock.curvature.forward import StepCurvature, step_curvature
from foreshock.curvature.space import dot
from foreshock.curvature.tracker import EdgeTracker
from foreshock.stability import edge_weights, planned_step

Cost = Callable[[Callable[[], Answer]], tuple[float, Answer]]
Line = tuple[str, str, float, float, float, str]  # row, by whom, cost, products, error, note
FORWARD = "a forward pass, the least"


def along_steps(bench: Bench, cost: Cost, wanted: Sequence[str], steps: int) -> Iterator[Line]:
    """Yields the curvature along a few optimizer steps, from the loss after each, against exact products."""
    if "step" not in wanted:
        return
    costs, floors, errors = [], [], []
    for _ in range(steps):
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
        floors.append(cost(lambda: _forward(bench))[0])
        errors.append(abs(found[0].bend / truth - 1))
        with torch.no_grad():
            for param, old in zip(bench.params, held, strict=True):
                param.copy_(old)
        bench.step()
    note = "median error, against d'Hd before the step"
    yield "step", OURS, statistics.median(costs), 0, statistics.median(errors), note
    yield "step", FORWARD, statistics.median(floors), 0, math.nan, ""


def _forward(bench: Bench) -> Answer:
    with torch.no_grad():
        bench.loss()
    return Answer()


def tracked(bench: Bench, cost: Cost, wanted: Sequence[str], steps: int) -> Iterator[Line]:
    """Yields what readings of chi on the held batch cost and how good they are, while the net trains on.

    A reading follows each of `steps` steps; the first, which starts cold and checks products and closure, is counted
    apart. The truth is our own solver's at a tolerance of 1e-3, from a fresh start each time.
    """
    routes = {"tracker": "auto", "tracked differences": "differences"}
    trackers = {
        key: EdgeTracker(bench.optimizer, bench.loss, every=1, route=route)
        for key, route in routes.items()
        if key in wanted and (route == "auto" or bench.smooth)
    }
    if not trackers:
        return
    costs: dict[str, list[float]] = {key: [] for key in trackers}
    counts: dict[str, list[int]] = {key: [] for key in trackers}
    errors: dict[str, list[float]] = {key: [] for key in trackers}
    for _ in range(steps + 1):
        truth = _chi(bench)
        for key, tracker in trackers.items():
            spent, answer = cost(lambda tracker=tracker: _reading(tracker))  # type: ignore[misc]
            costs[key].append(spent)
            counts[key].append(answer.products)
            errors[key].append(abs(float(answer.values[0]) / truth - 1))
        bench.step()
    for key in trackers:
        close = sum(error <= 0.02 for error in errors[key][1:]) / steps
        note = (
            f"mean of {steps}; {close:.0%} within 2 %, the worst {max(errors[key][1:]):.1e} off; error: median; "
            f"first reading {costs[key][0]:.1f}"
        )
        yield (
            key, OURS, statistics.mean(costs[key][1:]), statistics.mean(counts[key][1:]),
            statistics.median(errors[key][1:]), note,
        )


def _reading(tracker: EdgeTracker) -> Answer:
    found = tracker.read()
    return Answer([found.chi], found.matvecs)


def _chi(bench: Bench) -> float:
    operator = Hessian(bench.loss(), bench.params)
    weights = edge_weights(bench.optimizer, operator.gradient())
    found = eigsh(operator.conditioned(weights), tol=1e-3)
    return float(found.values[0])
