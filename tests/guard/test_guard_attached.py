"""An attached guard in loops that call optimizer.step() themselves, as accelerate, transformers and Lightning do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from foreshock import Guard, Monitor, Snapshots, policies
from foreshock.errors import ForeshockWarning, StoppedError, UsageError
from foreshock.guard.refusal import skippable
from tests.guard.loops import adamw, at, batch, flat, net, same

MAKE = {
    "adamw": adamw,
    "adam fused": lambda model: torch.optim.Adam(model.parameters(), lr=5e-3, fused=True),
    "sgd momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "lr tensor": lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(5e-3), foreach=False),
}


class Wrapped:
    """An optimizer as accelerate hands it out: steps at the last micro-batch only, by a scaler if there is one."""

    def __init__(self, optimizer, accumulate, scaler=None):
        self.optimizer, self.accumulate, self.scaler, self.calls = optimizer, accumulate, scaler, 0

    def step(self):
        self.calls += 1
        if self.calls % self.accumulate:
            return
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def zero_grad(self):
        if self.calls % self.accumulate == 0:
            self.optimizer.zero_grad()


def accelerated(
    how, policy=None, *, make=adamw, steps=20, accumulate=1, scaler=None, nan=(), huge=(), every=5, leave_out=()
):
    """Trains in accelerate's order of calls; `how`: attached, by guard.step(), or without a guard."""
    model = net()
    optimizer = make(model)
    prepared = Wrapped(optimizer, accumulate, scaler)
    rates, states = [], []
    optimizer.register_step_pre_hook(lambda *_: rates.append(float(optimizer.param_groups[0]["lr"])))
    with Monitor(model, prepared, probes=[]) as monitor:
        guard = Guard(monitor, policy, snapshots=Snapshots(every=every)) if how != "plain" else None
        handle = guard.attach() if how == "attached" else None
        optimizer.register_step_pre_hook(lambda *_: rates.append(float(optimizer.param_groups[0]["lr"])))
        for step in range(steps):
            for part in range(accumulate):
                x, y = batch(step * accumulate + part)
                loss = nn.functional.mse_loss(model(x * (math.nan if step in nan else 1.0)), y)
                monitor.observe(loss)
                (loss if scaler is None else scaler.scale(loss)).backward()
                if step in huge:
                    for param in model.parameters():
                        param.grad.mul_(1e4)
                last = part + 1 == accumulate
                if how == "explicit" and last:
                    guard.step()
                elif step not in leave_out:
                    prepared.step()
                grads = [param.grad for param in model.parameters()]
                assert all(grad is not None for grad in grads)
                if last:
                    optimizer.zero_grad()
            states.append(flat(model, optimizer))
        if handle is not None:
            handle.remove()
    return {"states": states, "run": monitor.run, "guard": guard, "rates": rates, "optimizer": optimizer}


@pytest.mark.parametrize("name", MAKE)
def test_calm_steps_are_those_of_the_plain_loop(name):
    attached, plain = (accelerated(how, make=MAKE[name], accumulate=2) for how in ("attached", "plain"))
    assert all(map(same, attached["states"], plain["states"]))
    assert attached["guard"].actions == ()
    assert len(attached["run"].steps) == 20


@pytest.mark.parametrize("name", MAKE)
def test_a_refused_step_leaves_no_trace_and_is_recorded_as_refused(name):
    attached = accelerated("attached", make=MAKE[name], nan={12}, accumulate=2)
    plain = accelerated("plain", make=MAKE[name], leave_out={12}, accumulate=2, nan={12})
    assert same(attached["states"][11], attached["states"][12])
    assert same(attached["states"][-1], plain["states"][-1])
    run = attached["run"]
    assert run.steps.tolist() == list(range(20))
    assert run.steps[run["skipped"] > 0].tolist() == [12]
    assert [(each.kind, each.step) for each in run.actions] == [("skip", 12)]
    assert not run.taken[12]


