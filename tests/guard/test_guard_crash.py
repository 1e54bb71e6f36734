"""Killed at any instant and started again, a guarded training ends bit for bit as if it had never been killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreshock import Run
from tests.guard.crash import train

ROOT = Path(__file__).parents[2]
EVERY = 9


def killed(directory: Path, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Trains in a process that is killed so often, each time some attempts and an instant after it has begun."""
    draw = random.Random(seed)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "error", "-m", "tests.guard.crash", str(directory), str(steps), str(EVERY)]
    least = steps // (kills + 1)
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(draw.randint(least // 2, least)):
            if not process.stdout.readline():
                break
        for _ in range(draw.randint(0, 200_000)):  # somewhere within an attempt, or within writing
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return torch.load(directory / "done", weights_only=True)


def compare(one: dict[str, Any], other: dict[str, Any], run: Run, whole: Run) -> None:
    assert one["actions"] == other["actions"]
    np.testing.assert_array_equal(one["losses"], other["losses"])
    assert one["lr"] == other["lr"]
    assert all(map(torch.equal, one["parameters"], other["parameters"]))
    assert run.actions == whole.actions
    np.testing.assert_array_equal(run.steps, whole.steps)
    for signal_ in ("loss", "skipped", "lr"):
        np.testing.assert_array_equal(run[signal_], whole[signal_])


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "kills", "seed"), [(106, 1, 0), *((120, 4, n) for n in range(1, 6))])
def test_a_killed_training_ends_as_one_that_was_never_killed(tmp_path, steps, kills, seed):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    with torch.random.fork_rng():
        whole = train(tmp_path / "whole", steps, EVERY)
    kinds = {action["kind"] for action in whole["actions"]}
    assert {"skip", "cut_lr", "rollback"} <= kinds
    again = killed(tmp_path / "killed", steps, kills, seed)
    compare(again, whole, *(Run.load(tmp_path / name / "run", strict=True) for name in ("killed", "whole")))
