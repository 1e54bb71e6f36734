"""Timing steps tells their times, and leaves a training bit for bit as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import foreshock as fs
from foreshock.batch_size.throughput import measure_step_times, training_step
from foreshock.errors import UsageError


class Clock:
    """Time that passes only where a step takes some."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_median_of_interleaved_steps_is_told():
    clock, order = Clock(), []

    def step(size):
        order.append(size)
        clock.now += 0.5 + 0.01 * size + (9.0 if len(order) % 7 == 0 else 0.0)  # now and then something else runs

    found = measure_step_times(step, [32, 8, 16], rounds=9, clock=clock)
    assert order[:6] == [8, 16, 32, 8, 16, 32]
    assert found.seconds == pytest.approx({8: 0.58, 16: 0.66, 32: 0.82})
    assert found.fixed == pytest.approx(0.5)
    assert found.per_sample == pytest.approx(0.01)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("CUDA out of memory.")])
def test_sizes_that_run_out_of_memory_are_infeasible(error):
    clock = Clock()

    def step(size):
        clock.now += 1.0
        if size > 20:
            raise error

    found = measure_step_times(step, [8, 16, 32, 64], clock=clock)
    assert list(found.seconds) == [8, 16]
    assert found.infeasible == (32, 64)
    with pytest.raises(UsageError, match="none of the sizes"):
        measure_step_times(step, [32, 64], clock=clock)


def test_other_errors_are_passed_on():
    with pytest.raises(RuntimeError, match="shape"):
        measure_step_times(lambda size: (_ for _ in ()).throw(RuntimeError("shape mismatch")), [8])
    with pytest.raises(UsageError, match="at least one"):
        measure_step_times(print, [])


def training(kind: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))
    optimizer = {
        "adam": lambda: torch.optim.AdamW(model.parameters(), lr=0.01),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=torch.tensor(0.05), momentum=0.9),
    }[kind]()
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4)


def measure(model, optimizer, scheduler, x, fails):
    plain = training_step(model, lambda m, batch: m(batch).square().mean(), optimizer)

    def step(size):
        plain(x[:size])
        scheduler.step()
        random.random()
        np.random.rand()
        if fails and size == 32:
            model.eval()
            raise ValueError("of the user's own")

    try:
        measure_step_times(step, [4, 16, 32], models=model, optimizers=optimizer, others=[scheduler], rounds=2)
    except ValueError:
        assert fails


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_measured_training_is_bit_for_bit_the_unmeasured_one(kind, fails):
    ends = []
    for measured in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            random.seed(5)
            np.random.seed(5)
            model, optimizer, scheduler = training(kind)
            x = torch.randn(64, 6)
            with fs.Monitor(model, optimizer) as monitor:
                for at in range(8):
                    if measured and at in (0, 4):
                        measure(model, optimizer, scheduler, x, fails)
                    loss = model(x[torch.randint(64, (16,))]).square().mean()
                    monitor.observe(loss)
                    loss.backward()
                    optimizer.step()
                    scheduler.step()
                    if at != 3:  # once its gradients are still there while it is measured
                        optimizer.zero_grad()
                records = [record.values["loss"] for record in monitor.run.records()]
            state = optimizer.state_dict()["state"]
            drawn = torch.rand(3).tolist(), random.random(), np.random.rand()
            rates = [float(rate) for rate in scheduler.get_last_lr()]
            rest = records, drawn, rates, scheduler.last_epoch, model.training
            ends.append(([p.detach().clone() for p in (*model.parameters(), *model.buffers())], state, rest))
    a, b = ends
    assert all(torch.equal(p, q) for p, q in zip(a[0], b[0], strict=True))
    assert all(torch.equal(torch.as_tensor(a[1][i][k]), torch.as_tensor(b[1][i][k])) for i in a[1] for k in a[1][i])
    assert a[2] == b[2]  # nor does the monitor see those steps
