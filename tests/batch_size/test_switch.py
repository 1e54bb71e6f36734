"""A switch of the batch changes what it says it does, marks the run, and undoes everything where it fails."""

from __future__ import annotations

import copy
import doctest
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import foreshock as fs
from foreshock.batch_size import moments as memory
from foreshock.batch_size.switch import switch
from foreshock.errors import UsageError
from foreshock.optim import S3

NOISE = SimpleNamespace(tr_sigma=400.0, g_sq=2.0, status="ok")
RATIO = (2 + 400 / 256) / (2 + 400 / 16)


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def trained(make, steps: int = 5, seed: int = 0):
    model = net(seed)
    optimizer = make(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        step(model, optimizer, generator)
    return model, optimizer, generator


def step(model, optimizer, generator, monitor=None):
    loss = model(torch.randn(8, 6, generator=generator)).square().mean()
    if monitor is not None:
        monitor.observe(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict())


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


KINDS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {}, {"momentum_buffer"}),
    "adam": (lambda p: torch.optim.Adam(p, lr=0.01), {"exp_avg_sq": 1.0}, {"exp_avg", "exp_avg_sq", "step"}),
    "amsgrad": (
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True), {"exp_avg_sq": 1.0, "max_exp_avg_sq": 1.0},
        {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"},
    ),
    "nadam": (lambda p: torch.optim.NAdam(p, lr=0.01), {"exp_avg_sq": 1.0}, {"exp_avg", "exp_avg_sq", "step"}),
    "adamax": (lambda p: torch.optim.Adamax(p, lr=0.01), {"exp_inf": 0.5}, {"exp_avg", "exp_inf", "step"}),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01), {"square_avg": 1.0}, {"square_avg", "step"}),
    "adafactor": (
        lambda p: torch.optim.Adafactor(p, lr=0.01), {"row_var": 1.0, "col_var": 1.0, "variance": 1.0}, {"step"},
    ),
    "s3": (lambda p: S3(p, lr=0.01), {"exp_avg_root": 0.5}, {"exp_avg", "exp_avg_root"}),
}  # fmt: skip


