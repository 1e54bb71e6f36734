"""Nothing that a training could notice is left behind, bit for bit, also when the closure raises."""

from __future__ import annotations

import collections
import gc
import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from foreshock.curvature import Hessian, edge, eigsh
from foreshock.curvature.harmless import harmless
from foreshock.errors import UsageError
from tests.curvature.zoo import case

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ROUTES = ("kept", "fresh", "differences", "central")


class Net(nn.Module):
    """Batch norm, dropout, a buffer that counts calls, a buffer that is replaced at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.drop = nn.Dropout(0.2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last_mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = torch.tanh(self.norm(self.first(x)))
        self.last_mean = hidden.detach().mean(0)
        return self.last(self.drop(hidden))


def state_of(model: nn.Module, params) -> dict:
    """Everything that has to be the same afterwards."""
    return {
        "torch": torch.get_rng_state().clone(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),
        "numpy position": np.random.get_state()[2],
        "parameters": [(id(p), p._version, p.requires_grad, p.data_ptr(), p.detach().clone()) for p in params],
        "gradients": [(id(p.grad), None if p.grad is None else (p.grad._version, p.grad.clone())) for p in params],
        "buffers": [(name, id(b), b._version, b.clone()) for name, b in model.named_buffers()],
        "modes": [module.training for module in model.modules()],
        "hooks": [dict(getattr(m, table)) for m in model.modules() for table in HOOKS],
        "parameter hooks": [None if p._backward_hooks is None else dict(p._backward_hooks) for p in params],
        "grad mode": torch.is_grad_enabled(),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
    }


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def assert_same(before: dict, after: dict) -> None:
    for key in before:
        assert same(before[key], after[key]), key


@pytest.fixture
def training():
    """A net in the middle of a training: some gradients there, one frozen parameter, mixed modes, hooks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, y = Net(), torch.randn(9, 4), torch.randn(9, 2)
    model.drop.eval()
    F.mse_loss(model(x), y).backward()
    model.last.bias.requires_grad_(False)
    model.first.bias.grad = None
    params = [p for p in model.parameters() if p.requires_grad]
    params[0].register_hook(lambda g: None)
    model.norm.register_forward_hook(lambda *_: None)
    return model, params, x, y


def restless(model: nn.Module, x: Tensor, y: Tensor):
    """A closure that touches whatever it can: random numbers, modes, gradients, hooks, requires_grad."""

    def closure() -> Tensor:
        torch.rand(3), random.random(), np.random.rand()
        loss = F.mse_loss(model(x), y)
        loss.backward(retain_graph=True)
        model.zero_grad(set_to_none=False)
        model.last.eval()
        model.last.bias.requires_grad_(True)
        model.last.register_forward_hook(lambda *_: None)
        return loss

    return closure


@pytest.mark.parametrize("route", ROUTES)
def test_products_leave_no_trace(training, route) -> None:
    model, params, x, y = training
    before = state_of(model, params)
    hessian = Hessian(restless(model, x, y), params, route=route, deterministic="fix")
    hessian @ hessian.start()
    hessian @ [torch.ones_like(p) for p in params]
    _ = hessian.notes, hessian.gradient(), hessian.block(params[:1]) @ params[:1]
    assert_same(before, state_of(model, params))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_closure_that_raises_leaves_no_trace(training, route, at) -> None:
    model, params, x, y = training
    before = state_of(model, params)
    calls = []
    inner = restless(model, x, y)

    def closure() -> Tensor:
        calls.append(1)
        loss = inner()
        if len(calls) == at:
            raise KeyError("this one")
        return loss

    hessian = Hessian(closure, params, route=route, deterministic="fix")
    try:
        for _ in range(3):
            hessian @ hessian.start()
    except KeyError:
        pass
    else:
        assert route == "kept"
        assert at > 2
    assert_same(before, state_of(model, params))


def test_a_refused_closure_leaves_no_trace(training) -> None:
    model, params, x, y = training
    before = state_of(model, params)
    with pytest.raises(UsageError, match="BatchNorm1d"):
        _ = Hessian(restless(model, x, y), params).loss
    assert_same(before, state_of(model, params))


def test_a_live_loss_leaves_no_trace(training) -> None:
    model, params, x, y = training
    loss = F.mse_loss(model(x), y)
    before = state_of(model, params)
    hessian = Hessian(loss, params)
    hessian @ hessian.start()
    assert_same(before, state_of(model, params))
    assert loss.grad_fn is not None
    model.zero_grad()
    loss.backward()


def test_a_training_with_products_is_the_training_without(training) -> None:
    def run(probed: bool) -> list[Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
        params = list(model.parameters())
        optimizer = torch.optim.Adam(params, lr=0.01)
        loader = DataLoader(TensorDataset(torch.randn(20, 4), torch.randn(20, 2)), batch_size=5, shuffle=True)
        for _ in range(2):
            for x, y in loader:
                loss = F.mse_loss(model(x), y)
                if probed:
                    live = Hessian(loss, params, model=model)
                    live @ live.start()
                    for route in ROUTES:
                        other = Hessian(
                            lambda x=x, y=y: F.mse_loss(model(x), y), params, route=route, deterministic="fix"
                        )
                        other @ other.start()
                    whole = Hessian(lambda b: F.mse_loss(model(b[0]), b[1]), params, data=loader, deterministic="fix")
                    whole @ whole.start()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return [*model.state_dict().values(), torch.rand(3)]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_the_generators_of_a_loader_and_its_sampler_stay_where_they_are() -> None:
    generator = torch.Generator().manual_seed(1)
    data = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=3, shuffle=True, generator=generator)
    w = torch.ones(2, requires_grad=True)
    before = generator.get_state()
    hessian = Hessian(lambda batch: (batch[0] @ w).square().mean(), [w], data=data)
    hessian @ torch.ones(2)
    assert torch.equal(generator.get_state(), before)


