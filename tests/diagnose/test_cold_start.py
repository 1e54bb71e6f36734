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
from foreshock.diagnose.wording import number
from foreshock.monitor import Monitor
from foreshock.probes import FREE, Softmax
from foreshock.run import ABSENT, Event, Run

from .noting import noted

AT, STEPS = 100, 260
EVENT = Event("spike", AT + 1, AT, AT + 1, AT + 60, 3.0, 90.0, "loss")
SLOWLY, AT_ONCE, CLIFF = "slowly", "at once", "cliff"


def risen(
    how: str = SLOWLY, new: tuple[float, float] | None = None, note: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None, **columns: np.ndarray,
) -> Run:  # fmt: skip
    """Returns a loss that rises at step 100 and comes down in one of three ways.

    Args:
        how: which.
        new: share of the rows of new classes before and from then on, at every 20th step.
        note: fields of a note that tensors changed.
        rows: fields of a note that rows were chosen.
        columns: further signals.
    """
    at, draw = np.arange(STEPS), np.random.default_rng(0)
    since = at - AT
    shape = {SLOWLY: np.exp(-since / 30), AT_ONCE: 1.0 * (since == 0), CLIFF: 1.0 * (since < 14)}[how]
    loss = 1 + np.where(since >= 0, 3 * shape, 0) + 0.03 * draw.standard_normal(STEPS)
    if new is not None:
        share = np.where(since >= 0, new[1], new[0])
        columns["softmax_new"] = np.where(at % 20 == 12, share, ABSENT)
    notes = [("parameters_changed", note), ("rows_initialised", rows)]
    return noted({"loss": loss, **columns}, [{"kind": kind, **fields} for kind, fields in notes if fields])


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


MEANS = {
    "new": [5, 6, 7], "method": "class_mean", "first_loss": 4.1, "random_loss": 2.0, "old_accuracy": 0.0,
    "old_accuracy_before": 0.98,
}  # fmt: skip


def test_rows_with_which_the_loss_leaps_are_a_cold_start_and_the_ratio_of_first_losses_is_told() -> None:
    run = risen(rows={"step": AT, **MEANS})
    cause = judged(run)
    assert cause.score > 0.95
    loss = run["loss"]
    level = loss[AT - 50 : AT].mean()
    assert cause.evidence[0].startswith("3 rows of the head were chosen as class means before step 100, whose loss was")
    times = f"{number(loss[AT] / level, 2)} times the {number(level)} of the steps before"
    assert times in cause.evidence[0]
    assert "Foretold for them was 4.1, 2 times the 2 of random rows. 0" in cause.evidence[0]
    assert any("fs.init_new_rows(" in line for line in cause.advice)


@pytest.mark.parametrize("after", [20, 28])
def test_rows_that_began_calmly_are_not_blamed_for_what_came_later(after: int) -> None:
    rows = {"step": AT - after, **MEANS, "method": "ls", "first_loss": 1.02}
    note = {"step": AT - after, "resized": ["head.weight"]}
    assert judged(risen(note=note)).score > 0.5
    calm = judged(risen(note=note, rows=rows, new=(0.0, 0.5)))
    assert calm.score < 0.15
    assert any("were chosen by least squares" in line for line in (*calm.evidence, *calm.contradicts))


def test_rows_that_began_calmly_may_have_made_what_comes_with_their_first_updates() -> None:
    soon, later = (judged(risen(rows={"step": AT - late, **MEANS})).score for late in (3, 12))
    assert soon > 0.5 > 0.15 > later


def test_a_rise_that_goes_on_is_told_from_where_it_began() -> None:
    run = risen(rows={"step": AT - 15, **MEANS, "method": "ls", "first_loss": 1.9, "random_loss": 6.0})
    loss = run["loss"].copy()
    loss[AT - 15 : AT] += 0.9
    climbing = noted({"loss": loss}, run.notes)
    cause = judged(climbing, Event("spike", AT + 1, AT - 15, AT + 1, AT + 60, 3.0, 90.0, "loss"))
    assert cause.score > 0.95
    assert "before step 85, whose loss was" in cause.evidence[0]
    assert "rehearse more examples of the old classes" in cause.advice[0]
    assert "init_new_rows" not in cause.advice[0]


def test_a_note_that_says_little_is_read_all_the_same() -> None:
    cause = judged(risen(rows={"step": AT, "new": None, "method": 3, "first_loss": "much"}))
    assert cause.evidence[0].startswith("New rows of the head were chosen anew before step 100, whose loss was")
    assert "Foretold" not in cause.evidence[0]
    assert judged(risen(rows={"step": None, **MEANS})).score <= BLIND


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