def test_the_examples_are_true():
    for name in ("switch", "moments"):
        importlib.import_module(f"foreshock.batch_size.{name}")
        assert doctest.testmod(sys.modules[f"foreshock.batch_size.{name}"]).failed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_rescaling_multiplies_second_moments_and_nothing_else(kind):
    make, powers, _ = KINDS[kind]
    _, optimizer, _ = trained(make)
    before = snapshot(optimizer)["state"]
    done = switch(optimizer, old=16, new=256, moments="rescale", noise=NOISE, lr_rule="constant")
    for place, state in snapshot(optimizer)["state"].items():
        for name, value in state.items():
            expected = before[place][name]
            if name in powers:
                expected = expected * RATIO ** powers[name]
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
            else:
                assert same(value, expected), name
    assert done.moment_factor == pytest.approx(RATIO if powers else 1.0) or not powers
    assert bool(done.tensors) == bool(powers)
    assert bool(done.remarks) != bool(powers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_is_a_fresh_start_of_the_optimizer(kind):
    make, _, slots = KINDS[kind]
    model, optimizer, _ = trained(make)
    switch(optimizer, old=16, new=256, moments="reset", lr_rule="constant")
    for state in optimizer.state.values():
        assert not any(float(torch.as_tensor(state[name]).abs().sum()) for name in slots if name in state)
    fresh_model = copy.deepcopy(model)
    fresh = make(fresh_model.named_parameters())
    a, b = (torch.Generator().manual_seed(9) for _ in range(2))
    for _ in range(3):
        step(model, optimizer, a)
        step(fresh_model, fresh, b)
    for mine, other in zip(model.parameters(), fresh_model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_an_optimizer_of_unknown_memory_begins_anew_when_reset():
    model, optimizer, generator = trained(lambda p: torch.optim.Rprop(p, lr=0.01))
    done = switch(optimizer, old=16, new=256, moments="reset")
    assert not optimizer.state
    assert any("taken away" in remark for remark in done.remarks)
    step(model, optimizer, generator)


def test_a_centred_variance_stays_one():
    _, optimizer, _ = trained(lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True), steps=30)
    before = copy.deepcopy(list(optimizer.state.values()))
    switch(optimizer, old=16, new=1600, moments="rescale", noise=NOISE)
    for state, old in zip(optimizer.state.values(), before, strict=True):
        var = state["square_avg"] - state["grad_avg"].square()
        assert bool((var >= -1e-12).all())
        was = old["square_avg"] - old["grad_avg"].square()
        torch.testing.assert_close(var, was / 100, rtol=1e-2, atol=1e-9)


def test_each_tensor_is_rescaled_by_its_own_noise():
    model, optimizer, _ = trained(KINDS["adam"][0])
    first, second = model[0].weight, model[2].weight
    before = {id(p): optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()}
    switch(optimizer, old=10, new=1000, moments="rescale", noise={first: (100.0, 1.0), "2.weight": (0.0, 1.0)})

    def factor(p):
        return (optimizer.state[p]["exp_avg_sq"] / before[id(p)]).mean().item()

    assert factor(first) == pytest.approx(0.1)
    assert factor(second) == pytest.approx(1.0)
    assert factor(model[0].bias) == pytest.approx((2 + 0.1) / (2 + 10))  # that of all that are known
    with pytest.raises(UsageError, match="no parameter"):
        switch(optimizer, old=10, new=1000, moments="rescale", noise={"9.weight": (1.0, 1.0)})


@pytest.mark.parametrize(
    ("kind", "noise", "rule", "factor"),
    [("adam", None, "auto", 4.0), ("s3", NOISE, "auto", 4.0), ("sgd", None, "auto", 16.0),
     ("sgd", NOISE, "auto", (1 + 200 / 16) / (1 + 200 / 256)), ("adam", NOISE, "adascale", 13.5 / 1.78125),
     ("adam", NOISE, "adam", (13.5 / 1.78125) ** 0.5), ("adam", 200.0, "adascale", 13.5 / 1.78125),
     ("sgd", None, 3.0, 3.0), ("sgd", None, "constant", 1.0)],
)  # fmt: skip
def test_learning_rates_follow_the_rule(kind, noise, rule, factor):
    _, optimizer, _ = trained(KINDS[kind][0])
    rate = optimizer.param_groups[0]["lr"]
    done = switch(optimizer, old=16, new=256, lr_rule=rule, noise=noise)
    assert done.lr_factor == pytest.approx(factor)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * factor)


def schedulers():
    lrs = torch.optim.lr_scheduler
    return {
        "step": lambda o: lrs.StepLR(o, 3, 0.5), "cosine": lambda o: lrs.CosineAnnealingLR(o, 20, eta_min=1e-3),
        "warm": lambda o: lrs.CosineAnnealingWarmRestarts(o, 7, eta_min=1e-3),
        "lambda": lambda o: lrs.LambdaLR(o, lambda n: 1 / (1 + n)),
        "one": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=30),
        "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 5, cycle_momentum=False),
        "linear": lambda o: lrs.LinearLR(o, 0.1, total_iters=9), "poly": lambda o: lrs.PolynomialLR(o, 25),
        "exp": lambda o: lrs.ExponentialLR(o, 0.9),
        "sequence": lambda o: lrs.SequentialLR(
            o, [lrs.LinearLR(o, 0.1, total_iters=5), lrs.CosineAnnealingLR(o, 20)], [5]
        ),
        "chain": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.9)]),
    }  # fmt: skip


