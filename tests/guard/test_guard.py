"""The guard: calm steps are the optimizer's own, refused ones leave no trace, faults do no lasting harm."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from foreshock import Guard, Monitor, Snapshots, policies
from foreshock.errors import ForeshockWarning, StoppedError, UsageError
from tests.guard.loops import adamw, data, flat, net, same, train
from tests.nightly import thinned

OPTIMIZERS = {
    "adamw": adamw,
    "adamw loop": lambda model: torch.optim.AdamW(model.parameters(), lr=5e-3, foreach=False),
    "adam fused": lambda model: torch.optim.Adam(model.parameters(), lr=5e-3, fused=True),
    "sgd momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=2e-3),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=2e-2),
}


@cache
def unguarded(steps):
    return train(guarded=False, steps=steps)


def at(step, action):
    """A policy that does one thing at one step."""
    return lambda events, actions: action if policies.seen(events).step == step else policies.Proceed()


@pytest.mark.parametrize("name", thinned(OPTIMIZERS))
def test_a_calm_run_is_bit_for_bit_the_unguarded_one(name):
    with_guard, without = (train(guarded=each, make=OPTIMIZERS[name]) for each in (True, False))
    assert with_guard.losses == without.losses
    assert same(with_guard.state, without.state)
    assert with_guard.guard.actions == ()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_parameters_and_state_untouched(name):
    model = net()
    optimizer = OPTIMIZERS[name](model)
    x, y = data()
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(3, policies.Skip(reason="a test")))
        for step in range(5):
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            if step == 3:
                for param in model.parameters():
                    param.grad.fill_(math.nan)
            before = flat(model, optimizer)
            action = guard.step()
            optimizer.zero_grad()
            assert same(before, flat(model, optimizer)) == (step == 3)
            assert action.takes_step == (step != 3)
    assert [(each.kind, each.step) for each in guard.actions] == [("skip", 3)]
    assert monitor.run["skipped"][3] == 1.0
    assert monitor.run.actions[0].reason == "a test"


@pytest.mark.parametrize("name", ["adamw", "adam fused", "sgd momentum", "adafactor"])
@pytest.mark.parametrize("factor", [0.5, 0.1])
def test_a_scaled_update_is_that_share_of_the_whole_one(name, factor):
    moved = {}
    for action in (policies.Proceed(), policies.Scale(factor=factor)):
        model = net().double()
        optimizer = OPTIMIZERS[name](model)
        x, y = (each.double() for each in data())
        with Monitor(model, optimizer, probes=[]) as monitor:
            guard = Guard(monitor, at(3, action))
            for _ in range(4):
                loss = nn.functional.mse_loss(model(x), y)
                monitor.observe(loss)
                loss.backward()
                before = [param.detach().clone() for param in model.parameters()]
                guard.step()
                optimizer.zero_grad()
        moved[action.kind] = [param.detach() - old for param, old in zip(model.parameters(), before, strict=True)]
    for whole, part in zip(moved["proceed"], moved["scale_update"], strict=True):
        torch.testing.assert_close(part, factor * whole, rtol=1e-6, atol=1e-15)


def test_a_clipped_update_is_no_longer_than_the_limit_and_points_the_same_way():
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = (each.double() for each in data())
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, lambda events, actions: policies.ClipUpdate(limit=0.02))
        loss = nn.functional.mse_loss(model(x), y)
        monitor.observe(loss)
        loss.backward()
        before = [param.detach().clone() for param in model.parameters()]
        whole = [-0.1 * param.grad for param in model.parameters()]
        guard.step()
    shortened = 0
    for param, old, full in zip(model.parameters(), before, whole, strict=True):
        part, most = param.detach() - old, 0.02 * 0.1
        share = min(1.0, most / float(full.square().mean().sqrt()))
        torch.testing.assert_close(part, share * full, rtol=1e-6, atol=1e-15)
        shortened += share < 1.0
    assert shortened > 0


def test_the_learning_rate_is_cut_for_so_many_steps_and_returns_to_the_schedule():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    x, y = data()
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, at(2, policies.CutLr(factor=0.5, steps=3)), scheduler=scheduler)
        for _ in range(7):
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    usual = [0.1 * 0.9**step for step in range(7)]
    cut = [1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0]
    assert seen == pytest.approx([rate * part for rate, part in zip(usual, cut, strict=True)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**7)


def test_scheduler_and_averages_move_only_where_the_optimizer_moved():
    model = net()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    average = AveragedModel(model)
    x, y = data()
    with Monitor(model, optimizer, probes=[]) as monitor:
        skip = lambda events, actions: policies.Skip() if events.step % 2 else policies.Proceed()  # noqa: E731
        guard = Guard(monitor, skip, scheduler=scheduler, ema=average)
        for _ in range(6):
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    assert scheduler.last_epoch == 3
    assert int(average.n_averaged) == 3


def test_a_rollback_puts_back_every_bit_and_the_training_goes_on_with_other_batches():
    model = net()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.99)
    x, y = data()
    states = {}
    with Monitor(model, optimizer, probes=[]) as monitor:
        policy = at(33, policies.Rollback(before=25, skip=2, reason="a test"))
        guard = Guard(monitor, policy, scheduler=scheduler, snapshots=Snapshots(every=10))
        for step in range(40):
            states[step] = flat(model, optimizer), scheduler.last_epoch
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
            if step == 33:
                back = guard.actions[-1].before
                assert back <= 25
                assert same(flat(model, optimizer), states[back][0])
                assert scheduler.last_epoch == states[back][1]
            if step in (34, 35):
                assert same(flat(model, optimizer), states[back][0])
    assert [(each.kind, each.step) for each in guard.actions] == [("rollback", 33), ("skip", 34), ("skip", 35)]
    assert monitor.run.steps.tolist() == list(range(40))
    assert all(each <= back or each > 36 for each in guard.snapshots.steps)


def nan_element(step, model, optimizer):
    if step == 100:
        model[0].weight.grad[0, 0] = math.nan


def huge_gradient(step, model, optimizer):
    if step == 100:
        for param in model.parameters():
            param.grad.mul_(1000.0)


def raised_rate(step, model, optimizer):
    optimizer.param_groups[0]["lr"] = 5e-3 * (60 if 100 <= step < 104 else 1)


def flipped_bit(step, model, optimizer):
    if step == 100:
        with torch.no_grad():
            model[2].weight[0, 3] = 1e20


def lost_state(step, model, optimizer):
    if step == 100:
        optimizer.state.clear()


def zeroed_moments(step, model, optimizer):
    if step == 100:
        for state in optimizer.state.values():
            state["exp_avg_sq"].zero_()


@pytest.mark.parametrize(
    ("fault", "answers"),
    [
        (nan_element, {"skip"}), (huge_gradient, {"skip"}), (raised_rate, {"cut_lr"}),
        (flipped_bit, {"skip", "rollback"}), (lost_state, {"repair_moments"}), (zeroed_moments, {"repair_moments"}),
    ],
)  # fmt: skip
def test_a_fault_does_no_lasting_harm_and_is_answered_once(fault, answers):
    clean = unguarded(400)
    guarded = train(steps=400, fault=fault)
    usual, ended = (sum(each.losses[-100:]) / 100 for each in (clean, guarded))
    assert ended < 1.1 * usual
    assert {each.kind for each in guarded.guard.actions} == answers
    assert len(guarded.guard.actions) <= 4
    assert all(100 <= each.step <= 104 for each in guarded.guard.actions)


def test_a_policy_that_fails_on_the_way_is_a_warning_and_the_steps_are_taken():
    def broken(events, actions):
        if policies.seen(events).step > 3:
            raise RuntimeError("a mistake")
        return policies.Proceed()

    without = train(guarded=False, steps=20)
    with pytest.warns(ForeshockWarning, match="a mistake") as caught:
        guarded = train(policy=broken, steps=20)
    assert len(caught) == 1
    assert same(without.state, guarded.state)


def test_a_policy_that_answers_no_action_on_the_way_is_a_warning():
    answers = {2: "skip"}
    with pytest.warns(ForeshockWarning, match="returns an Action"):
        train(policy=lambda events, actions: answers.get(policies.seen(events).step, policies.Proceed()), steps=4)


@pytest.mark.parametrize("policy", [policies.ling, lambda events, actions: None, lambda events: policies.Proceed()])
def test_a_policy_that_is_wrong_from_its_first_call_is_refused(policy):
    model = net()
    with pytest.raises(UsageError, match=r"Guard\(policy"):
        Guard(Monitor(model, adamw(model)), policy)


def test_a_stop_is_an_answer_first_and_an_error_if_the_loop_goes_on():
    with pytest.raises(StoppedError, match="enough is enough"):
        train(policy=at(5, policies.Stop(reason="enough is enough")), steps=20)


def test_bad_arguments_are_refused_by_name():
    model = net()
    optimizer = adamw(model)
    with pytest.raises(UsageError, match=r"Guard\(monitor\)"):
        Guard(optimizer)
    monitor = Monitor(model, optimizer)
    with pytest.raises(UsageError, match="policies"):
        Guard(monitor, "ling")
    other = adamw(net())
    for scheduler in (3, optimizer, torch.optim.lr_scheduler.StepLR(other, 1)):
        with pytest.raises(UsageError, match="scheduler"):
            Guard(monitor, scheduler=scheduler)
    with pytest.raises(UsageError, match=r"snapshots.*Snapshots is needed, got int"):
        Guard(monitor, snapshots=5)
    with pytest.raises(UsageError, match=r"data.*Requeue is needed, got list"):
        Guard(monitor, data=[])


@pytest.mark.parametrize("cut", thinned([103, 30, 99, 118]))
def test_a_resumed_guard_goes_on_as_if_it_had_not_stopped(cut, tmp_path):
    """The checkpoint is written after `cut` steps and read into new objects, before and after the faults."""

    def faults(step, model, optimizer):
        for fault in (flipped_bit, raised_rate):
            fault(step, model, optimizer)

    x, y = data()

    def run(first, last, saved=None):
        model = net()
        optimizer = adamw(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50, gamma=0.9)
        monitor = Monitor(model, optimizer, probes=[])
        if saved is not None:
            monitor.load_state_dict(saved["monitor"])
        with monitor:
            guard = Guard(monitor, scheduler=scheduler, snapshots=Snapshots(every=20))
            if saved is not None:
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
                scheduler.load_state_dict(saved["scheduler"])
                guard.load_state_dict(saved["guard"])
            for step in range(first, last):
                rows = torch.randint(0, len(x), (64,), generator=torch.Generator().manual_seed(step))
                loss = nn.functional.mse_loss(model(x[rows]), y[rows])
                monitor.observe(loss)
                loss.backward()
                faults(step, model, optimizer)
                guard.step()
                optimizer.zero_grad()
            torch.save(
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(), "monitor": monitor.state_dict(), "guard": guard.state_dict(),
                },
                tmp_path / "checkpoint",
            )  # fmt: skip
            return flat(model, optimizer), guard.actions

    whole, actions = run(0, 140)
    run(0, cut)
    resumed, again = run(cut, 140, torch.load(tmp_path / "checkpoint", weights_only=True))
    assert {"rollback", "cut_lr"} <= {each.kind for each in actions}
    assert again == actions
    assert same(whole, resumed)


def test_a_guard_whose_monitor_is_not_attached_says_so():
    model = net()
    guard = Guard(Monitor(model, adamw(model)))
    with pytest.raises(UsageError, match="with Monitor"):
        guard.step()


@pytest.mark.parametrize("given", [True, False])
def test_a_leap_that_a_given_scheduler_makes_is_meant(given):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 20.0 if step >= 40 else 1.0)
    x, y = data()
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, scheduler=scheduler if given else None)
        for _ in range(50):
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
            _ = None if given else scheduler.step()
    assert {each.kind for each in guard.actions} == (set() if given else {"cut_lr"})


def test_a_state_that_the_loop_loads_itself_is_no_fault():
    model = net()
    optimizer = adamw(model)
    x, y = data()
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor)
        for step in range(60):
            if step == 5:
                early = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            if step == 50:
                model.load_state_dict(early[0])
                optimizer.load_state_dict(early[1])
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    assert not any(each.kind == "repair_moments" for each in guard.actions)


def test_acceptances_without_a_cause_are_written_down():
    guarded = train(policy=at(3, policies.Proceed(reason="a test")), steps=5)
    assert [(each.kind, each.reason) for each in guarded.guard.actions] == [("proceed", "a test")]


def test_a_standing_bound_is_written_down_once():
    guarded = train(policy=policies.clip_update(1.0), steps=12)
    assert [(each.kind, each.step) for each in guarded.guard.actions] == [("clip_update", 0)]
