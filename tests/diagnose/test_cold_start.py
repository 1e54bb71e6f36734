"""A rise of the loss is a cold start where something new came with it, and never by its shape alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock.diagnose import diagnose
from foreshock.diagnose.base import Cause
from foreshock.diagnose.cold_start import BLIND, cold_start
from foreshock.monitor import Monitor
from foreshock.probes import FREE, Softmax
from foreshock.run import ABSENT, Event, Run

from .noting import noted

AT, STEPS = 100, 260
EVENT = Event("spike", AT + 1, AT, AT + 1, AT + 60, 3.0, 90.0, "loss")
SLOWLY, AT_ONCE, CLIFF = "slowly", "at once", "cliff"


def risen(
    how: str = SLOWLY, new: tuple[float, float] | None = None, note: dict[str, Any] | None = None, **columns: np.ndarray
) -> Run:
    """Returns a loss that rises at step 100 and comes down in one of three ways.

    Args:
        how: which.
        new: share of the rows of new classes before and from then on, at every 20th step.
        note: fields of a note that tensors changed.
        columns: further signals.
    """
    at, draw = np.arange(STEPS), np.random.default_rng(0)
    since = at - AT
    shape = {SLOWLY: np.exp(-since / 30), AT_ONCE: 1.0 * (since == 0), CLIFF: 1.0 * (since < 14)}[how]
    loss = 1 + np.where(since >= 0, 3 * shape, 0) + 0.03 * draw.standard_normal(STEPS)
    if new is not None:
        share = np.where(since >= 0, new[1], new[0])
        columns["softmax_new"] = np.where(at % 20 == 12, share, ABSENT)
    return noted({"loss": loss, **columns}, [{"kind": "parameters_changed", **note}] if note else ())


def judged(run: Run, event: Event = EVENT) -> Cause:
    cause = cold_start(run, event)
    assert cause is not None
    return cause


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.5), (0.0, 0.06), (0.03, 0.2)])
def test_classes_that_were_never_seen_are_a_cold_start(before: float, after: float) -> None:
    run = risen(new=(before, after))
    assert judged(run).score > 0.75
    best = diagnose(run, EVENT).best
    assert best.name == "cold_start"
    assert "had not been seen until then" in best.evidence[0]
    assert any("least squares" in line for line in best.advice)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.0), (0.2, 0.22), (0.0, 0.01)])
def test_classes_that_are_no_newer_than_usual_are_none(before: float, after: float) -> None:
    assert judged(risen(new=(before, after))).score < 0.15


@pytest.mark.parametrize("kind", ["added", "replaced", "resized"])
def test_tensors_that_came_with_the_rise_are_a_cold_start(kind: str) -> None:
    cause = judged(risen(note={"step": AT, kind: ["head.weight", "head.bias"]}))
    assert cause.score > 0.95
    assert f"2 tensors were {kind} at the rise: `head.weight`, `head.bias`." in cause.evidence[0]


def test_tensors_that_came_long_before_count_for_less_and_those_that_only_went_for_nothing() -> None:
    at_once, later, gone, long_ago = (
        judged(risen(note={"step": step, kind: ["a"]})).score
        for step, kind in ((AT, "added"), (AT - 20, "added"), (AT, "removed"), (AT - 80, "added"))
    )
    assert at_once > later > 0.5
    assert max(gone, long_ago) <= BLIND


def test_layers_that_were_thawed_are_a_cold_start() -> None:
    draw = np.random.default_rng(2)
    norm = np.exp(0.1 * draw.standard_normal(STEPS))
    thawed = judged(risen(**{"grad_norm/a": norm, "grad_norm/b": np.where(np.arange(STEPS) >= AT - 2, norm, 0.0)}))
    assert thawed.score > 0.5
    assert f"1 tensor had no gradient until step {AT - 2}: `b`." in thawed.evidence[0]
    rare = np.where(np.arange(STEPS) % 3 == 0, norm, 0.0)
    for never in (norm, np.zeros(STEPS), rare):
        assert judged(risen(**{"grad_norm/a": norm, "grad_norm/b": never})).score <= BLIND


@pytest.mark.parametrize("how", [SLOWLY, AT_ONCE, CLIFF])
def test_the_shape_of_a_loss_alone_makes_no_cold_start(how: str) -> None:
    score = judged(risen(how)).score
    assert score <= BLIND
    assert how == SLOWLY or score < 0.03


def test_a_loss_that_is_back_at_once_speaks_against_it() -> None:
    slow, quick = judged(risen(SLOWLY, (0.0, 0.06))), judged(risen(AT_ONCE, (0.0, 0.06)))
    assert quick.score < slow.score
    assert any("nothing had to be learnt" in line for line in quick.contradicts)


def test_a_burst_before_the_rise_speaks_against_it() -> None:
    draw = np.random.default_rng(1)
    update = 1e-3 * np.exp(0.1 * draw.standard_normal(STEPS))
    calm = judged(risen(update_norm=update.copy())).score
    update[AT - 1] *= 50
    assert judged(risen(update_norm=update)).score < calm


def test_without_a_loss_nobody_knows() -> None:
    assert cold_start(Run.from_arrays({"lr": np.ones(STEPS)}), EVENT) is None


def test_a_training_that_gets_new_classes_is_called_so() -> None:
    """Ten Gaussian blobs, three of which come late."""
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(10, 12, generator=draw)
    model = nn.Linear(12, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Monitor(model, optimizer, probes=[*FREE, Softmax(every=10)]) as monitor:
        for step in range(130):
            y = torch.randint(0, 7 if step < 90 else 10, (32,), generator=draw)
            x = centres[y] + torch.randn(32, 12, generator=draw)
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run, events = monitor.run, monitor.events
    event = next(event for event in events if event.kind == "spike" and event.raised >= 90)
    assert diagnose(run, event).best.name == "cold_start"
