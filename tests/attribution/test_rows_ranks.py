"""Two ranks over gloo, each with its own examples: rows, scores and masks are those of one process with all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import copy
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from foreshock.attribution import row_products, select

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
alone = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)).double()
x, y = torch.randn(8, 5).double(), torch.arange(8) % 3
u = [torch.randn_like(p) for p in alone.parameters()]
mine = slice(4 * rank, 4 * rank + 4)

def losses(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")

def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

whole = select(losses(alone), [(x, y)], u, model=alone)
sharded = copy.deepcopy(alone)
for part in (sharded[0], sharded[3], sharded):
    fully_shard(part)
for model in (nn.parallel.DistributedDataParallel(copy.deepcopy(alone), static_graph=True), sharded):
    part = (x[mine], y[mine])
    same(row_products(lambda: losses(model)(part), list(model.parameters()), u, model=model).values, whole.psi[mine])
    found = select(losses(model), [part], u, model=model)
    same(found.psi, whole.psi[mine])
    same(torch.tensor([*found.phi.values(), found.sum_psi]), torch.tensor([*whole.phi.values(), whole.sum_psi]))
    assert list(found.phi) == list(whole.phi)
    assert all(torch.equal(found.mask[name], mask) for name, mask in whole.mask.items())
    model(x[mine]).sum().backward()  # training goes on
dist.destroy_process_group()
'''


@pytest.mark.slow
def test_each_rank_has_the_rows_of_its_own_examples(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
