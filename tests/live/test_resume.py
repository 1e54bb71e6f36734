"""n steps, save, load, n steps equals 2 n steps; a killed run loses one flush at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock.errors import RunError, UsageError
from foreshock.monitor import Monitor
from foreshock.probes import FREE, GradientCosine, Moments, every
from foreshock.run import Run
from tests.live.nets import OPTIMIZERS, batches, net
from tests.nightly import thinned

DATA = list(batches(120))

with_each_sweep = pytest.mark.usefixtures("each_sweep")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, start: int, stop: int) -> None:
    for i in range(start, stop):
        x, y = DATA[i]
        loss = F.cross_entropy(model(x), y) * (40.0 if i in (50, 90) else 1.0)
        monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def new(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = net(dropout=0.0)
    return model, OPTIMIZERS[kind](model.parameters())


def signals(run: Run) -> dict[str, Any]:
    return {name: run[name] for name in run.columns if not name.endswith("_seconds")}


@pytest.mark.parametrize("kind", thinned(["adam-fused", "sgd-momentum-nesterov", "rmsprop"], 3))
@pytest.mark.parametrize("same_directory", [True, False])
@with_each_sweep
def test_a_resumed_run_equals_one_that_never_stopped(kind: str, same_directory: bool, tmp_path: Path) -> None:
    probes = [*FREE, every(7, Moments), every(7, GradientCosine)][: 4 if kind == "rmsprop" else 6]
    model, optimizer = new(kind)
    with Monitor(model, optimizer, run=tmp_path / "whole", probes=probes) as monitor:
        train(model, optimizer, monitor, 0, 120)
    whole, events = Run.load(tmp_path / "whole"), monitor.events

    model, optimizer = new(kind)
    with Monitor(model, optimizer, run=tmp_path / "a", probes=probes) as monitor:
        train(model, optimizer, monitor, 0, 70)
        torch.save([model.state_dict(), optimizer.state_dict(), monitor.state_dict()], tmp_path / "checkpoint")
        train(model, optimizer, monitor, 70, 83)  # done, and lost
    model, optimizer = new(kind)
    states = torch.load(tmp_path / "checkpoint", weights_only=False)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    monitor = Monitor(model, optimizer, run=tmp_path / ("a" if same_directory else "b"), probes=probes)
    monitor.load_state_dict(states[2])
    with monitor:
        train(model, optimizer, monitor, 70, 120)
    again = Run.load(monitor.path)  # type: ignore[arg-type]
    first = 0 if same_directory else 70
    assert again.steps.tolist() == list(range(first, 120))
    for name, values in signals(whole).items():
        np.testing.assert_array_equal(again[name], values[first:], err_msg=name)
    assert monitor.events == events
    if same_directory:
        assert again.events == whole.events


@with_each_sweep
def test_the_state_can_be_loaded_into_an_open_monitor() -> None:
    model, optimizer = new("adamw")
    with Monitor(model, optimizer) as monitor:
        train(model, optimizer, monitor, 0, 30)
        state = monitor.state_dict()
        train(model, optimizer, monitor, 30, 40)
        monitor.load_state_dict(state)
        train(model, optimizer, monitor, 30, 60)
        run = monitor.run
    assert run.steps.tolist() == list(range(60))


@with_each_sweep
def test_another_things_state_is_refused() -> None:
    model, optimizer = new("sgd")
    with pytest.raises(UsageError, match="not the state of a monitor"):
        Monitor(model, optimizer).load_state_dict(optimizer.state_dict())


@with_each_sweep
def test_a_directory_that_holds_another_run_is_not_resumed_into(tmp_path: Path) -> None:
    model, optimizer = new("sgd")
    with Monitor(model, optimizer, run=tmp_path / "a") as monitor:
        train(model, optimizer, monitor, 0, 5)
    with Monitor(model, optimizer) as other:
        train(model, optimizer, other, 0, 5)
        state = other.state_dict()
    late = Monitor(model, optimizer, run=tmp_path / "a")
    late.load_state_dict(state)
    with pytest.raises(RunError, match="holds run"):
        late.__enter__()


SCRIPT = """
import sys, torch
from foreshock.monitor import Monitor
torch.set_num_threads(1)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
with Monitor(model, optimizer, run=sys.argv[1]) as monitor:
    for i in range(10**9):
        loss = model(torch.ones(2, 4)).square().mean()
        monitor.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(i, flush=True)
"""


def test_a_killed_run_keeps_all_but_the_steps_of_one_flush(tmp_path: Path) -> None:
    from foreshock.recorder import FLUSH_STEPS

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    done = -1
    for line in child.stdout:
        done = int(line)
        if done >= 300:
            break
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    done = max([done, *(int(word) for word in rest)])
    run = Run.load(tmp_path / "a")
    assert len(run) >= done + 1 - FLUSH_STEPS
    assert run.steps.tolist() == list(range(len(run)))
    assert np.isfinite(run["loss"]).all()
