"""What a guard did is in the run directory, also where the training was killed and went on from a checkpoint."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import torch

from foreshock import Guard, Monitor, Run, Snapshots

from .loops import adamw, data, net

STEPS, SAVED, KILLED = 130, 60, 105
BAD = {30: "nan", 70: "nan", 71: "inf", 90: "nan", 110: "nan"}


def train(path: Path, first: int, last: int, saved: dict[str, object] | None, *, save: int = -1) -> dict[str, object]:
    """Trains from one step to another with faults, from a checkpoint if there is one; returns that of step `save`."""
    x, y = data()
    model = net()
    optimizer = adamw(model)
    monitor = Monitor(model, optimizer, run=path, probes=[])
    if saved is not None:
        for name, owner in (("model", model), ("optimizer", optimizer), ("monitor", monitor)):
            owner.load_state_dict(saved[name])
    kept: dict[str, object] = {}
    with monitor:
        guard = Guard(monitor, snapshots=Snapshots(every=20))
        if saved is not None:
            guard.load_state_dict(saved["guard"])
        for step in range(first, last):
            if step == save:
                parts = {"model": model, "optimizer": optimizer, "monitor": monitor, "guard": guard}
                kept = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
            rows = torch.randint(0, len(x), (64,), generator=torch.Generator().manual_seed(step))
            if BAD.get(step) == "inf":
                with torch.no_grad():
                    model[2].weight[0, 0] = float("inf")
            loss = torch.nn.functional.mse_loss(model(x[rows]), y[rows])
            monitor.observe(loss)
            loss.backward()
            if BAD.get(step) == "nan":
                model[0].weight.grad[0, 0] = float("nan")
            guard.step()
            optimizer.zero_grad()
        if last == KILLED:
            shutil.copytree(path, path.with_name("killed"))  # what a kill at this moment leaves: nothing is flushed
    assert [action.step for action in guard.actions] == [action.step for action in Run.load(path).actions]
    return kept


def test_the_run_tells_what_the_guard_did_as_if_it_had_never_been_killed(tmp_path: Path) -> None:
    train(tmp_path / "whole", 0, STEPS, None)
    whole = Run.load(tmp_path / "whole", strict=True)
    assert {action.step for action in whole.actions} >= {30, 70, 71, 90, 110}
    assert {"skip", "rollback"} <= {action.kind for action in whole.actions}

    checkpoint = train(tmp_path / "first", 0, KILLED, None, save=SAVED)
    left = Run.load(tmp_path / "killed")
    assert {action.step for action in left.actions} >= {30, 70, 71, 90}  # written at once, before their records
    train(tmp_path / "killed", SAVED, STEPS, checkpoint)
    went_on = Run.load(tmp_path / "killed", strict=True)
    assert went_on.actions == whole.actions
    np.testing.assert_array_equal(went_on.steps, whole.steps)
    np.testing.assert_array_equal(went_on["loss"], whole["loss"])
    np.testing.assert_array_equal(went_on.taken, whole.taken)
    assert 0 < np.count_nonzero(~whole.taken) < 40
