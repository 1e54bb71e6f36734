"""Second moments that are sharded over ranks are raised shard by shard, to what the whole ones would be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from foreshock.curvature import edge
from foreshock.guard.denominators import floor_, refill_
from foreshock.stability import edge_weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # no second process, no network
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("raise_", [floor_, refill_])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_shard_is_raised_to_its_part_of_the_whole(raise_, amsgrad, mesh):
    generator = torch.Generator().manual_seed(0)
    value, stiff = torch.rand(4, 3, generator=generator) + 1.0, torch.linspace(30.0, 1.0, 12).reshape(4, 3)
    value[1, 1] = 0.05  # a small gradient, so a small second moment: the edge is in this rank's half
    whole, part = Parameter(value.clone()), Parameter(distribute_tensor(value.clone(), mesh, [Shard(0)]))
    one, two = (optim.Adam([param], lr=0.1, amsgrad=amsgrad) for param in (whole, part))
    grad = stiff * value
    whole.grad, part.grad = grad, distribute_tensor(grad, mesh, [Shard(0)])
    one.step(), two.step()
    whole.grad = None

    def loss():
        return 0.5 * (stiff * whole.square()).sum()

    for each in (one, two):
        each.param_groups[0]["lr"] = 1.2 * edge(loss, one, forms=False).max_stable_lr
    reading = edge(loss, one, tol=1e-6)
    assert reading.chi > 1.0
    # whole vectors and sharded parameters are what curvature gives on gathered parameters; a fake group cannot gather,
    # so the weights are whole as well
    later = stiff * whole.detach()
    shown = replace(reading, params=(part,), weights=replace(edge_weights(one, [later]), params=(part,)))
    before = two.state[part]["exp_avg_sq"].to_local().clone()
    done, again = raise_(reading, one), raise_(shown, two)
    assert (again.after, again.entries) == (done.after, done.entries)
    key = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
    found, wanted = two.state[part][key].to_local(), one.state[whole][key][:2]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0.0)
    assert bool((found > before).any())