@pytest.mark.parametrize(
    "action",
    [
        policies.Scale(factor=0.3), policies.ClipUpdate(limit=0.3), policies.CutLr(factor=0.1, steps=3),
        policies.Rollback(before=8, skip=2), policies.RepairMoments(), policies.RepairMoments(how="reset"),
        policies.Skip(),
    ],
    ids=lambda action: action.kind,
)  # fmt: skip
@pytest.mark.parametrize("name", ["adamw", "lr tensor"])
def test_every_action_does_what_it_does_by_guard_step(name, action):
    attached, explicit = (accelerated(how, at(12, action), make=MAKE[name]) for how in ("attached", "explicit"))
    assert attached["guard"].actions == explicit["guard"].actions
    assert all(map(same, attached["states"], explicit["states"]))
    rates = [float(each["optimizer"].param_groups[0]["lr"]) for each in (attached, explicit)]
    assert rates == [pytest.approx(5e-3)] * 2
    runs = [each["run"] for each in (attached, explicit)]
    for signal in {"loss", "lr", "skipped"} & set(runs[0].columns):
        np.testing.assert_array_equal(*(run[signal] for run in runs))


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_the_scale_is_not_taken_for_a_burst_and_bursts_are_found(fused):
    def make(model):
        return torch.optim.AdamW(model.parameters(), lr=5e-3, fused=fused)

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=25)

    attached = accelerated("attached", make=make, steps=40, scaler=scaler(), huge={33})
    plain = accelerated("plain", make=make, steps=33, scaler=scaler())
    assert all(map(same, attached["states"], plain["states"]))
    assert [(each.kind, each.step) for each in attached["guard"].actions] == [("skip", 33)]
    assert same(attached["states"][32], attached["states"][33])


@pytest.mark.parametrize("fused", [False, True])
def test_a_scalers_own_overflow_is_no_intervention(fused):
    def make(model):
        return torch.optim.AdamW(model.parameters(), lr=5e-3, fused=fused)

    runs = [
        accelerated(how, make=make, steps=14, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**126))
        for how in ("attached", "plain")
    ]  # fmt: skip
    assert all(map(same, runs[0]["states"], runs[1]["states"]))
    assert runs[0]["guard"].actions == ()


def test_in_transformers_order_schedulers_go_on_and_a_rollback_leaves_their_rates():
    """clip, step, scheduler (whether or not the step was refused), zero_grad: what Trainer does in each step."""
    model = net()
    optimizer = adamw(model)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 30)
    with Monitor(model, optimizer, probes=[]) as monitor:
        policy = policies.first_of(at(9, policies.CutLr(factor=0.5)), at(14, policies.Rollback(before=8)))
        with Guard(monitor, policy, snapshots=Snapshots(every=4)).attach() as guard:
            for step in range(30):
                x, y = batch(step)
                loss = nn.functional.mse_loss(model(x), y)
                monitor.observe(loss)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                model.zero_grad()
                expected = 5e-3 * (1.0 + math.cos(math.pi * (step + 1) / 30)) / 2
                assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-9)
    assert [each.kind for each in guard.actions] == ["cut_lr", "rollback"]


@pytest.mark.parametrize("by_name", [False, True])
def test_with_a_closure_the_step_is_judged_when_its_gradients_are_there(by_name):
    """Lightning gives each step a closure that zeroes, runs forward and backward, and clips."""

    def train(attached):
        model = net()
        optimizer = adamw(model)
        with Monitor(model, optimizer, probes=[]) as monitor:
            guard = Guard(monitor)
            handle = guard.attach() if attached else None
            values = []
            for step in range(16):
                def closure(step=step):
                    optimizer.zero_grad()
                    x, y = batch(step)
                    loss = nn.functional.mse_loss(model(x * (math.nan if step == 9 else 1.0)), y)
                    monitor.observe(loss)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    return loss.detach()

                if step == 9 and not attached:
                    continue
                values.append(float(optimizer.step(closure=closure) if by_name else optimizer.step(closure)))
            if handle is not None:
                handle.remove()
        return flat(model, optimizer), values, monitor.run, guard

    (attached, values, run, guard), (plain, usual, _, _) = train(True), train(False)
    assert same(attached, plain)
    assert values[:9] + values[10:] == usual
    assert math.isnan(values[9])
    assert [(each.kind, each.step) for each in guard.actions] == [("skip", 9)]
    assert run.steps[run["skipped"] > 0].tolist() == [9]


