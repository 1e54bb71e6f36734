"""Tracking chi of trainings at their edge of stability: as near to the truth as asked, cheap, harmless, resumable."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from foreshock.curvature import EdgeTracker, edge
from foreshock.errors import UsageError
from tests.curvature.test_edge import bowl

torch.set_num_threads(1)
Maker = Callable[[nn.Module], Optimizer]
# optimizer, steps after which the training is at its edge
AT_THE_EDGE: dict[str, tuple[Maker, int]] = {
    "gd": (lambda model: optim.SGD(model.parameters(), lr=1.0), 40),
    "momentum": (lambda model: optim.SGD(model.parameters(), lr=0.6, momentum=0.9), 150),
    "rmsprop": (lambda model: optim.RMSprop(model.parameters(), lr=1e-3, eps=1e-7), 100),
    "adam": (lambda model: optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.99), eps=1e-7), 250),
}


class Digits:
    """The first 500 digits, pixels / 16 less their means, squared error on a tanh network; full batch."""

    def __init__(self, seed: int, maker: Maker, dtype: torch.dtype = torch.float32) -> None:
        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images[:500] / 16.0).to(dtype)
        self.x, self.y = x - x.mean(0), F.one_hot(torch.from_numpy(labels[:500]), 10).to(dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(
                nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
            ).to(dtype)
        self.optimizer = maker(self.model)

    def loss(self) -> Tensor:
        return 0.5 * (self.model(self.x) - self.y).square().sum(1).mean()

    def step(self) -> None:
        self.optimizer.step()

    def prepare(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()

    def go(self, steps: int) -> None:
        for _ in range(steps):
            self.prepare()
            self.step()

    def tracker(self, **settings: object) -> EdgeTracker:
        return EdgeTracker(self.optimizer, self.loss, **settings)  # type: ignore[arg-type]

    def truth(self) -> float:
        found = edge(self.loss, self.optimizer, tol=1e-4, forms=False)
        assert found.converged
        return found.chi


def followed(
    name: str, seed: int, every: int, readings: int, checks: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns relative errors of the readings at the edge, their products, and whether they said to be converged."""
    maker, until = AT_THE_EDGE[name]
    run = Digits(seed, maker)
    run.go(until)
    tracker, errors, products, said = run.tracker(every=every), [], [], []
    apart = max(1, readings // checks)
    for i in range(readings * every):
        run.prepare()
        reading = tracker.step()
        assert (reading is not None) == (i % every == 0)
        if reading is not None and i:
            products.append(reading.matvecs)
            if i // every % apart == 0:
                errors.append(abs(reading.chi / run.truth() - 1))
                said.append(reading.converged)
        run.step()
    return np.array(errors), np.array(products), np.array(said)


@pytest.mark.parametrize(("name", "every"), [("adam", 1), ("momentum", 10), ("gd", 25)])
def test_readings_at_the_edge_are_within_two_percent(name: str, every: int) -> None:
    errors, products, said = followed(name, 0, every, 40 if every == 1 else 11)
    assert np.mean(errors <= 0.02) >= 0.9  # one may miss
    assert errors.max() < 0.1
    assert said.mean() > 0.9
    assert products.mean() <= (8 if every == 1 else 16)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 10, 25])
