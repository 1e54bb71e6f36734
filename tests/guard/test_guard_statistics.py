"""What a refused batch has done to running statistics is put back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from foreshock import Guard, Monitor, Snapshots, policies
from tests.guard.loops import adamw, at, batch, flat, net, same


def norm_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


class Drifting(nn.Module):
    """A module with statistics of its own kind, and a mask that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("mask", torch.ones(100))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.level.lerp_(x.detach().mean(), 0.1)
        return x - self.level.clone()


@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("make", [norm_net, lambda: nn.Sequential(Drifting(), net())])
def test_a_refused_batch_leaves_no_trace_in_running_statistics(make, first):
    """With a NaN batch, and with one that is merely refused; the run is that in which the batches never came."""
    if first == 0 and make is not norm_net:
        pytest.skip("statistics that are not torch's own are known from their first change on")
    refused = {first, 12}

    def train(guarded):
        model = make()
        optimizer = adamw(model)
        policy = policies.first_of(policies.default(), at(12, policies.Skip()))
        with Monitor(model, optimizer, probes=[]) as monitor:
            guard = Guard(monitor, policy) if guarded else None
            for step in range(16):
                if not guarded and step in refused:
                    continue
                x, y = batch(step)
                x = x * math.nan if step == first else x * 100.0 if step == 12 else x
                loss = nn.functional.mse_loss(model(x), y)
                monitor.observe(loss)
                loss.backward()
                _ = guard.step() if guard is not None else optimizer.step()
                optimizer.zero_grad()
        return flat(model, optimizer), guard

    (guarded, guard), (plain, _) = train(True), train(False)
    assert same(guarded, plain)
    assert [(each.kind, each.step) for each in guard.actions] == [("skip", step) for step in sorted(refused)]


def test_statistics_that_a_bad_batch_was_let_into_are_put_back_with_the_whole_state():
    """A policy lets the batch pass: the next refusal finds them poisoned, and an earlier state is put back."""
    model = norm_net()
    optimizer = adamw(model)
    shipped = policies.default()

    def lenient(events, actions):
        return policies.Proceed() if events.step == 25 else shipped(events, actions)

    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, lenient, snapshots=Snapshots(every=10))
        for step in range(40):
            x, y = batch(step)
            if step == 25:
                with torch.no_grad():
                    model[1].running_mean.fill_(math.nan)
            loss = nn.functional.mse_loss(model(x), y) * (math.nan if step == 26 else 1.0)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    assert all(bool(each.isfinite().all()) for each in model.buffers())
    assert guard.actions[0].kind == "rollback"


def test_statistics_loaded_after_the_guard_was_made_are_not_overwritten_by_older_ones():
    other = norm_net()
    for step in range(5):
        other(batch(step)[0])
    model = norm_net()
    optimizer = adamw(model)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(0, policies.Skip()))
        model.load_state_dict(other.state_dict())
        x, y = batch(7)
        loss = nn.functional.mse_loss(model(x), y)
        monitor.observe(loss)
        loss.backward()
        guard.step()
    assert int(model[1].num_batches_tracked) == 6  # of the loaded ones, and this batch's
    other(x)
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
