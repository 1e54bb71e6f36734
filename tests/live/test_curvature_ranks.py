"""Two ranks over gloo: a monitor on one of them, or on both, neither hangs nor changes the training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

SCRIPT = '''
import math, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from contextlib import nullcontext
from torch import nn
from foreshock.monitor import Monitor
from foreshock.probes import FREE, Curvature

rank, how = int(sys.argv[1]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(1)
x, y = torch.randn(24, 6), torch.randint(0, 4, (24,))
mine = slice(12 * rank, 12 * rank + 12)

def train(probe, static):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    ddp = nn.parallel.DistributedDataParallel(model, static_graph=static)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-2)
    with Monitor(ddp, optimizer, probes=[*FREE, probe], max_overhead=math.inf) if probe else nullcontext() as monitor:
        for _ in range(9):
            loss = F.cross_entropy(ddp(x[mine]), y[mine])
            if monitor:
                monitor.observe(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        run = monitor.run if monitor else None
    return torch.cat([p.detach().flatten() for p in model.parameters()]), run

for static in (False, True):
    plain, _ = train(None, static)
    watching = rank == 0 or how == "both"
    seen, run = train(Curvature(every=2, tol=1e-3, ranks=how == "both") if watching else None, static)
    assert torch.equal(plain, seen), "the training changed"
    if run is not None and not static:
        assert run.measured("chi")[0].tolist() == [2, 4, 6, 8], run.notes
        chi = torch.tensor(run.measured("chi")[1])
        other = chi.clone()
        if how == "both":
            dist.all_reduce(other)
            assert torch.equal(2 * chi, other), "the ranks disagree"
    if run is not None and static and how == "both":  # a static graph is refused where the wrapper is looked at
        assert "chi" not in run.columns
        assert any(note["kind"] == "probe_unavailable" for note in run.notes), run.notes
dist.barrier()
dist.destroy_process_group()
'''


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one", "both"])
def test_ranks_train_on_as_they_would(how: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), port, how], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
