"""Sharded parameters are read by their shards where the step is elementwise, and refused where it is not."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from tests.stability.live_cases import label
from torch import optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from foreshock.errors import UsageError
from foreshock.stability import edge_weights, nyquist_probe, planned_step, stability_threshold

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)  # no second process, no network
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def sharded(kind, settings, mesh):
    generator = torch.Generator().manual_seed(0)
    values, grads = ([torch.randn(4, 3, generator=generator) for _ in range(2)] for _ in range(2))
    whole = [torch.nn.Parameter(value.clone()) for value in values]
    parts = [torch.nn.Parameter(distribute_tensor(value.clone(), mesh, [Shard(0)])) for value in values]
    shards = [distribute_tensor(grad.clone(), mesh, [Shard(0)]) for grad in grads]
    one, two = kind(whole, **settings), kind(parts, **settings)
    for optimizer, params, given in ((one, whole, grads), (two, parts, shards)):
        for param, grad in zip(params, given, strict=True):
            param.grad = grad
        optimizer.step()
    return one, grads, two, shards


@pytest.mark.parametrize(
    "case",
    [
        (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (optim.AdamW, {}),
        (optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
        (optim.NAdam, {}),
        (optim.RAdam, {}),
        (optim.RMSprop, {"centered": True, "momentum": 0.5}),
        (optim.Adagrad, {}),
        (optim.Adadelta, {}),
        (optim.Adamax, {}),
    ],
    ids=label,
)
def test_weights_of_shards_are_the_shards_of_the_weights(case, mesh):
    one, grads, two, shards = sharded(*case, mesh)
    whole, parts = edge_weights(one, grads), edge_weights(two, shards)
    assert whole.thresholds == parts.thresholds
    for full, part in zip(whole.apply(grads, 0.5), parts.apply(shards, 0.5), strict=True):
        assert isinstance(part, DTensor)
        torch.testing.assert_close(part.to_local(), full[:2])
    for full, part in zip(planned_step(one, grads), planned_step(two, shards), strict=True):
        torch.testing.assert_close(part.to_local(), full[:2])
    assert stability_threshold(one)[0].value == stability_threshold(two)[0].value
    assert all(isinstance(mask, DTensor) for mask in parts.floored)


def test_what_needs_whole_tensors_is_refused(mesh):
    _, _, optimizer, shards = sharded(optim.AdamW, {}, mesh)
    with pytest.raises(UsageError, match="max_norm"):
        edge_weights(optimizer, shards, max_norm=1.0)
    with pytest.raises(UsageError, match="sharded"):
        nyquist_probe(optimizer, shards)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for kind in (optim.Adafactor, optim.Muon):
        with pytest.raises(UsageError, match="whole tensors"):
            edge_weights(kind(params), shards)
