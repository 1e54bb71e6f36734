"""A history beside a guard: its snapshots, its refusals, its rollbacks; and beside a scaler."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from foreshock import Guard, Monitor, Snapshots, UsageError, policies
from foreshock.history import History
from tests.guard.loops import at
from tests.history.loops import Training, exact, sgd, spike


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


class Guarded(Training):
    """A training whose guard takes the steps, or is told of them."""

    guard: Guard | None = None
    attached = False

    def watch(self, stack, policy=None, *, shared=True, attached=False, knows=True):
        monitor = stack.enter_context(Monitor(self.model, self.optimizer, probes=()))
        known = self.scheduler if knows else None
        self.guard = Guard(monitor, policy or (lambda events, actions: policies.Proceed()), scheduler=known,
                           snapshots=Snapshots(every=10))  # fmt: skip
        self.attached = attached
        if attached:
            stack.enter_context(self.guard.attach())
        ring = self.guard.snapshots if shared else Snapshots(every=20)
        given = None if shared and knows else self.scheduler
        return stack.enter_context(History(monitor, snapshots=ring, scheduler=given))

    def step(self, batch, observe=None):
        if observe is None:  # through a window again, by the plain loop
            return super().step(batch)
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        observe(loss, batch=batch)
        loss.backward()
        if self.attached:
            self.optimizer.step()
            self.scheduler.step()
        else:
            self.guard.step()
            if not self.guard.along.schedulers:
                self.scheduler.step()
        return loss.item()


@pytest.mark.parametrize("knows", [True, False], ids=["with its scheduler", "without"])
@pytest.mark.parametrize("attached", [False, True], ids=["stepped", "attached"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_window_leads_through_a_guarded_training(stack, shared, attached, knows):
    training = Guarded(sgd)
    history = training.watch(stack, shared=shared, attached=attached, knows=knows)
    training.run(range(70), history.monitor.observe)
    window = history.window(spike(50))
    assert window.start in (20, 30)
    assert window.checkpoints
    stack.close()
    assert exact(window, training.step) == len(window.steps)


@pytest.mark.parametrize("attached", [False, True], ids=["stepped", "attached"])
def test_refused_attempts_are_marked_and_left_out(stack, attached):
    training = Guarded(sgd)
    history = training.watch(stack, at(45, policies.Skip()), attached=attached)
    training.run(range(70), history.monitor.observe)
    window = history.window(spike(50))
    assert [step for step in window.steps if not window.taken(step)] == [45]
    assert window.actions(45) == ("skip",)
    assert window.actions(46) == ()
    if not attached:  # where the loop steps its scheduler at a refused attempt too, that is not left out
        assert exact(window, training.step) == len(window.steps) - 1


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_no_window_leads_across_a_rollback(stack, shared):
    training = Guarded(sgd)
    history = training.watch(stack, at(55, policies.Rollback(before=35, skip=2)), shared=shared)
    training.run(range(140), history.monitor.observe)
    assert history.window(spike(54)).steps[-1] == 55
    window = history.window(spike(120))
    assert window.start > 55
    assert exact(window, training.step) == len([step for step in window.steps if window.taken(step)])
    with pytest.raises(UsageError, match="put back, loaded or given"):
        history.window(spike(56))


def test_steps_that_a_scaler_skips_are_marked(stack):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    monitor = stack.enter_context(Monitor(model, optimizer))
    history = stack.enter_context(History(monitor, scaler=scaler, snapshots=Snapshots(every=20)))
    for step in range(60):
        x = torch.randn(8, 4)
        loss = model(x).square().mean() * (float("inf") if step in (35, 41) else 1.0)
        monitor.observe(loss, batch=x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    window = history.window(spike(50))
    assert window.start == 20
    assert [step for step in window.steps if not window.taken(step)] == [35, 41]
    window.restore()
    assert scaler.get_scale() == 2.0**12
