"""The vocabulary-parallel loss on two and three ranks over gloo is the loss of all logits; `ranks.py` has the facts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foreshock.errors import UsageError
from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.parallel import parallel_cross_entropy

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_facts_hold_on_ranks(ranks: int) -> None:
    port = str(free_port())
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.numerics.ranks", str(rank), str(ranks), port],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(error for _, error in said)
    wrong = [json.loads(output.splitlines()[-1]) for output, _ in said]
    assert len(wrong[0]) > 10
    assert not any(any(each.values()) for each in wrong), "\n".join(each for one in wrong for each in one.values())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_a_group_it_is_cross_entropy(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 3, 5, generator=generator), torch.randint(5, (4, 3), generator=generator)
    settings = {"weight": torch.rand(5, generator=generator), "reduction": reduction, "label_smoothing": 0.1}
    loss = parallel_cross_entropy(logits, target, ignore_index=2, **settings)
    assert torch.equal(loss, cross_entropy(logits, target, ignore_index=2, dim=-1, **settings))
    moved = parallel_cross_entropy(logits.movedim(-1, 1), target, ignore_index=2, dim=1, **settings)
    torch.testing.assert_close(moved, loss)


def test_without_a_group_bad_arguments_are_refused_as_well() -> None:
    with pytest.raises(UsageError, match="target"):
        parallel_cross_entropy(torch.zeros(4, 5), torch.zeros(3, dtype=torch.long))
