"""Every way to make S3's update gives what the slow one in float64 gives, whatever the settings, layouts and types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foreshock.optim import S3, blocks, update
from tests.optim.s3_cases import WAYS, course
from tests.reference.s3 import s3

CASES = [
    {},
    {"weight_decay": 0.3, "lr": 0.2},
    *({"p": p} for p in (1.0, 1.5, 2.0, 2.5, 4.0, 6.0, 8.0, 9.0, 10.0)),
    {"nesterov": False},
    {"nesterov": False, "p": 1.5},
    {"beta": 0.9, "beta2": 0.999},
    {"beta2": 0.0},
    {"beta": 0.0, "beta2": 0.0},
    {"beta": 0.0, "beta2": 0.5, "nesterov": False},
    {"maximize": True, "weight_decay": 0.1},
    {"eps": 0.1},
]


def gradients(seed, steps=25, size=200):
    """Returns gradients of all sizes from 1e-19 to 1e14, some coordinates at rest at first, some all along."""
    random = np.random.default_rng(seed)
    grads = random.standard_normal((steps, size)) * 10.0 ** random.uniform(-18, 13, size)
    grads *= 10.0 ** random.uniform(-3, 3, (steps, size))
    grads[:10, :20] = 0
    grads[:, 20:30] = 0
    return grads.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_agrees_with_the_slow_reference(way, settings):
    start = np.random.default_rng(9).standard_normal(200).astype(np.float32)
    beta2 = settings.get("beta2", settings.get("beta", 0.95))
    given = {"beta2": beta2, "eps": 1e-30, **settings}
    grads = gradients(1)
    told, m, r = s3(start, grads, **given)
    for dtype, close in ((torch.float32, 3e-6), (torch.float64, 1e-13)):
        seen, average, root = course(way, grads, start=start, dtype=dtype, **given)
        scale = 1 + np.abs(np.diff(told, axis=0, prepend=start[None])).cumsum(axis=0)  # roundings of all steps
        assert (np.abs(seen - told) <= close * scale).all()
        size = np.abs(grads).max(axis=0)
        assert (np.abs(average.double().numpy() - m) <= close * size).all()
        assert np.allclose(root.double().numpy(), r, rtol=close, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_any_layout_and_size_are_updated_alike(way):
    draw = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=draw)

    wide = some(6, 10)
    params = [
        some(3, 4), some(()), some(0), some(5, 7).t(), some(2, 3, 4, 5).to(memory_format=torch.channels_last),
        wide[:, ::2], some(300, 301), some(300, 301).t(),
    ]
    grads = [
        some(3, 4), some(()), some(0), some(7, 5), some(2, 3, 4, 5), some(6, 5), some(300, 301), some(301, 300),
    ]
    grads[0] = grads[0][:1].expand(3, 4)
    flat = [[each.numpy().ravel() for each in pair] for pair in zip(params, grads, strict=True)]
    told = [s3(start, [grad] * 3, lr=0.1, weight_decay=0.1)[0][-1] for start, grad in flat]
    between = wide[:, 1::2].clone()
    states = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    settings = {"lr": 0.1, "beta": 0.95, "beta2": 0.95, "p": 3.0, "eps": 1e-12, "weight_decay": 0.1}
    for _ in range(3):
        way(params, grads, *states, nesterov=True, maximize=False, **settings)
    for param, expected in zip(params, told, strict=True):
        assert np.allclose(param.numpy().ravel(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(wide[:, 1::2], between)


@pytest.mark.parametrize("fused", [False, None])
def test_a_tensor_without_elements_may_come_first_or_alone(fused):
    for shapes in ([(0, 3), (4,)], [(0,)]):
        params = [torch.ones(shape, requires_grad=True) for shape in shapes]
        optimizer = S3(params, lr=0.1, fused=fused)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert all(bool((param < 1).all()) for param in params)


@pytest.mark.parametrize("kinds", [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")], ids=str)
@pytest.mark.parametrize("fused", [False, None])
def test_narrow_types_are_computed_in_float32_and_rounded_once(kinds, fused):
    kind, state = (getattr(torch, name) for name in kinds)
    param = torch.linspace(-1, 1, 50).to(kind).requires_grad_()
    grads = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)).to(kind)
    optimizer = S3([param], lr=0.05, state_dtype=state, fused=fused)
    theta, m, r = param.detach().float(), torch.zeros(50), torch.zeros(50)
    for grad in grads:
        blocks.blocked(
            [theta], [grad.float()], [m], [r], lr=0.05, beta=0.95, beta2=0.95, p=3.0, eps=1e-12, weight_decay=0.0,
            nesterov=True, maximize=False,
        )  # fmt: skip
        theta, m, r = theta.to(kind).float(), m.to(state).float(), r.to(state).float()
        param.grad = grad.clone()
        optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype is state
    assert torch.allclose(param.detach().float(), theta, rtol=0.01, atol=2e-3)
    assert torch.allclose(optimizer.state[param]["exp_avg_root"].float(), r, rtol=0.01)


def test_threads_share_out_blocks_without_changing_a_bit(monkeypatch):
    monkeypatch.setattr(blocks, "WORTHWHILE", 1000)
    monkeypatch.setattr(blocks, "SHARED", 256)
    monkeypatch.setattr(blocks, "BLOCK", 512)
    draw, results = torch.Generator().manual_seed(2), []
    start, grad = torch.randn(5000, generator=draw), torch.randn(5000, generator=draw)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(course(blocks.blocked, [grad.numpy()] * 3, start=start.numpy()))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(results[0][0], results[1][0])


def test_bfloat16_state_of_float32_training_follows_full_state():
    grads = torch.randn(300, 400, generator=torch.Generator().manual_seed(3))
    ends = []
    for kind in (None, torch.bfloat16):
        param = torch.zeros(400, requires_grad=True)
        optimizer = S3([param], lr=1.0, state_dtype=kind)
        for grad in grads:
            param.grad = grad
            optimizer.step()
        ends.append((param.detach(), optimizer.state[param]["exp_avg_root"].float()))
    walked = ends[0][0].square().mean().sqrt()
    assert (ends[0][0] - ends[1][0]).square().mean().sqrt() < 0.05 * walked
    assert (ends[1][1] / ends[0][1]).mean() == pytest.approx(1, abs=0.01)  # it does not stall


def test_lists_are_worked_on_in_parts_without_changing_a_bit(monkeypatch):
    draw, results = torch.Generator().manual_seed(4), []
    starts, grads = ([torch.randn(size, generator=draw) for size in (5, 700, 0, 90, 20)] for _ in range(2))
    settings = {"lr": 0.1, "beta": 0.95, "beta2": 0.95, "p": 3.0, "eps": 1e-12, "weight_decay": 0.1}
    for part in (update.PART, 100, 1):
        monkeypatch.setattr(update, "PART", part)
        params = [start.clone() for start in starts]
        states = [[torch.zeros_like(param) for param in params] for _ in range(2)]
        update.update(params, grads, *states, nesterov=True, maximize=False, **settings)
        results.append(torch.cat(params))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
