"""The guard in every kind of loop: accumulation, clipping, schedulers, averages, odd tensors and steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from foreshock import Guard, Monitor, Snapshots, policies
from foreshock.errors import UsageError
from tests.guard.loops import adamw, at, batch, flat, net, same


@pytest.mark.parametrize("bad", [-1, 7])
def test_accumulated_and_clipped_gradients_are_judged_once_a_step(bad):
    def train(guarded):
        model = net()
        optimizer = adamw(model)
        with Monitor(model, optimizer, probes=[]) as monitor:
            guard = Guard(monitor) if guarded else None
            for step in range(20):
                for part in range(4):
                    x, y = batch(4 * step + part)
                    x = x * math.nan if (step, part) == (bad, 2) else x
                    loss = nn.functional.mse_loss(model(x), y) / 4
                    monitor.observe(loss)
                    loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if guard is not None:
                    guard.step()
                elif step != bad:
                    optimizer.step()
                optimizer.zero_grad()
        return flat(model, optimizer), monitor.run, guard

    (guarded, run, guard), (plain, _, _) = train(True), train(False)
    assert same(guarded, plain)
    assert run.steps.tolist() == list(range(20))
    assert set(run["micro_batches"].tolist()) == {4.0}
    assert [each.step for each in guard.actions] == ([bad] if bad >= 0 else [])


class Shadow:
    """Averaged weights as other libraries have them: an object with update()."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.updates = model, 0
        self.weights = [each.detach().clone() for each in model.parameters()]

    def update(self) -> None:
        self.updates += 1
        for mine, live in zip(self.weights, self.model.parameters(), strict=True):
            mine.lerp_(live.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.weights = state["updates"], list(state["weights"])


def guarded_run(policy: Any, steps: int, make: Callable[..., dict[str, Any]], **settings: Any) -> dict[str, Any]:
    model = net()
    optimizer = adamw(model)
    parts = make(model, optimizer)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, policy, **parts, **settings)
        for step in range(steps):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "guard": guard, **parts}


def test_several_schedulers_and_averages_step_together_and_go_back_together():
    def make(model, optimizer):
        schedulers = [lr_scheduler.StepLR(optimizer, 5), lr_scheduler.ExponentialLR(optimizer, 0.99)]
        return {"scheduler": schedulers, "ema": [AveragedModel(model), Shadow(model)]}

    policy = lambda events, actions: policies.Skip() if events.step % 3 == 1 else policies.Proceed()  # noqa: E731
    skips = guarded_run(policy, 9, make)
    assert [each.last_epoch for each in skips["scheduler"]] == [6, 6]
    assert (int(skips["ema"][0].n_averaged), skips["ema"][1].updates) == (6, 6)
    back = guarded_run(at(14, policies.Rollback(before=12)), 20, make, snapshots=Snapshots(every=10))
    before = back["guard"].actions[0].before
    gone = 14 - before + 1
    assert 0 < before <= 12
    assert [each.last_epoch for each in back["scheduler"]] == [20 - gone] * 2
    assert (int(back["ema"][0].n_averaged), back["ema"][1].updates) == (20 - gone,) * 2


def test_one_cycle_goes_its_way_by_the_steps_that_were_taken():
    def make(model, optimizer):
        return {"scheduler": lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=21)}

    run = guarded_run(lambda events, actions: policies.Skip() if events.step < 4 else policies.Proceed(), 24, make)
    assert run["scheduler"].last_epoch == 20
    assert run["optimizer"].param_groups[0]["lr"] == pytest.approx(0.01 / 25 / 1e4)


def test_a_scheduler_that_needs_a_metric_is_the_loops_to_step_and_the_guards_to_put_back():
    def make(model, optimizer):
        return {"scheduler": lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)}

    model = net()
    optimizer = adamw(model)
    plateau = make(model, optimizer)["scheduler"]
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(8, policies.Rollback(before=3)), scheduler=plateau, snapshots=Snapshots(every=3))
        for step in range(9):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            if guard.step().takes_step:
                plateau.step(1.0)  # never better, so halved each time but the first
            optimizer.zero_grad()
            if step == 7:
                assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 * 0.5**7)
    done = guard.actions[0].before
    assert done <= 3
    assert plateau.last_epoch == max(0, done - 1) or done == 0  # the newest snapshot is from before its step
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-3 * 0.5 ** max(0, plateau.last_epoch - 1))


def test_without_a_scheduler_a_rollback_leaves_the_learning_rate_to_whoever_sets_it():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(5e-3), foreach=False)
    optimizer.param_groups[0]["betas"] = (0.9, 0.95)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(8, policies.Rollback(before=3)), snapshots=Snapshots(every=3))
        for step in range(9):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"].mul_(0.9)
    assert guard.actions[0].kind == "rollback"
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(5e-3 * 0.9**9)


def test_averages_without_a_model_are_refused():
    model = net()
    optimizer = adamw(model)
    monitor = Monitor(None, optimizer)
    with pytest.raises(UsageError, match="ema"):
        Guard(monitor, ema=AveragedModel(model))


def test_a_learning_rate_that_is_a_tensor_is_cut_in_place_and_comes_back():
    model = net()
    rate = torch.tensor(5e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=False)
    seen = []
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(2, policies.CutLr(factor=0.5, steps=2)))
        optimizer.register_step_pre_hook(lambda *_: seen.append(float(rate)))
        for step in range(6):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen == pytest.approx([5e-3, 5e-3, 2.5e-3, 2.5e-3, 5e-3, 5e-3])


@pytest.mark.slow
def test_a_compiled_step_is_guarded_like_any_other():
    def train(guarded):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(5e-3), foreach=False)
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        with Monitor(model, optimizer, probes=[]) as monitor:
            guard = Guard(monitor) if guarded else None
            for step in range(6):
                x, y = batch(step)
                loss = nn.functional.mse_loss(model(x), y)
                if step == 4:
                    loss = loss * math.nan
                monitor.observe(loss)
                loss.backward()
                if guard is not None:
                    guard.step()
                elif step != 4:
                    optimizer.step()
                optimizer.zero_grad()
        return flat(model, optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about what it cannot compile
        compiled, plain = train(True), train(False)
        torch.compiler.reset()
    assert same(compiled, plain)


@pytest.mark.parametrize("make", [torch.optim.SparseAdam, torch.optim.SGD])
def test_sparse_gradients_are_judged_and_refused(make):
    model = nn.Embedding(20, 4, sparse=True)
    optimizer = make(model.parameters(), lr=0.1)
    draw = torch.Generator().manual_seed(0)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor)
        for step in range(30):
            loss = model(torch.randint(0, 20, (16,), generator=draw)).square().mean()
            monitor.observe(loss)
            (loss * (math.nan if step in (20, 21) else 1.0)).backward()
            before = flat(model, optimizer)
            assert guard.step().takes_step == (step not in (20, 21))
            if step == 20:
                assert same(before, flat(model, optimizer))
            optimizer.zero_grad()
    assert [each.step for each in guard.actions] == [20, 21]
