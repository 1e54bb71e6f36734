"""Each rank holds its own part of sharded parameters and moments, and puts it back into the tensors that are there."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from foreshock.guard import snapshots as module
from foreshock.guard import spill
from foreshock.guard.snapshots import Snapshots


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)  # no second process, no network
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def of_two(mesh, mine):
    """Returns (5, 3) in two parts of which this rank has two rows; a fake group would hand out memory as it is."""
    return DTensor.from_local(mine, mesh, [Shard(0)], run_check=False, shape=torch.Size((5, 3)), stride=(3, 1))


def sharded(mesh, seed):
    model = nn.Module()
    mine = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
    model.weight = nn.Parameter(of_two(mesh, mine))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True)
    return model, optimizer


def step(model, optimizer, mesh, value):
    model.weight.grad = of_two(mesh, torch.full((2, 3), value))
    optimizer.step()


def parts(model, optimizer):
    tensors = [model.weight, *optimizer.state[model.weight].values()]
    return [(t.to_local() if isinstance(t, DTensor) else t).detach().clone() for t in tensors]


def test_shards_come_back_in_place_and_those_of_removed_moments_as_shards(mesh):
    model, optimizer = sharded(mesh, 0)
    step(model, optimizer, mesh, 1.0)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(1)
    wanted = parts(model, optimizer)
    assert snapshots.nbytes < 20_000  # with the random streams
    step(model, optimizer, mesh, -2.0)
    moment = optimizer.state[model.weight]["exp_avg"]
    snapshots.restore(1)
    assert optimizer.state[model.weight]["exp_avg"] is moment
    assert all(map(torch.equal, parts(model, optimizer), wanted))
    optimizer.state.clear()
    snapshots.restore(1)
    made = optimizer.state[model.weight]["exp_avg"]
    assert isinstance(made, DTensor)
    assert (made.shape, made.placements) == (model.weight.shape, model.weight.placements)
    assert all(map(torch.equal, parts(model, optimizer), wanted))


def test_a_rank_reads_its_own_files_only(mesh, tmp_path):
    model, optimizer = sharded(mesh, 0)
    step(model, optimizer, mesh, 1.0)
    snapshots = Snapshots(spill=tmp_path)
    snapshots.attach(model, optimizer)
    snapshots.take(4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000004-rank-00001.safetensors"]
    (tmp_path / "step-000000000004-rank-00000.safetensors").write_bytes(b"of another rank")
    fresh, other = sharded(mesh, 1)
    again = Snapshots.load(tmp_path)
    again.attach(fresh, other)
    again.restore(4)
    assert all(map(torch.equal, parts(fresh, other), parts(model, optimizer)))
    again.take(9)
    again.drop_after(3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000004-rank-00000.safetensors"]
    assert not spill.files(tmp_path)


def test_in_a_group_nothing_is_decided_by_the_clock_or_by_what_memory_happens_to_be_free(mesh, monkeypatch):
    model, optimizer = sharded(mesh, 0)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    monkeypatch.setattr(module, "available", lambda: pytest.fail("asked what is free"))
    assert snapshots.due(0)
    snapshots.take(0)
    assert [n for n in range(1, 400) if snapshots.due(n) and snapshots.take(n)] == [50, 100, 150, 200, 250, 300, 350]