@pytest.mark.parametrize("name", AT_THE_EDGE)
def test_long_trainings_are_followed(name: str, every: int) -> None:
    """Over the readings of three trainings together."""
    found = [followed(name, seed, every, 300 if every == 1 else 1000 // every, checks=40) for seed in (1, 2, 3)]
    errors, products, said = (np.concatenate(each) for each in zip(*found, strict=True))
    assert np.mean(errors <= 0.02) >= 0.95
    assert np.mean(errors[said] <= 0.04) >= 0.98
    assert products.mean() <= (8 if every == 1 else 16)


# ---- state


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_tracker_goes_on_as_if_it_had_not_stopped(every: int) -> None:
    def readings(interrupted: bool) -> list[tuple[float, int]]:
        run = Digits(0, AT_THE_EDGE["gd"][0])
        tracker, found = run.tracker(every=every), []
        for i in range(14):
            if interrupted and i == 7:
                saved = copy.deepcopy(tracker.state_dict())
                tracker = run.tracker(every=every)
                tracker.load_state_dict(saved)
            run.prepare()
            reading = tracker.step()
            if reading is not None:
                found.append((reading.chi, reading.matvecs))
            run.step()
        return found

    assert readings(interrupted=True) == readings(interrupted=False)


def test_a_state_survives_being_written_and_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = Digits(0, AT_THE_EDGE["adam"][0])
    tracker = run.tracker()
    tracker.read()
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    other = run.tracker()
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert other.read().chi == tracker.read().chi


def test_the_state_before_a_first_reading_is_one_too() -> None:
    run = Digits(0, AT_THE_EDGE["adam"][0])
    tracker = run.tracker()
    tracker.load_state_dict(run.tracker().state_dict())
    assert tracker.last is None
    assert tracker.read() is tracker.last


# ---- harmless


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("forms", [False, True])
def test_training_goes_on_bitwise_as_if_nothing_had_been_read(name: str, forms: bool) -> None:
    def end(tracked: bool) -> list[Tensor]:
        run = Digits(0, AT_THE_EDGE[name][0])
        torch.manual_seed(5)
        tracker = run.tracker(every=2, forms=forms)
        for _ in range(8):
            run.prepare()
            before = [param.grad for param in run.model.parameters()]
            if tracked:
                tracker.step()
            assert all(param.grad is grad for param, grad in zip(run.model.parameters(), before, strict=True))
            run.step()
        state = [v for each in run.optimizer.state.values() for v in each.values() if isinstance(v, Tensor)]
        return [*(param.detach() for param in run.model.parameters()), *state, torch.rand(1)]

    assert all(torch.equal(one, two) for one, two in zip(end(True), end(False), strict=True))


# ---- what changes on the way


@pytest.mark.parametrize("factor", [0.1, 3.0])
def test_a_changed_lr_is_seen_at_once(factor: float) -> None:
    run = Digits(0, AT_THE_EDGE["adam"][0])
    run.go(30)
    tracker = run.tracker(tol=1e-3)
    before = tracker.read()
    run.optimizer.param_groups[0]["lr"] *= factor
    after = tracker.read()
    assert after.chi == pytest.approx(factor * before.chi, rel=5e-3)
    assert after.max_stable_lr == pytest.approx(before.max_stable_lr, rel=5e-3)
    assert after.matvecs <= 8


@pytest.mark.parametrize("seed", range(3))
def test_a_jump_to_other_parameters_is_recovered_from(seed: int) -> None:
    run, elsewhere = (Digits(s, AT_THE_EDGE["momentum"][0]) for s in (seed, seed + 10))
    run.go(60)
    elsewhere.go(200)
    tracker = run.tracker()
    tracker.read()
    with torch.no_grad():
        for param, other in zip(run.model.parameters(), elsewhere.model.parameters(), strict=True):
            param.copy_(other)
    tracker.step()
    assert tracker.step() is None
    assert tracker.read().chi == pytest.approx(run.truth(), rel=0.04)  # twice tol


@pytest.mark.parametrize("wrong", range(1, 4))
def test_a_tracker_that_follows_a_lower_eigenvalue_finds_back(wrong: int) -> None:
    """Loaded with the eigenvector of another eigenvalue exactly, on a loss that does not change."""
    params, a, loss = bowl(wrong)
    optimizer = optim.SGD(params, lr=0.1)
    tracker = EdgeTracker(optimizer, loss, every=1)
    tracker.read()
    state = tracker.state_dict()
    vector = torch.linalg.eigh(a)[1][:, -1 - wrong]
    state["direction"] = [piece.view_as(p) for piece, p in zip(vector.split([6, 3]), params, strict=True)]
    tracker.load_state_dict(state)
    found = [tracker.read().chi for _ in range(6)]
    assert found[-1] == pytest.approx(0.3, rel=0.02)


def test_gradients_of_the_step_about_to_be_taken_enter_the_denominators() -> None:
    run = Digits(0, AT_THE_EDGE["adam"][0])
    run.go(5)
    grads = [3.0 * g for g in torch.autograd.grad(run.loss(), list(run.model.parameters()))]
    tracker = run.tracker(tol=1e-3)
    own, given = tracker.read(), tracker.read(grads)
    assert given.chi < 0.95 * own.chi


# ---- several optimizers, frozen parameters


def test_several_optimizers_and_frozen_parameters_are_followed() -> None:
    run = Digits(0, AT_THE_EDGE["gd"][0])
    run.model[0].bias.requires_grad_(False)
    first = optim.SGD(run.model[0].parameters(), lr=0.3, momentum=0.9)
    second = optim.AdamW(run.model[2:].parameters(), lr=3e-3, weight_decay=0.1)
    tracker = EdgeTracker([first, second], run.loss, every=3)
    for i in range(40):
        for each in (first, second):
            each.zero_grad()
        run.loss().backward()
        reading = tracker.step()
        if reading is not None and i % 9 == 0:
            truth = edge(run.loss, [first, second], tol=1e-5, forms=False)
            assert reading.chi == pytest.approx(truth.chi, rel=0.02)
            assert len(reading.shares) == 5
        first.step()
        second.step()


# ---- refusals


class _Wrong(torch.autograd.Function):
    """tanh, with a derivative that is right and a second one that is not: products with it are not symmetric."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return _WrongBackward.apply(grad, *ctx.saved_tensors)


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(grad, x)
        return grad * (1 - torch.tanh(x) ** 2)

    @staticmethod
    def backward(ctx, twice: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        _, x = ctx.saved_tensors
        return 1.5 * twice * (1 - torch.tanh(x) ** 2), None


def test_products_that_are_not_symmetric_are_refused() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, x = nn.Linear(4, 6), nn.Linear(6, 3), torch.randn(20, 4)
    optimizer = optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    tracker = EdgeTracker(optimizer, lambda: second(_Wrong.apply(first(x)).relu()).square().sum())
    with pytest.raises(UsageError, match="not symmetric"):
        tracker.read()


@pytest.mark.parametrize("settings", [
    {"every": 0}, {"every": 2.0}, {"every": True}, {"tol": 0.0}, {"tol": 1.0}, {"route": "magic"},
], ids=str)
def test_senseless_arguments_are_refused_by_name(settings: dict[str, object]) -> None:
    run = Digits(0, AT_THE_EDGE["gd"][0])
    with pytest.raises(UsageError, match=next(iter(settings))):
        run.tracker(**settings)


def test_a_loss_in_the_place_of_a_closure_is_refused() -> None:
    run = Digits(0, AT_THE_EDGE["gd"][0])
    with pytest.raises(UsageError, match="function"):
        EdgeTracker(run.optimizer, run.loss())  # type: ignore[arg-type]


def test_a_closure_that_does_not_repeat_is_refused() -> None:
    run = Digits(0, AT_THE_EDGE["gd"][0])
    with pytest.raises(UsageError):
        EdgeTracker(run.optimizer, lambda: run.loss() * (1 + 0.1 * torch.rand(()))).read()


def test_the_closure_is_not_checked_again_at_every_reading() -> None:
    run = Digits(0, AT_THE_EDGE["gd"][0])
    calls = [0]

    def counted() -> Tensor:
        calls[0] += 1
        return run.loss()

    tracker = EdgeTracker(run.optimizer, counted)
    tracker.read()
    first, calls[0] = calls[0], 0
    for _ in range(5):
        tracker.read()
    assert calls[0] == 5
    assert first <= 4
