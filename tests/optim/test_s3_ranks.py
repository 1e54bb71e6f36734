"""Two ranks over gloo: S3 on sharded and replicated parameters steps as one process with all of them does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from foreshock import S3

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
settings = {"lr": 0.05, "weight_decay": 0.1}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))  # 5 rows: uneven shares


torch.manual_seed(1)
x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
alone = net()
plain = S3(alone.parameters(), **settings)
model = fully_shard(net(), mesh=mesh)
sharded = S3(model.parameters(), **settings)
for step in range(4):
    if step == 2:  # saved and loaded as checkpoints are
        saved = get_optimizer_state_dict(model, sharded)
        sharded = S3(model.parameters(), lr=1.0)
        set_optimizer_state_dict(model, sharded, saved)
    for each, optimizer, rows in ((alone, plain, slice(0, 8)), (model, sharded, slice(4 * rank, 4 * rank + 4))):
        optimizer.zero_grad()
        F.cross_entropy(each(x[rows]), y[rows]).backward()
        optimizer.step()
for one, two in zip(alone.parameters(), model.parameters()):
    assert isinstance(two, DTensor)
    assert torch.allclose(one, two.full_tensor(), atol=1e-6)
    mine = sharded.state[two]["exp_avg_root"]
    assert isinstance(mine, DTensor) and mine.placements == two.placements
    assert torch.allclose(plain.state[one]["exp_avg_root"], mine.full_tensor(), atol=1e-6)

start, grad = torch.randn(5, 4), torch.randn(5, 4)  # other placements, and gradients placed unlike their parameter
for placed in ([Shard(0)], [Shard(1)], [Replicate()]):
    for given in ([Shard(0)], [Shard(1)], [Replicate()]):
        whole = nn.Parameter(distribute_tensor(start.clone(), mesh, placed))
        usual = nn.Parameter(start.clone())
        whole.grad, usual.grad = distribute_tensor(grad, mesh, given), grad
        S3([whole], **settings).step()
        S3([usual], **settings).step()
        assert torch.equal(whole.full_tensor(), usual), (placed, given)
dist.destroy_process_group()
'''


@pytest.mark.slow
def test_two_ranks_step_as_one_process():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(port)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=120)[1] for each in ranks]
    assert [each.returncode for each in ranks] == [0, 0], said
