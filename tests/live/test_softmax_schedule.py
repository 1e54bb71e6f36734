"""When the softmax is looked at, of which backward pass, and that a checkpoint goes on with the same readings."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.monitor import Monitor
from foreshock.numerics.absorption import absorption
from foreshock.probes import Softmax, rhythm
from tests.live.softmaxes import BATCH, CLASSES, LENGTH, Net, make, signals, watched

NO_SOFTMAX: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "regression": lambda model, x, y: F.mse_loss(model(x), torch.zeros(BATCH, LENGTH, CLASSES)),
    "binary": lambda model, x, y: F.binary_cross_entropy_with_logits(model(x), torch.ones(BATCH, LENGTH, CLASSES)),
    "attention": lambda model, x, y: (model(x).softmax(-1) @ torch.ones(CLASSES, 3)).square().mean(),
    "entropy": lambda model, x, y: model(x).softmax(-1).square().mean(),
    "no graph": lambda model, x, y: model(x).detach().logsumexp(-1).mean() + 0 * model.head.bias.sum(),
}


@pytest.mark.parametrize("name", sorted(NO_SOFTMAX))
def test_without_a_softmax_nothing_is_measured_and_it_is_looked_for_seldom(name: str) -> None:
    model, x, y = make(stretch=1.0)
    probe = Softmax()
    looks = []
    find = probe._await
    probe._await = lambda loss: looks.append(1) or find(loss)  # type: ignore[assignment, func-returns-value, method-assign]
    run = watched(model, lambda: NO_SOFTMAX[name](model, x, y), probe=probe, steps=40)
    assert not [column for column in run.columns if column.startswith("softmax")]
    assert len(looks) == 3


def test_readings_come_at_doubling_steps_then_at_a_fifth_of_the_monitors_and_more_often_at_work() -> None:
    for stretch, steps in ((1.0, [0, 1, 2, 4, 8, 16, 32, 52, 72]), (60.0, [0, *range(5, 80, 5)])):
        model, x, y = make(stretch=stretch)
        run = watched(model, lambda: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), steps=80, lr=1e-6)  # noqa: B023
        assert run.measured("softmax_wrong")[0].tolist() == steps


def test_readings_that_have_used_up_their_credit_become_rarer_but_never_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(rhythm.time, "perf_counter", lambda: now[0])
    kept, steps, cost = rhythm.Rhythm(20), [], 2e-3
    for step in range(20_000):
        now[0] += 3e-3
        if kept.due(step):
            steps.append(step)
            kept.spent(cost)
            kept.took(step, {"absorbed": 0.9, "residual": 0.5})
    assert max(b - a for a, b in pairwise(steps)) <= 60
    assert len(steps) * cost <= 1.5 + 0.02 * now[0] + cost


def test_one_reading_a_step_of_the_first_micro_batch() -> None:
    model, x, y = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Monitor(model, optimizer, probes=[Softmax]) as monitor:
        for part in (slice(0, 2), slice(2, 6)):
            loss = F.cross_entropy(model(x[part]).flatten(0, 1), y[part].flatten())
            monitor.observe(loss)
            (loss / 2).backward()
        optimizer.step()
    found = signals(monitor.run)
    assert found["wrong"] == pytest.approx(absorption(model(x[:2]).flatten(0, 1), y[:2].flatten()).wrong, rel=1e-5)


def test_the_last_backward_pass_through_a_kept_graph_is_the_one_that_counts() -> None:
    model, x, y = make()

    def then(loss: Tensor) -> None:
        torch.autograd.grad(loss * math.nan, list(model.parameters()), retain_graph=True, create_graph=True)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]

    found = signals(watched(model, lambda: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), then=then))
    assert found["absorbed"] == pytest.approx(absorption(make()[0](x).flatten(0, 1), y.flatten()).absorbed)


@pytest.mark.parametrize("inside", [True, False])
def test_a_backward_pass_in_the_optimizers_closure_is_read_as_one_before_it(inside: bool) -> None:
    runs = []
    for closed in (False, True):
        model, x, y = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def forward(monitor: Monitor, model: Net = model, x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            monitor.observe(loss)
            return loss

        with Monitor(model, optimizer, probes=[Softmax(every=1)]) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                early = None if closed and inside else forward(monitor)

                def closure(early: Tensor | None = early, monitor: Monitor = monitor) -> float:
                    loss = forward(monitor) if early is None else early
                    loss.backward()  # type: ignore[no-untyped-call]
                    return float(loss.detach())

                if closed:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
        runs.append([signals(monitor.run, row) for row in range(3)])
    assert runs[0] == runs[1]
    assert {"absorbed", "cosine", "sensitivity", "logit"} <= set(runs[0][0])


def test_a_loss_that_is_not_a_number_gives_no_reading_and_the_next_one_does() -> None:
    model, x, y = make()
    count = [0]

    def step() -> Tensor:
        count[0] += 1
        z = model(x).flatten(0, 1)
        return F.cross_entropy(z * (math.nan if count[0] == 1 else 1.0), y.flatten())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Monitor(model, optimizer, probes=[Softmax(every=1)]) as monitor:
        for _ in range(3):
            loss = step()
            monitor.observe(loss)
            loss.backward()
            for param in model.parameters():
                param.grad = torch.zeros_like(param)
            optimizer.step()
    run = monitor.run
    assert run.measured("softmax_absorbed")[0].tolist() == [1, 2]


def test_a_state_that_is_loaded_goes_on_with_the_same_readings() -> None:
    def train(model: nn.Module, monitor: Any, optimizer: Any, x: Tensor, y: Tensor, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            monitor.observe(loss)
            loss.backward()
            optimizer.step()

    model, x, y = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with Monitor(model, optimizer, probes=[Softmax]) as whole:
        train(model, whole, optimizer, x, y, 60)
    model, x, y = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with Monitor(model, optimizer, probes=[Softmax]) as first:
        train(model, first, optimizer, x, y, 37)
        state = first.state_dict()
    second = Monitor(model, optimizer, probes=[Softmax])
    second.load_state_dict(state)
    with second:
        train(model, second, optimizer, x, y, 23)
    for name in ("softmax_absorbed", "softmax_cosine", "softmax_sensitivity"):
        steps, values = whole.run.measured(name)
        early, late = first.run.measured(name), second.run.measured(name)
        assert steps.tolist() == [*early[0].tolist(), *late[0].tolist()]
        assert values.tolist() == [*early[1].tolist(), *late[1].tolist()]