def test_a_stop_ends_the_loop_at_the_next_step():
    with pytest.raises(StoppedError, match="enough"):
        accelerated("attached", at(5, policies.Stop(reason="enough")), steps=8)


def test_a_step_that_raises_leaves_rates_and_gradients_as_they_were():
    model = net()
    optimizer = adamw(model)
    with Monitor(model, optimizer, probes=[]) as monitor:
        with Guard(monitor, at(0, policies.CutLr(factor=0.1))).attach():
            def closure():
                model(batch(0)[0]).mean().backward()
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                optimizer.step(closure)
            handle = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                optimizer.step()
            handle.remove()
        assert optimizer.param_groups[0]["lr"] == 5e-3
        assert all(param.grad is not None for param in model.parameters())
        monitor.observe(0.5)
        optimizer.step()  # detached


class Decaying(torch.optim.SGD):
    """Decays what has no gradient as well."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.mul_(0.99)
        return super().step(closure)


class Counting(torch.optim.SGD):
    """Counts its calls in its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
        return super().step(closure)


class Demanding(torch.optim.Optimizer):
    """Wants a gradient for each tensor, and something that nobody else can give it."""

    def __init__(self, params, secret):
        super().__init__(params, {"lr": 0.1})
        self.secret = secret

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["calls"] = self.state[param].get("calls", 0) + 1
                param.mul_(0.99)
                if param.grad is not None:
                    param.sub_(group["lr"] * param.grad)


@pytest.mark.parametrize("kind", [Decaying, Counting])
def test_an_optimizer_that_moves_without_gradients_is_refused_with_the_way_out(kind):
    model = net()
    optimizer = kind(model.parameters(), lr=0.1)
    before = flat(model, optimizer)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor)
        with pytest.raises(UsageError, match=r"guard\.step\(\) in place of optimizer\.step\(\)"):
            guard.attach()
        assert same(before, flat(model, optimizer))
        monitor.observe(0.5)
        guard.step()  # the way out


def test_an_optimizer_that_cannot_be_tried_is_undone_after_each_refusal():
    def make(model):
        return Demanding(model.parameters(), secret=object())

    assert skippable(make(net())) is None
    attached = accelerated("attached", at(12, policies.Skip()), make=make)
    plain = accelerated("plain", make=make, leave_out={12})
    assert same(attached["states"][11], attached["states"][12])
    assert same(attached["states"][-1], plain["states"][-1])


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adamax", "NAdam", "RAdam", "Adadelta",
                                  "ASGD", "Rprop", "Adafactor", "Muon"])  # fmt: skip
def test_torchs_optimizers_can_be_attached_to_and_are_not_touched_by_the_trial(name):
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = getattr(torch.optim, name)([weight], lr=0.1)
    stream = torch.random.get_rng_state()
    assert skippable(optimizer) is True
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert torch.equal(weight, torch.ones(3, 3))


def test_calls_that_cannot_work_are_errors():
    model = net()
    optimizer = adamw(model)
    monitor = Monitor(model, optimizer, probes=[])
    guard = Guard(monitor)
    with guard.attach():
        with pytest.raises(UsageError, match="not attached: use `with Monitor"):
            optimizer.step()
        with monitor:
            with pytest.raises(UsageError, match=r"optimizer\.step\(\)"):
                guard.step()
            with pytest.raises(UsageError, match="attached"):
                guard.attach()
    optimizer.step()


def test_an_action_that_fails_is_a_warning_and_the_loop_goes_on():
    def broken(events, actions):
        if events.step > 0:
            raise RuntimeError("a mistake")
        return policies.Proceed()

    with pytest.warns(ForeshockWarning, match="a mistake") as caught:
        attached = accelerated("attached", broken)
    assert len(caught) == 1
    assert same(attached["states"][-1], accelerated("plain")["states"][-1])
