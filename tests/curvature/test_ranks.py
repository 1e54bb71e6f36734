"""Two ranks over gloo: every product is that of one process with the whole batch, and training goes on untouched."""

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
from foreshock.curvature import Hessian
from foreshock.errors import UsageError

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)).double()

torch.manual_seed(1)
x, y = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 4, (12,))
mine = slice(6 * rank, 6 * rank + 6)
alone = net()
truth = Hessian(lambda: F.cross_entropy(alone(x), y), list(alone.parameters()))
v = truth.space.normal()
product, gradient, value = truth @ v, truth.start(), truth.loss

def near(a, b):
    return float((a - b).norm() / b.norm()) < 1e-10

def check(hessian, what):
    assert near(hessian @ v, product), what
    assert near(hessian.start(), gradient), what
    assert abs(hessian.loss - value) < 1e-12, what
    assert any("ranks" in note for note in hessian.notes), what

def after(model):  # the gradients that training gets next
    model.zero_grad()
    F.cross_entropy(model(x[mine]), y[mine]).backward()
    grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    assert near(flat, gradient)

if sys.argv[3] == "ddp":
    for static in (False, True):
        ddp = nn.parallel.DistributedDataParallel(net(), static_graph=static)
        if static:
            after(ddp)
        check(Hessian(lambda: F.cross_entropy(ddp(x[mine]), y[mine]), list(ddp.parameters())), "closure")
        after(ddp)
        loss = F.cross_entropy(ddp(x[mine]), y[mine])
        if static:
            try:
                Hessian(loss, list(ddp.parameters()), model=ddp).loss
                raise SystemExit("a static graph was differentiated")
            except UsageError as error:
                assert "static_graph" in str(error) or "other ranks" in str(error), error
        else:
            check(Hessian(loss, list(ddp.parameters()), model=ddp), "live")
        loss.backward()
        after(ddp)
    part = slice(0, 8) if rank == 0 else slice(8, 12)  # unequal shares, counted by samples
    batches = [(x[part][i : i + 3], y[part][i : i + 3]) for i in range(0, len(x[part]), 3)]
    check(Hessian(lambda b: F.cross_entropy(ddp(b[0]), b[1]), list(ddp.parameters()), data=batches), "data")
    try:
        poisoned = x[mine] if rank else x[mine] * float("nan")
        Hessian(lambda: F.cross_entropy(ddp(poisoned), y[mine]), list(ddp.parameters())).loss
        raise SystemExit("one rank's failure went unnoticed")
    except UsageError as error:
        assert ("nan" in str(error)) == (rank == 0), error
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    if sys.argv[3] == "fsdp":
        model = net()
        fully_shard(model[0])
        fully_shard(model)
        closure = lambda: F.cross_entropy(model(x[mine]), y[mine])
        weights = list(model.parameters())
        penalised = Hessian(lambda: closure() + sum(p.to_local().square().sum() for p in weights), weights)
        try:
            _ = penalised.loss
            raise SystemExit("a penalty on the shards went unnoticed")
        except UsageError as error:
            assert "itself, not through the module" in str(error), error
        check(Hessian(closure, list(model.parameters())), "fsdp")
        after(model)
        hessian = Hessian(closure, list(model.parameters()), deterministic="trust")
        assert near(hessian @ v, product)
        differences = Hessian(closure, list(model.parameters()), route="central") @ v
        assert float((differences - product).norm() / product.norm()) < 1e-6
        loss = closure()  # in flight
        hessian.refresh()
        check(hessian, "in flight")
        loss.backward()
        vector = [p.detach().clone() for p in model.parameters()]
        assert [type(part) for part in hessian @ vector] == [torch.Tensor] * len(vector)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        try:
            hessian @ v
            raise SystemExit("stale parameters went unnoticed")
        except UsageError as error:
            assert "changed" in str(error)
    else:
        torch.manual_seed(0)
        mesh = init_device_mesh("cpu", (2,))
        def mlp():
            torch.manual_seed(2)
            return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        plain = mlp()
        truth = Hessian(lambda: F.cross_entropy(plain(x), y), list(plain.parameters()))
        v = truth.space.normal()
        product, gradient, value = truth @ v, truth.start(), truth.loss
        model = parallelize_module(mlp(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        check(Hessian(lambda: F.cross_entropy(model(x), y), list(model.parameters())), "tensor parallel")
        mine = slice(0, 12)
        after(model)
dist.destroy_process_group()
'''


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tp"])
def test_two_ranks_have_the_hessian_of_one(kind, tmp_path) -> None:
    script, port = tmp_path / "rank.py", str(free_port())
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port, kind], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
