"""Trainings that a low-precision softmax makes spike, under a guard: its gradient is made exact once, and in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foreshock.guard.guard import Guard
from foreshock.monitor import Monitor
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.repair import exact_gradient
from foreshock.papers.absorption_training import reference
from foreshock.probes import FREE, Softmax
from foreshock.run.action import ExactSoftmax

Loss = Callable[[int, Tensor, Tensor], Tensor]
STEPS = 160


class Training:
    """Sixty points of six kinds, learnt by heart within a hundred steps, and trained on."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(6, 12, generator=generator)
        self.target = torch.arange(60) % 6
        self.inputs = centres[self.target] + torch.randn(60, 12, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (12, 24, 24, 24)
            layers = [each for a, b in pairwise(widths) for each in (nn.Linear(a, b), nn.ReLU())]
            self.model = nn.Sequential(*layers, nn.Linear(24, 6))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2, betas=(0.9, 0.95))

    def loss(self, step: int, loss_of: Loss) -> Tensor:
        self.optimizer.zero_grad()
        return loss_of(step, self.model(self.inputs), self.target)

    def parameters(self) -> list[Tensor]:
        return [param.detach().clone() for param in self.model.parameters()]


def stock(step: int, z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, target)


def by_hand(since: int) -> Loss:
    """Returns torch's loss, with an exact gradient after a step."""
    return lambda step, z, target: F.cross_entropy(z if step <= since else exact_gradient(z, target), target)


def trained(loss_of: Loss) -> list[Tensor]:
    training = Training()
    for step in range(STEPS):
        training.loss(step, loss_of).backward()  # type: ignore[no-untyped-call]
        training.optimizer.step()
    return training.parameters()


def watching(training: Training) -> Monitor:
    """Returns a monitor without curvature, which is read as often as time allows."""
    return Monitor(training.model, training.optimizer, probes=[*FREE, Softmax()])


def guarded(training: Training, guard: Guard, step: int, loss_of: Loss = stock) -> None:
    loss = training.loss(step, loss_of)
    guard.monitor.observe(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    guard.step()


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_a_guard_makes_the_gradient_exact_once_and_does_nothing_else() -> None:
    training = Training()
    with watching(training) as monitor:
        guard = Guard(monitor)
        for step in range(STEPS):
            guarded(training, guard, step)
        (action,) = guard.actions
        assert monitor.run.actions == [action]
    assert isinstance(action, ExactSoftmax)
    assert action.cause is not None
    assert action.cause[0] == "absorbing"
    assert equal(training.parameters(), trained(by_hand(action.step)))
    assert not equal(training.parameters(), trained(stock))


def test_a_guard_that_was_resumed_goes_on_with_the_exact_gradient() -> None:
    first = Training()
    with watching(first) as monitor:
        guard = Guard(monitor)
        half = 0
        while half < STEPS - 20 and not guard.actions:
            guarded(first, guard, half)
            half += 1
        (action,) = guard.actions
        states = [each.state_dict() for each in (first.model, first.optimizer, monitor, guard)]
    second = Training()
    monitor = watching(second)
    monitor.load_state_dict(states[2])
    with monitor:
        guard = Guard(monitor)
        for each, state in ((second.model, states[0]), (second.optimizer, states[1]), (guard, states[3])):
            each.load_state_dict(state)  # type: ignore[arg-type]
        for step in range(half, STEPS):
            guarded(second, guard, step)
        assert guard.actions == (action,)
    assert equal(second.parameters(), trained(by_hand(action.step)))


def smoothed(step: int, z: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(z, target, label_smoothing=0.01)


def exact(step: int, z: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(z, target)


@pytest.mark.parametrize("loss_of", [smoothed, exact])
def test_a_guard_leaves_alone_what_rounding_does_no_harm_to(loss_of: Loss) -> None:
    training = Training()
    with watching(training) as monitor:
        guard = Guard(monitor)
        for step in range(STEPS):
            guarded(training, guard, step, loss_of)
        assert guard.actions == ()


def spikes(losses: Sequence[float]) -> int:
    """Returns how often the loss rose above 1e-2 once it had been below 1e-6, rises within 100 steps being one."""
    fitted = next(i for i, loss in enumerate(losses) if loss < 1e-6)
    high = [i for i in range(fitted, len(losses)) if losses[i] > 1e-2]
    return sum(i == 0 or step - high[i - 1] > 100 for i, step in enumerate(high))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [40, 41])
def test_the_reference_training_has_no_spike_left_and_ends_where_the_exact_loss_does(seed: int) -> None:
    def train(loss_of: Callable[[Tensor, Tensor], Tensor], *, watched: bool = False) -> tuple[int, float, list[str]]:
        problem = reference(seed)
        optimizer = torch.optim.Adam(problem.model.parameters(), 1e-3, betas=(0.9, 0.95), fused=True)
        monitor = Monitor(problem.model, optimizer)
        guard, losses = Guard(monitor), []
        if watched:
            monitor.__enter__()
        for _ in range(2600):
            loss = loss_of(problem.model(problem.inputs), problem.labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            if watched:
                monitor.observe(loss)
            loss.backward()
            (guard.step if watched else optimizer.step)()
        monitor.close()
        last = cross_entropy(problem.model(problem.inputs).detach().double(), problem.labels)
        return spikes(losses), last.item(), [action.kind for action in guard.actions]

    assert train(F.cross_entropy)[0] >= 2
    count, last, actions = train(F.cross_entropy, watched=True)
    assert count == 0
    assert actions == ["exact_softmax"]
    assert last == pytest.approx(train(cross_entropy)[1], rel=0.05)
