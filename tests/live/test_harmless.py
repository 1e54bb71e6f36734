"""Watching leaves a run bit for bit what it would have been, and what fails inside never ends it."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.errors import ForeshockWarning
from foreshock.monitor import Monitor
from foreshock.probes import DEFAULT, GradientCosine, GradientNorm, Moments, Update, every
from tests.live.nets import OPTIMIZERS, batches, net, same, state_of
from tests.nightly import thinned

Loop = Callable[[nn.Module, torch.optim.Optimizer, Any], None]

pytestmark = pytest.mark.usefixtures("each_sweep")


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(15):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def plain_and_flush(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    plain(model, optimizer, monitor)
    monitor.flush()


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for i, (x, y) in enumerate(batches(16)):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        (loss / 4).backward()
        if i % 4 == 3:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def bf16(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
            if monitor:
                monitor.observe(loss)
            loss.backward()
            optimizer.step()  # inside autocast: what is measured must not be cast either
        optimizer.zero_grad()


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for i, (x, y) in enumerate(batches(14)):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if i == 6:
            next(iter(model.parameters())).grad = None
            for param in model.parameters():
                if param.grad is not None:
                    param.grad[...] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def with_nan(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for i, (x, y) in enumerate(batches(10)):
        loss = F.cross_entropy(model(x), y) * (torch.nan if i == 5 else 1.0)
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def outcome(loop: Loop, kind: str, *, watched: bool, **settings: Any) -> list[Tensor]:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(1)
    with Monitor(model, optimizer, **settings) if watched else contextlib.nullcontext() as monitor:
        loop(model, optimizer, monitor)
    return state_of(model, optimizer)


@pytest.mark.parametrize("loop", [plain, accumulating, bf16, scaled, with_nan])
@pytest.mark.parametrize("kind", thinned(["sgd-momentum-nesterov", "adam-foreach", "adam-fused", "adam-loop", "adamw"]))
def test_a_watched_run_equals_an_unwatched_one_bit_for_bit(loop: Loop, kind: str) -> None:
    assert same(outcome(loop, kind, watched=False), outcome(loop, kind, watched=True))


@pytest.mark.parametrize("kind", thinned(sorted(OPTIMIZERS)))
def test_every_optimizer_steps_the_same_when_watched(kind: str) -> None:
    assert same(outcome(plain, kind, watched=False), outcome(plain, kind, watched=True))


@pytest.mark.parametrize("probe", [GradientNorm, Update, Moments, GradientCosine, lambda: every(3, Moments)])
def test_each_probe_alone_changes_nothing(probe: Any) -> None:
    expected = outcome(plain, "adam-l2", watched=False)
    assert same(expected, outcome(plain, "adam-l2", watched=True, probes=[probe()]))


def test_a_run_on_disk_equals_a_run_in_memory(tmp_path: Any) -> None:
    signals = []
    for place in (None, tmp_path / "a"):
        model = net()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        torch.manual_seed(1)
        with Monitor(model, optimizer, run=place) as monitor:
            plain(model, optimizer, monitor)
            run = monitor.run
        signals.append({name: run[name] for name in run.columns if not name.endswith("_seconds")})
    assert signals[0].keys() == signals[1].keys()
    for name, values in signals[0].items():
        np.testing.assert_array_equal(values, signals[1][name], err_msg=name)


def test_hooks_are_gone_afterwards_and_never_in_copies() -> None:
    model = net()
    optimizer = OPTIMIZERS["adam-loop"](model.parameters())
    with Monitor(model, optimizer) as monitor:
        plain(model, optimizer, monitor)
        pickle.dumps(optimizer)
        twin = copy.deepcopy(optimizer)
        assert "hook" not in str(optimizer.state_dict())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not getattr(twin, "_optimizer_step_post_hooks", {})


class FailsAt:
    def __init__(self, step: int, where: str) -> None:
        self.step, self.where, self.calls = step, where, 0

    @property
    def name(self) -> str:
        return "fragile"

    def __call__(self, step: Any) -> dict[str, Any]:
        self.calls += 1
        if step.number >= self.step:
            raise ZeroDivisionError("on purpose")
        return {"mine": float(step.number)}


def test_a_failing_probe_is_disabled_said_once_and_noted_while_training_goes_on() -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    torch.manual_seed(1)
    probe = FailsAt(4, "visit")
    with Monitor(model, optimizer, probes=[*DEFAULT, probe]) as monitor:
        message = r"(?s)'fragile' failed at step 4.*ZeroDivisionError: on purpose"
        with pytest.warns(ForeshockWarning, match=message) as said:
            plain(model, optimizer, monitor)
        run = monitor.run
    assert len(said) == 1
    assert probe.calls == 5
    assert run.measured("mine")[0].tolist() == [0, 1, 2, 3]
    assert len(run.measured("grad_norm")[0]) == 15
    assert [note["name"] for note in run.notes if note["kind"] == "probe_disabled"] == ["fragile"]
    assert same(state_of(model, optimizer), outcome(plain, "adamw", watched=False))


@pytest.mark.parametrize("method", ["begin", "visit", "settle", "before"])
def test_a_failing_part_of_the_sweep_leaves_the_others(method: str, each_sweep: str) -> None:
    if each_sweep == "compiled" and method == "visit":
        method = "fused"  # what is asked of a part in its place

    class Broken(Update):
        name = "broken"

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    part = Broken()
    setattr(part, method, fail)
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    torch.manual_seed(1)
    with Monitor(model, optimizer, probes=[GradientNorm, part, Moments]) as monitor:
        with pytest.warns(ForeshockWarning, match="(?s)disabled.*on purpose") as said:
            plain_and_flush(model, optimizer, monitor)
        run = monitor.run
    assert len(said) == 1
    assert np.isfinite(run["grad_norm"]).all()
    assert np.isfinite(run["v_ratio"][1:]).all()
    assert same(state_of(model, optimizer), outcome(plain, "adamw", watched=False))


def test_a_failing_detector_is_disabled_and_the_others_go_on() -> None:
    class Broken:
        def update(self, record: Any) -> list[Any]:
            raise KeyError("on purpose")

        def finish(self) -> list[Any]:
            return []

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with Monitor(model, optimizer, detectors=[Broken()]) as monitor, pytest.warns(ForeshockWarning, match="Broken"):
        plain_and_flush(model, optimizer, monitor)
    assert monitor.detectors == []


def test_warnings_that_are_errors_do_not_end_a_run() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Monitor(model, optimizer, probes=[FailsAt(0, "")]) as monitor:
            plain(model, optimizer, monitor)
        assert len(monitor.run) == 15
