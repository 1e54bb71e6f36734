"""A training with its curvature watched is bit for bit the training without."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foreshock.monitor import Monitor
from foreshock.probes import DEFAULT, Curvature, approach, cadence
from tests.live.nets import OPTIMIZERS, Net, batches, net, same, state_of

Loop = Callable[[nn.Module, torch.optim.Optimizer, Any], None]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(12):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def cleared_late(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(10):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)  # the gradients of the step before are still there
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for i, (x, y) in enumerate(batches(24)):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        (loss / 4).backward()
        if i % 4 == 3:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def bf16(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(10):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
            if monitor:
                monitor.observe(loss)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    for i, (x, y) in enumerate(batches(12)):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss)
        scaler.scale(loss if i != 6 else loss * torch.inf).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def with_nan(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for i, (x, y) in enumerate(batches(9)):
        loss = F.cross_entropy(model(x), y) * (torch.nan if i == 5 else 1.0)
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def checkpointed(reentrant: bool) -> Loop:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
        assert isinstance(model, Net)
        for x, y in batches(10):
            inner = checkpoint(model.body, x.requires_grad_(), use_reentrant=reentrant)
            loss = F.cross_entropy(model.head(inner), y)
            if monitor:
                monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def hooked(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    """Hooks that change gradients and count their calls, as clipping and logging libraries have them."""
    assert isinstance(model, Net)
    calls = [0, 0, 0]

    def halve(grad: Tensor) -> Tensor:
        calls[0] += 1
        return grad * 0.5

    def accumulated(param: Tensor) -> None:
        calls[1] += 1

    def ran(*_: Any) -> None:
        calls[2] += 1

    model.head.weight.register_hook(halve)
    model.body[0].weight.register_post_accumulate_grad_hook(accumulated)
    model.body[4].register_full_backward_hook(ran)
    plain(model, optimizer, monitor)
    assert calls == [12, 12, 12]


def recomputing(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(12):

        def again(x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss, closure=again)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def holding(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(12):
        loss = F.cross_entropy(model(x), y)
        if monitor:
            monitor.observe(loss, closure=lambda b: F.cross_entropy(model(b[0]), b[1]), batch=(x, y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        x.zero_()  # what is held is a copy


LOOPS: dict[str, Loop] = {
    "plain": plain, "cleared late": cleared_late, "accumulating": accumulating, "bf16": bf16, "scaled": scaled,
    "with nan": with_nan, "checkpointed": checkpointed(False), "checkpointed, reentrant": checkpointed(True),
    "hooked": hooked, "recomputing": recomputing, "holding": holding,
}  # fmt: skip


def outcome(loop: Loop, kind: str, *, watched: bool, **settings: Any) -> tuple[list[Tensor], Any]:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(1)
    with Monitor(model, optimizer, **settings) if watched else contextlib.nullcontext() as monitor:
        loop(model, optimizer, monitor)
        run = monitor.run if monitor else None
    return state_of(model, optimizer), run


ALWAYS = ("adam-fused", "adamw", "rmsprop", "sgd-momentum-nesterov")  # the others nightly


@pytest.mark.parametrize("kind", [pytest.param("sgd-momentum-nesterov", marks=pytest.mark.slow), "adam-fused"])
@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_training_whose_curvature_is_watched_is_the_same_bit_for_bit(name: str, kind: str) -> None:
    alarmed = Curvature(every=2)
    probes = [*DEFAULT, alarmed]
    watched, run = outcome(LOOPS[name], kind, watched=True, probes=probes, max_overhead=math.inf)
    assert same(watched, outcome(LOOPS[name], kind, watched=False)[0])
    if name == "checkpointed, reentrant":  # torch cannot differentiate through it by grad(); there is no closure
        assert [note["name"] for note in run.notes if note["kind"] == "probe_unavailable"] == ["curvature"]
    else:
        assert len(run.measured("chi")[0]) >= 2, run.notes


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes an alarm of the first reading, for good, and lambda_max(H) due at every third one."""
    monkeypatch.setattr(cadence, "NEAR", -math.inf)
    monkeypatch.setattr(cadence, "CONFIRMED", 0)
    monkeypatch.setattr(cadence, "RELIEVED", math.inf)
    monkeypatch.setattr(approach, "TOP_EVERY", 3)
    monkeypatch.setattr(approach, "KAPPA", 1e-6)  # so that what would keep chi below is always asked for


@pytest.mark.parametrize(
    "kind", [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(OPTIMIZERS)]
)
def test_every_optimizer_is_left_alone_in_alarm_too(kind: str, alarmed: None) -> None:
    watched, run = outcome(recomputing, kind, watched=True, probes=[Curvature(every=2)], max_overhead=math.inf)
    assert same(watched, outcome(recomputing, kind, watched=False)[0])
    assert len(run.measured("chi")[0]) >= 6, run.notes
    assert {"chi_gradient", "hessian_top", "chi_overlap", "chi_denominator"} <= set(run.columns)


@pytest.mark.parametrize("kind", [pytest.param("sgd-momentum-nesterov", marks=pytest.mark.slow), "adam-foreach"])
@pytest.mark.parametrize("name", ["accumulating", "bf16", "holding", "hooked", "plain"])
def test_what_is_measured_on_the_approach_changes_nothing(name: str, kind: str, alarmed: None) -> None:
    watched, run = outcome(LOOPS[name], kind, watched=True, probes=[Curvature(every=1)], max_overhead=math.inf)
    assert same(watched, outcome(LOOPS[name], kind, watched=False)[0])
    measured = {"hessian_top", "chi_overlap", "chi_denominator", "chi_mode_loss"}
    if kind != "sgd-momentum-nesterov":
        measured |= {"chi_crossing", "stable_eps", "stable_floor"}
    if name == "holding":
        measured |= {"chi_growth", "chi_growth_landscape"}
    assert measured <= set(run.columns), sorted(measured - set(run.columns))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inside(x).view(1, 2, -1, 12).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v).reshape(-1, 8)[:12])  # type: ignore[no-any-return]


@pytest.mark.parametrize("loop", [plain, recomputing])
def test_fused_attention_is_noted_and_measured_only_with_a_closure(loop: Loop) -> None:
    states, runs = [], []
    for watched in (True, False):
        torch.manual_seed(0)
        model = Attentive()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        probes = [Curvature(every=2)]
        monitor = Monitor(model, optimizer, probes=probes, max_overhead=9e9)
        with monitor if watched else contextlib.nullcontext() as watching:
            loop(model, optimizer, watching)
        states.append(state_of(model, optimizer))
        runs.append(monitor)
    assert same(*states)
    run = runs[0].run
    notes = [note for note in run.notes if note["kind"] == "probe_unavailable"]
    if loop is plain:
        assert len(notes) == 1
        assert "twice" in notes[0]["reason"]
        assert "chi" not in run.columns
    else:
        assert not notes
        assert set(run.measured("probe_batch")[1].tolist()) == {2.0}
