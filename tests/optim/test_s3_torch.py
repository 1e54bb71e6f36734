"""S3 among torch's tools: schedulers, scalers, compilation, closures, sharded parameters, fake tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import distributed as dist
from torch import nn, optim

from foreshock.errors import UsageError
from foreshock.optim import S3, blocks, native, paths
from tests.optim.test_s3_state import go, weights

BUILT = pytest.mark.skipif(native.library() is None, reason="no C compiler when it was installed")


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
        lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=5, cycle_momentum=False),
        lambda o: optim.lr_scheduler.ExponentialLR(o, 0.5),
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_schedulers_set_the_lr_of_the_next_step(schedule, tensor):
    params = weights()
    optimizer = S3(params, lr=torch.tensor(0.1) if tensor else 0.1)
    scheduler = schedule(optimizer)
    for step in range(4):
        rate, before = float(optimizer.param_groups[0]["lr"]), params[0].detach().clone()
        draw = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=draw)
        optimizer.step()
        scheduler.step()
        if not step:
            assert float((params[0].detach() - before).abs().max()) == pytest.approx(0.21184 * rate, rel=1e-4)
        assert (params[0] - before).abs().max() <= rate * 1.0001


def test_a_schedule_that_cycles_momentum_is_refused_by_torch():
    with pytest.raises(ValueError, match="cycle_momentum"):
        optim.lr_scheduler.OneCycleLR(S3(weights(), lr=0.1), 0.2, total_steps=5)


def test_a_beta_that_changes_between_steps_keeps_the_bound():
    param = nn.Parameter(torch.zeros(300))
    optimizer = S3([param], lr=1.0)
    draw = torch.Generator().manual_seed(0)
    for step in range(80):
        optimizer.param_groups[0]["beta"] = 0.95 if step % 2 else 0.8
        before = param.detach().clone()
        param.grad = torch.randn(300, generator=draw) ** 5
        optimizer.step()
        assert (param - before).abs().max() <= 1 + 1e-4


def test_a_tensor_lr_changed_in_place_is_read_at_each_step_on_every_way():
    ends = []
    for settings in ({"fused": False}, {"foreach": False}, {}):
        params, rate = weights(), torch.tensor(0.1)
        optimizer = S3(params, lr=rate, weight_decay=0.1, **settings)
        go(optimizer, params, range(1))
        rate.fill_(0.02)
        go(optimizer, params, range(1, 3))
        ends.append(params[0].detach())
    params = weights()
    optimizer = S3(params, lr=0.1, weight_decay=0.1)
    go(optimizer, params, range(1))
    optimizer.param_groups[0]["lr"] = 0.02
    go(optimizer, params, range(1, 3))
    for end in ends:
        assert torch.allclose(end, params[0], atol=1e-7)


def test_closures_run_once_with_gradients_and_their_loss_is_returned():
    param = nn.Parameter(torch.tensor([3.0]))
    optimizer = S3([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert param.item() == pytest.approx(3 - 0.1 * 0.21184, rel=1e-5)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=BUILT)])
def test_a_scaler_unscales_and_skips_whoever_does_it(fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    params, plain = weights(), weights()
    optimizer, other = S3(params, lr=0.1, fused=fused, eps=0.1), S3(plain, lr=0.1, eps=0.1)  # eps sees the scale

    def losses(of, factor=1.0):
        return sum((each * factor).square().sum() for each in of)

    for step in range(3):
        optimizer.zero_grad()
        other.zero_grad()
        scaler.scale(losses(params, float("inf") if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if step != 1:
            losses(plain).backward()
            other.step()
        for a, b in zip(params, plain, strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_compiled_steps_are_one_graph_and_equal_to_eager_ones():
    one, two = weights(), weights()
    eager, compiled = (S3(each, lr=torch.tensor(0.1), weight_decay=0.1, fused=False) for each in (one, two))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        step = torch.compile(compiled.step, backend="eager", fullgraph=True)
        for number in range(3):
            for params in (one, two):
                draw = torch.Generator().manual_seed(number)
                for param in params:
                    param.grad = torch.randn(param.shape, generator=draw)
            eager.step()
            step()
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_step_that_reads_nothing_on_the_host_runs_on_tensors_that_have_no_values():
    param = nn.Parameter(torch.zeros(5, device="meta"))
    optimizer = S3([param], lr=torch.tensor(0.1), capturable=True)
    param.grad = torch.zeros(5, device="meta")
    optimizer.step()
    assert optimizer.state[param]["exp_avg_root"].device.type == "meta"


def test_fused_is_refused_where_no_compiled_step_can_be_had(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    params = weights()
    optimizer = S3(params, lr=0.1, fused=True)
    with pytest.raises(UsageError, match=r"fused=True.*C compiler"):
        go(optimizer, params, range(1))
    optimizer.param_groups[0]["fused"] = None
    go(optimizer, params, range(1))


def test_a_scaler_is_told_of_a_fused_group_that_comes_later_or_is_loaded():
    one, two = weights()
    optimizer = S3([one], lr=0.1)
    assert not optimizer._step_supports_amp_scaling
    optimizer.add_param_group({"params": [two], "fused": True})
    assert optimizer._step_supports_amp_scaling
    other = S3([{"params": [one]}, {"params": [two]}], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other._step_supports_amp_scaling


@BUILT
def test_the_compiled_loop_is_taken_by_default_and_left_when_told(monkeypatch):
    taken = []
    for module, name in ((native, "update"), (blocks, "blocked"), (paths.update, "update")):
        monkeypatch.setattr(module, name, lambda *_, name=f"{module.__name__}.{name}", **__: taken.append(name))
    for settings in ({}, {"foreach": True}, {"fused": False}, {"foreach": False}, {"fused": True}):
        params = weights()
        go(S3(params, lr=0.1, **settings), params, range(1))
    kinds = [each.rpartition("optim.")[2] for each in taken]
    assert kinds == ["native.update", "native.update", "blocks.blocked", *["update.update"] * 2, "native.update"]


def test_writes_are_seen_by_autograd():
    params = weights()
    for settings in ({}, {"fused": False}, {"foreach": False}):
        optimizer = S3(params, lr=0.1, **settings)
        before = [each._version for each in params]
        go(optimizer, params, range(1))
        assert all(each._version > old for each, old in zip(params, before, strict=True))


def test_parameters_that_require_other_gradients_stay_leaves_and_the_random_stream_is_not_touched():
    params = weights()
    state = torch.random.get_rng_state()
    go(S3(params, lr=0.1), params, range(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(each.is_leaf and each.requires_grad and each.grad_fn is None for each in params)


def test_sharded_parameters_are_updated_where_they_lie():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        start, plain = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), weights(sizes=((4, 3),))
        plain[0].data.copy_(start)
        whole = nn.Parameter(distribute_tensor(start.clone(), mesh, [Shard(0)]))
        optimizer, other = S3([whole], lr=0.1, weight_decay=0.1), S3(plain, lr=0.1, weight_decay=0.1)
        for step in range(3):
            grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            placed = [Replicate()] if step == 1 else [Shard(0)]  # of another placement: moved to the parameter's
            whole.grad, plain[0].grad = distribute_tensor(grad, mesh, placed), grad
            optimizer.step()
            other.step()
        assert torch.equal(whole.full_tensor(), plain[0])
        state = optimizer.state[whole]["exp_avg_root"]
        assert isinstance(state, DTensor)
        assert state.placements == (Shard(0),)
    finally:
        dist.destroy_process_group()


def test_a_default_device_of_another_kind_does_not_matter():
    params, others = weights(), weights()
    for given, settings in ((params, {"fused": False}), (others, {})):
        optimizer = S3(given, lr=0.1, weight_decay=0.1, **settings)
        for step in range(2):
            draw = torch.Generator().manual_seed(step)
            for param in given:
                param.grad = torch.randn(param.shape, generator=draw)
            with torch.device("meta"):
                optimizer.step()
    for a, b in zip(params, others, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