@pytest.mark.parametrize("name", schedulers())
@pytest.mark.parametrize("tensor", [False, True])
def test_schedules_go_on_as_those_of_a_scaled_rate(name, tensor):
    rates = []
    for factor in (1.0, 3.0):
        weight = nn.Parameter(torch.ones(2))
        start = torch.tensor(0.05, dtype=torch.float64) if tensor else 0.05
        optimizer = torch.optim.SGD([weight], lr=start)
        scheduler = schedulers()[name](optimizer)
        found = []
        for at in range(22):
            if at == 4:
                switch(optimizer, old=1, new=3, lr_rule=factor, scheduler=scheduler)
            found.append(float(optimizer.param_groups[0]["lr"]) / (factor if at >= 4 else 1.0))
            weight.grad = torch.zeros(2)
            optimizer.step()
            scheduler.step()
        rates.append(found)
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)


@pytest.mark.parametrize("how", ["rescale", "reset"])
@pytest.mark.parametrize("kind", ["adam", "sgd", "s3"])
def test_everything_is_undone_where_it_fails(how, kind):
    class Broken:
        attempt = SimpleNamespace(marks={})
        step = 3

        def note(self, kind, **fields):
            raise OSError("the disk is full")

    _, optimizer, _ = trained(KINDS[kind][0])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    before, plan = snapshot(optimizer), copy.deepcopy(scheduler.state_dict())
    with pytest.raises(OSError, match="disk"):
        switch(optimizer, old=16, new=64, moments=how, noise=NOISE, monitor=Broken(), scheduler=scheduler)
    assert same(snapshot(optimizer), before)
    assert scheduler.state_dict() == plan
    assert Broken.attempt.marks == {}


@pytest.mark.parametrize(
    "arguments",
    [{"moments": "forget"}, {"moments": "rescale"}, {"lr_rule": "cubic"}, {"lr_rule": -1.0}, {"old": 0},
     {"lr_rule": "adascale"}, {"moments": "rescale", "noise": SimpleNamespace(tr_sigma=1, g_sq=1, status="gated")}],
)  # fmt: skip
def test_what_cannot_work_changes_nothing(arguments):
    _, optimizer, _ = trained(KINDS["adam"][0])
    before = snapshot(optimizer)
    with pytest.raises(UsageError):
        switch(optimizer, **({"old": 16, "new": 64} | arguments))
    assert same(snapshot(optimizer), before)


def test_an_undefined_square_counts_as_noise_alone():
    assert memory.ratio(5.0, -0.2, 10, 40) == pytest.approx(0.25)


def test_the_run_knows_of_a_switch():
    model, optimizer, generator = trained(KINDS["adam"][0])
    with fs.Monitor(model, optimizer) as monitor:
        for at in range(6):
            if at == 3:
                switch(optimizer, old=("dp8", 16), new=("dp4", 64), monitor=monitor, moments="rescale", noise=NOISE)
            step(model, optimizer, generator, monitor)
        run = monitor.run
    (note,) = [note for note in run.notes if note["kind"] == "batch_switched"]
    assert (note["step"], note["old"], note["new"], note["lr_factor"]) == (3, 16, 64, 2.0)
    assert note["strategy"] == ["dp8", "dp4"]
    steps, values = run.measured("batch_switched")
    assert steps.tolist() == [3]
    assert values.tolist() == [4.0]
    assert run["lr"][3] == pytest.approx(0.02)


@pytest.mark.parametrize("told", [True, False])
def test_a_guard_lets_a_declared_switch_pass(told):
    model = net(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    with fs.Monitor(model, optimizer, probes=()) as monitor:
        guard = fs.Guard(monitor)
        for at in range(60):
            if at == 50:
                switch(optimizer, old=16, new=256, moments="reset", monitor=monitor if told else None)
            loss = model(torch.randn(8, 6, generator=generator)).square().mean()
            monitor.observe(loss)
            loss.backward()
            guard.step()
            optimizer.zero_grad()
    stood = [action for action in guard.actions if action.step >= 50]
    assert bool(stood) != told, stood
