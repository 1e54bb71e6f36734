"""The guard under a GradScaler: an overflow is the scaler's business, a batch of NaN is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from foreshock import Guard, Monitor
from tests.guard.loops import adamw, batch, flat, net, same

ADAMW = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def train_scaled(
    kind: str, *, guarded: bool, overflows: frozenset[int] = frozenset(), nan: int = -1, clip: bool = False,
    steps: int = 30,
) -> dict[str, Any]:  # fmt: skip
    """Trains under a GradScaler that doubles its scale every 7 steps; some batches' gradients overflow."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, **ADAMW[kind])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.98)
    average = AveragedModel(model)
    scales, states, trackers, losses = [], [], [], []
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, scheduler=scheduler, scaler=scaler, ema=average) if guarded else None
        for step in range(steps):
            x, y = batch(step)
            if step == nan:
                x = x * math.nan
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            scaler.scale(loss).backward()
            if step in overflows:
                model[0].weight.grad[0, 0] = math.inf
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            if guard is not None:
                guard.step()
            else:
                scaler.step(optimizer)
                scaler.update()
                if step not in overflows:
                    scheduler.step()
                    average.update_parameters(model)
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
            trackers.append(scaler._get_growth_tracker())
            states.append([*flat(model, optimizer), *flat(average, optimizer)[:4]])
            losses.append(float(loss.detach()))
    return {
        "losses": losses, "states": states, "scales": scales, "trackers": trackers, "lr": scheduler.last_epoch,
        "averaged": int(average.n_averaged), "guard": guard, "run": monitor.run,
    }  # fmt: skip


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", ADAMW)
def test_with_a_scaler_calm_steps_and_overflows_are_those_of_an_unguarded_loop(kind, clip):
    overflows = frozenset({0, 1, 12, 20})
    with_guard, without = (
        train_scaled(kind, guarded=each, overflows=overflows, clip=clip) for each in (True, False)
    )  # fmt: skip
    for part in ("losses", "scales", "trackers", "lr", "averaged"):
        assert with_guard[part] == without[part], part
    assert all(map(same, with_guard["states"], without["states"]))
    assert with_guard["lr"] == 26
    assert with_guard["guard"].actions == ()  # an overflow is the scaler's own business
    run = with_guard["run"]
    assert run.steps.tolist() == list(range(30))
    assert {int(step) for step in run.steps[run["skipped"] > 0]} == overflows


@pytest.mark.parametrize("kind", ADAMW)
def test_a_batch_of_nan_is_no_overflow_and_leaves_no_trace(kind):
    run = train_scaled(kind, guarded=True, nan=15)
    before, after = (run["states"][step] for step in (14, 15))
    assert same(before, after)
    assert run["scales"][15] == run["scales"][14]
    assert run["trackers"][15] == run["trackers"][14]
    assert run["lr"] == run["averaged"] == 29
    assert [(each.kind, each.step) for each in run["guard"].actions] == [("skip", 15)]


@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_what_an_overflow_returns_says_that_no_step_was_taken(kind):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW[kind])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    taken = []
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, scaler=scaler)
        for step in range(4):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            scaler.scale(loss).backward()
            if step == 2:
                model[0].bias.grad[0] = math.nan
            taken.append(guard.step().takes_step)
            optimizer.zero_grad()
    assert taken == [True, True, False, True]
    assert guard.actions == ()


def test_a_scaler_that_is_switched_off_is_none():
    model = net()
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, scaler=scaler)
        for step in range(3):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x * (math.nan if step == 1 else 1.0)), y)
            monitor.observe(loss)
            scaler.scale(loss).backward()
            assert guard.step().takes_step == (step != 1)
            optimizer.zero_grad()


def test_a_batch_of_nan_under_a_scaler_leaves_running_statistics_alone_and_an_overflow_does_not_touch_them():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, scaler=scaler)
        for step in range(12):
            before = [each.clone() for each in model.buffers()]
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x * (math.nan if step == 7 else 1.0)), y)
            monitor.observe(loss)
            scaler.scale(loss).backward()
            if step == 9:
                model[0].bias.grad[0] = math.inf
            seen = [each.clone() for each in model.buffers()]
            guard.step()
            assert same(before if step == 7 else seen, [*model.buffers()])
            optimizer.zero_grad()
    assert [(each.kind, each.step) for each in guard.actions] == [("skip", 7)]
