"""Diagnoses of real trainings, watched live: a softmax in float32, the same with exact gradients, a broken batch."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor
from torch.nn import functional

from foreshock.demo import absorption, bad_batch
from foreshock.demo.scenario import Training
from foreshock.detect import scan
from foreshock.diagnose import diagnose
from foreshock.monitor import Monitor
from foreshock.numerics.repair import exact_gradient
from foreshock.probes import FREE, Softmax
from foreshock.run import Run
from foreshock.threads import one_thread

pytestmark = pytest.mark.slow
LEVELS = ("absorbing", "inflating", "imminent")
STEPS = 1500  # the first spike comes at 1200 to 1300


def watched(training: Training, steps: int) -> Run:
    watch = Monitor(training.model, training.optimizer, probes=[*FREE, Softmax], max_overhead=1.0)
    with one_thread(), watch as monitor:
        for step in range(steps):
            loss = training.loss(step)
            monitor.observe(loss)
            training.optimizer.zero_grad()
            loss.backward()
            training.optimizer.step()
        return monitor.run


@cache
def rounded() -> Run:
    return watched(absorption.build(0), STEPS)


def test_the_spike_of_a_rounded_softmax_is_foretold_in_order_and_called_so() -> None:
    run = rounded()
    events = scan(run)
    first = {kind: next(event for event in events if event.kind == kind) for kind in LEVELS}
    spike = next(event for event in events if event.kind == "spike" and event.height > 0.01)
    assert first["absorbing"].raised < first["inflating"].raised < first["imminent"].raised < spike.onset
    assert spike.onset - first["absorbing"].raised >= 300
    assert spike.onset - first["inflating"].raised >= 200
    found = diagnose(run, spike)
    assert found.best.name == "softmax_absorption"
    assert found.best.score > 0.9


def test_with_exact_gradients_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = functional.cross_entropy

    def exact(logits: Tensor, target: Tensor) -> Tensor:
        return rounding(exact_gradient(logits, target), target)

    monkeypatch.setattr(functional, "cross_entropy", exact)
    run = watched(absorption.build(0), STEPS)
    assert not [event for event in scan(run) if event.kind in (*LEVELS, "spike")]


def test_a_broken_batch_is_not_the_softmax() -> None:
    run = watched(bad_batch.build(0), 700)
    spike = next(event for event in scan(run) if event.kind == "spike")
    found = diagnose(run, spike)
    assert found.best.name == "unexplained"
    assert found["softmax_absorption"].score < 0.05