def hooked(live: bool):
    """Returns a loss with every kind of hook on its graph, and the count of their calls."""
    calls: collections.Counter[str] = collections.Counter()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        x = torch.randn(5, 4)
    params = list(net.parameters())
    params[0].register_hook(lambda g: calls.update(["parameter"]))
    params[0].register_post_accumulate_grad_hook(lambda p: calls.update(["accumulated"]))
    net[1].register_full_backward_hook(lambda *_: calls.update(["module"]))
    net[1].register_full_backward_pre_hook(lambda *_: calls.update(["module, before"]))

    def closure() -> Tensor:
        loss = net(x).square().mean()
        loss.register_hook(lambda g: calls.update(["loss"]))
        loss.grad_fn.register_hook(lambda *_: calls.update(["node"]))
        loss.grad_fn.register_prehook(lambda g: calls.update(["node, before"]))
        return loss

    return closure, params, calls


@pytest.mark.parametrize("live", [True, False])
def test_backward_hooks_are_not_called_by_products_and_are_called_by_the_users_backward(live) -> None:
    closure, params, calls = hooked(live)
    loss = closure()
    hessian = Hessian(loss if live else closure, params)
    hessian @ hessian.start()
    assert not calls
    if not live:
        for route in ("fresh", "central"):
            Hessian(closure, params, route=route) @ hessian.start()
        assert not calls
    loss.backward()
    assert set(calls) == {"parameter", "accumulated", "module", "module, before", "loss", "node", "node, before"}
    assert set(calls.values()) == {1}


def test_a_hook_that_changes_gradients_does_not_change_the_hessian() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    handle = w.register_hook(lambda g: g * 100)
    assert torch.equal(Hessian(lambda: (w**3).sum(), [w]) @ torch.ones(2), torch.tensor([6.0, 12.0]))
    assert torch.equal(Hessian((w**3).sum(), [w]) @ torch.ones(2), torch.tensor([6.0, 12.0]))
    handle.remove()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_recomputing_a_checkpoint_moves_no_buffers(live, reentrant) -> None:
    if live and reentrant:
        pytest.skip("such a graph has no second derivative")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        x = torch.randn(6, 4)
    params = list(model.parameters())

    def closure() -> Tensor:
        return checkpoint(model, x, use_reentrant=reentrant, preserve_rng_state=True).square().mean()

    loss = closure() if live else None
    before = state_of(model, params)
    hessian = Hessian(loss, params, model=model) if live else Hessian(closure, params, deterministic="fix")
    first = hessian @ hessian.start()
    assert torch.equal(hessian @ hessian.start(), first)
    assert_same(before, state_of(model, params))


@pytest.mark.parametrize("route", ["kept", "differences"])
def test_the_operator_lets_go_of_everything_when_it_is_dropped(training, route) -> None:
    """No cycle keeps the graph: memory is back without the garbage collector."""
    model, params, x, y = training
    model.eval()
    seen = []

    def closure() -> Tensor:
        loss = F.mse_loss(model(x), y)
        seen.append(weakref.ref(loss))
        return loss

    gc.disable()
    try:
        hessian = Hessian(closure, params, route=route)
        hessian @ hessian.start()
        del hessian
        assert all(found() is None for found in seen)
    finally:
        gc.enable()


def test_harmless_puts_back_values_on_request() -> None:
    w = torch.ones(3, requires_grad=True)
    version = w._version

    def stumble() -> None:
        with harmless([w], values=True), torch.no_grad():
            w.add_(1)
            raise KeyError

    with pytest.raises(KeyError):
        stumble()
    assert torch.equal(w.detach(), torch.ones(3))
    assert w._version == version


def test_a_closure_that_changes_parameters_is_refused() -> None:
    w = torch.ones(3, requires_grad=True)

    def closure() -> Tensor:
        with torch.no_grad():
            w.mul_(0.9)
        return w.square().sum()

    with pytest.raises(UsageError, match=r"changes params\[0\].*in place"):
        _ = Hessian(closure, [w]).loss


def test_the_graph_of_the_users_own_backward_survives_buffers_that_are_put_back() -> None:
    """Batch norm saves its running statistics for backward; a version bumped on them would break it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        x = torch.randn(6, 4)
    params = list(model.parameters())
    loss = model(x).square().mean()
    Hessian(lambda: model(x).square().mean(), params, deterministic="fix") @ [torch.ones_like(p) for p in params]
    loss.backward()
    assert all(p.grad is not None for p in params)


@pytest.mark.parametrize("how", ["live", "closure"])
def test_a_graph_is_let_go_of_without_the_garbage_collector(how: str) -> None:
    """In a cycle the activations of every reading would stay until the collector happens to run."""
    loss = case("tanh, mse")
    optimizer = torch.optim.Adam(loss.params)
    held: list[weakref.ref[Tensor]] = []

    def computed() -> Tensor:
        value = loss.closure()
        held.append(weakref.ref(value))
        return value

    gc.collect()
    gc.disable()
    try:
        edge(computed() if how == "live" else computed, optimizer)
        eigsh(Hessian(computed() if how == "live" else computed, loss.params))
        assert held
        assert [each() for each in held] == [None] * len(held)
    finally:
        gc.enable()
