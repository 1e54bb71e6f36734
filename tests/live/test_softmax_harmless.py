"""A training whose softmax is watched at every step is bit for bit the training without."""

from __future__ import annotations

import contextlib
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foreshock.errors import ForeshockWarning
from foreshock.monitor import Monitor
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.repair import exact_gradient
from foreshock.probes import DEFAULT, Softmax, passing
from tests.live.nets import OPTIMIZERS, Net, batches, net, same, state_of
from tests.nightly import thinned

Loop = Callable[[nn.Module, torch.optim.Optimizer, Any], None]
Loss = Callable[[Tensor, Tensor], Tensor]


def training(loss_of: Loss) -> Loop:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
        for x, y in batches(12):
            loss = loss_of(model(x), y)
            if monitor:
                monitor.observe(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    return loop


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
    for x, y in batches(12):
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


def kept(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(12):
        z = model(x)
        loss = F.cross_entropy(z, y)
        if monitor:
            monitor.observe(loss)
        (penalty,) = torch.autograd.grad(loss, z, create_graph=True)
        (loss + penalty.square().sum()).backward(retain_graph=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def hooked(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    assert isinstance(model, Net)
    calls = [0, 0, 0]

    def count(place: int, grad: Tensor | None = None) -> Tensor | None:
        calls[place] += 1
        return None if grad is None else grad * 0.5

    model.head.weight.register_hook(lambda grad: count(0, grad))
    model.head.register_full_backward_hook(lambda *_: count(1))
    for x, y in batches(12):
        z = model(x)
        z.register_hook(lambda grad: count(2, grad))
        loss = F.cross_entropy(z, y)
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert calls == [12, 12, 12]


def checkpointed(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    for x, y in batches(10):
        loss = checkpoint(lambda x: F.cross_entropy(model(x), y), x, use_reentrant=False)  # noqa: B023
        if monitor:
            monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


LOOPS: dict[str, Loop] = {
    "stock": training(F.cross_entropy), "exact": training(cross_entropy),
    "repaired": training(lambda z, y: F.cross_entropy(exact_gradient(z, y), y)),
    "smoothed": training(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1)),
    "by hand": training(lambda z, y: (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).mean()),
    "with a z-loss": training(lambda z, y: F.cross_entropy(z, y) + 1e-3 * z.logsumexp(1).square().mean()),
    "not a number": training(lambda z, y: F.cross_entropy(z * torch.where(y.sum() > 14, torch.nan, 1.0), y)),
    "accumulating": accumulating, "bf16": bf16, "scaled": scaled, "kept": kept, "hooked": hooked,
    "checkpointed": checkpointed,
}  # fmt: skip


def outcome(loop: Loop, kind: str, *, watched: bool, **settings: Any) -> tuple[list[Tensor], Any]:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    torch.manual_seed(1)
    with Monitor(model, optimizer, **settings) if watched else contextlib.nullcontext() as monitor:
        loop(model, optimizer, monitor)
        run = monitor.run if monitor else None
    return state_of(model, optimizer), run


@pytest.mark.parametrize("kind", thinned(["adam-fused", "sgd-momentum-nesterov"]))
@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_training_whose_softmax_is_watched_is_the_same_bit_for_bit(name: str, kind: str) -> None:
    watched, run = outcome(LOOPS[name], kind, watched=True, probes=[Softmax(every=1)])
    assert same(watched, outcome(LOOPS[name], kind, watched=False)[0])
    assert not run.notes
    if name == "checkpointed":  # reading what it has saved would compute it again
        assert "softmax_wrong" not in run.columns
    else:
        assert len(run.measured("softmax_wrong")[0]) >= 5


@pytest.mark.parametrize("name", ["stock", "exact", "accumulating"])
def test_all_probes_together_leave_it_alone_too(name: str) -> None:
    probes = [*DEFAULT, Softmax(every=1)]
    watched, run = outcome(LOOPS[name], "adam-foreach", watched=True, probes=probes, every=2, max_overhead=math.inf)
    assert same(watched, outcome(LOOPS[name], "adam-foreach", watched=False)[0])
    assert len(run.measured("chi")[0]) >= 1
    assert len(run.measured("softmax_wrong")[0]) >= 5


def test_a_failure_in_a_hook_is_said_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(passing, "by_rows", fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched, run = outcome(LOOPS["stock"], "adam-fused", watched=True, probes=[Softmax])
    assert same(watched, outcome(LOOPS["stock"], "adam-fused", watched=False)[0])
    said = [each for each in caught if each.category is ForeshockWarning]
    assert len(said) == 1
    assert "planted" in str(said[0].message)
    assert [note["name"] for note in run.notes if note["kind"] == "probe_disabled"] == ["softmax"]


class Mark:
    def __call__(self, grad: Tensor) -> None:
        return None


def test_graphs_are_freed_with_their_loss_and_hooks_with_the_step() -> None:
    """Without the collector of cycles: a graph that hooks keep alive would hold its activations until it runs."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        with Monitor(model, optimizer, probes=[Softmax(every=1)]) as monitor:
            alive = []
            for x, y in batches(4):
                z = model(x)
                mark = Mark()
                z.register_hook(mark)  # lives as long as the graph
                alive.append(weakref.ref(mark))
                loss = F.cross_entropy(z, y)
                monitor.observe(loss)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                del z, loss, mark
            assert [each() for each in alive] == [None] * 4
    finally:
        gc.enable()


def test_a_model_with_a_listener_on_its_head_can_be_saved_and_copied() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 1.0 * self.weight, self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), Odd(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, probes=[Softmax("1", every=1)]) as monitor:
        for x, y in batches(3):
            loss = F.cross_entropy(model(x), y)
            monitor.observe(loss)
            loss.backward()
            optimizer.step()
        (hook,) = model[1]._forward_hooks.values()
        deaf = pickle.loads(pickle.dumps(hook))
        assert deaf(model[1], (torch.zeros(2, 4),), torch.zeros(2, 3)) is None
    probe = monitor._functions.probes[0]
    probe._named.stop()
    assert not model[1]._forward_hooks
