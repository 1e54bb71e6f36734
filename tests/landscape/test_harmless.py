"""Nothing in this room leaves a trace in a training, whatever it meets."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from foreshock.curvature import Hessian, eigsh
from foreshock.landscape import (
    Trajectory,
    condensation,
    drift_plane,
    eigen_projections,
    floor_index,
    output_change,
    real_change,
    sharpness,
    surface,
)


class Training:
    """A network in train mode in the midst of a training, with everything that a pass may touch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2)
        ).double()
        self.model[2].eval()
        self.x, self.y = torch.randn(16, 4).double(), torch.randn(16, 2).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.params = list(self.model.parameters())
        for _ in range(3):
            self.step()
        self.loss().backward()

    def loss(self) -> torch.Tensor:
        return (self.model(self.x) - self.y).square().mean()

    def outputs(self) -> torch.Tensor:
        return self.model(self.x)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def state(self) -> tuple[list[object], list[torch.Tensor]]:
        """Returns what must be identical, and the numbers that must be equal to the bit."""
        tensors = [*self.params, *self.model.buffers(), *(p.grad for p in self.params)]
        same: list[object] = [*map(id, tensors), *(t.data_ptr() for t in tensors), *(t._version for t in tensors)]
        same += [module.training for module in self.model.modules()]
        same += [p.requires_grad for p in self.params] + [len(m._forward_hooks) for m in self.model.modules()]
        same += [random.getstate(), np.random.get_state()[1].tobytes()]
        return same, [torch.get_rng_state(), *(t.detach().clone() for t in tensors)]


def direction(training: Training, seed: int) -> torch.Tensor:
    count = sum(p.numel() for p in training.params)
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_a_plane(training: Training) -> None:
    zero = 0 * direction(training, 0)
    plane = drift_plane(training.params, zero, direction(training, 1), direction(training, 2))
    surface(training.loss, plane, [-0.5, 0.0, 0.5], [0.0, 1.0])
    sharpness(training.loss, plane, [0.0, 0.5], [0.0, 0.1])


def on_a_plane_in_eval_mode(training: Training) -> None:
    flags = [module.training for module in training.model.modules()]
    training.model.eval()
    on_a_plane(training)
    for module, flag in zip(training.model.modules(), flags, strict=True):
        module.training = flag


def along_the_floor(training: Training) -> None:
    floor_index(training.loss, training.params, direction(training, 1), direction(training, 2), [0.0, 0.2])


def in_the_outputs(training: Training) -> None:
    output_change(training.outputs, training.params, direction(training, 1))
    real_change(training.outputs, training.params, direction(training, 1), direction(training, 2))
    pairs = eigsh(Hessian(training.loss, training.params, deterministic="fix"), 2)
    solutions = direction(training, 1), direction(training, 2)
    eigen_projections(training.outputs, training.params, pairs, solutions, test=training.outputs)


def on_the_way(training: Training) -> None:
    trajectory = Trajectory(training.params)
    trajectory.add()
    trajectory.add(direction(training, 1))
    trajectory.plane if len(trajectory) > 2 else trajectory.pca(1)
    condensation(training.model[0].weight, training.model[0].bias)


ALL = [on_a_plane, on_a_plane_in_eval_mode, along_the_floor, in_the_outputs, on_the_way]


@pytest.mark.parametrize("measure", ALL)
def test_a_training_is_left_as_it_was(measure: Callable[[Training], None]) -> None:
    training = Training()
    same, numbers = training.state()
    measure(training)
    same_after, numbers_after = training.state()
    assert same == same_after
    assert all(torch.equal(a, b) for a, b in zip(numbers, numbers_after, strict=True))


def test_a_measured_training_goes_on_as_an_unmeasured_one() -> None:
    plain, measured = Training(), Training()
    torch.manual_seed(7)
    expected = [plain.step() for _ in range(4)]
    torch.manual_seed(7)
    found = []
    for measure in ALL[:4]:
        measure(measured)
        found.append(measured.step())
    assert found == expected


def test_a_graph_that_was_built_before_is_still_good() -> None:
    training = Training()
    loss = training.loss()
    on_a_plane(training)
    loss.backward()


def test_a_loader_that_shuffles_leaves_the_random_numbers_as_they_were() -> None:
    training = Training()
    loader = DataLoader(TensorDataset(training.x, training.y), batch_size=4, shuffle=True)
    training.model.eval()
    same, numbers = training.state()
    plane = drift_plane(training.params, 0 * direction(training, 0), direction(training, 1), direction(training, 2))

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        return (training.model(batch[0]) - batch[1]).square().mean()

    found = surface(loss, plane, [0.0, 0.5], [0.0, 0.1], data=loader)
    assert found.values == pytest.approx(surface(training.loss, plane, [0.0, 0.5], [0.0, 0.1]).values)
    same_after, numbers_after = training.state()
    assert same == same_after
    assert all(torch.equal(a, b) for a, b in zip(numbers, numbers_after, strict=True))


def test_an_error_in_the_closure_leaves_no_trace() -> None:
    training = Training()
    same, numbers = training.state()
    plane = drift_plane(training.params, 0 * direction(training, 0), direction(training, 1), direction(training, 2))
    calls = []

    def breaking() -> torch.Tensor:
        calls.append(1)
        loss = training.loss()
        if len(calls) > 4:
            raise ValueError("broken")
        return loss

    with pytest.raises(ValueError, match="broken"):
        surface(breaking, plane, [0.0, 0.3, 0.7], [0.0, 0.2])
    same_after, numbers_after = training.state()
    assert same == same_after
    assert all(torch.equal(a, b) for a, b in zip(numbers, numbers_after, strict=True))
