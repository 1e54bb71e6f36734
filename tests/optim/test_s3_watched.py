"""S3 under this library's own eyes: watching changes nothing, and what is read of it makes sense."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock import Guard, Monitor, edge, policies
from foreshock.optim import S3
from foreshock.probes.second_moment import second_moment


def digits_like():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=draw)
    return x, (x[:, 0] > 0).long()


def run(settings, *, watched, steps=25, bad=None, guarded=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = S3(net.parameters(), lr=0.02, **settings)
    x, y = digits_like()
    with Monitor(net, optimizer) if watched else contextlib.nullcontext() as monitor:
        guard = Guard(monitor, policy=policies.default()) if guarded else None
        for step in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y) * (float("nan") if step == bad else 1.0)
            if monitor:
                monitor.observe(loss)
            loss.backward()
            (guard or optimizer).step()
        return net, optimizer, monitor.run if monitor else None


@pytest.mark.parametrize("settings", [{}, {"fused": False, "p": 2.0}, {"state_dtype": torch.bfloat16}], ids=str)
def test_a_watched_run_is_bit_for_bit_the_unwatched_one(settings):
    alone, one, _ = run(settings, watched=False)
    seen, two, record = run(settings, watched=True)
    for a, b in zip(alone.parameters(), seen.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(one.state[a][name], two.state[b][name]) for name in one.state[a])
    assert len(record["update_rms"]) == 25
    assert (record["update_rms"] <= 0.02 * 1.001).all()  # no step above lr


def test_there_is_no_second_moment_to_speak_of():
    _, optimizer, _ = run({}, watched=False, steps=1)
    assert second_moment(optimizer, optimizer.param_groups[0]) is None


def test_the_edge_is_read_and_said_to_be_formal():
    net, optimizer, _ = run({}, watched=False)
    x, y = digits_like()
    found = edge(lambda: F.cross_entropy(net(x), y), optimizer)
    assert found.formal
    assert found.chi > 0
    assert found.threshold == pytest.approx(26.9 / 0.02, rel=1e-3)


def test_a_guard_refuses_a_step_of_it_and_it_goes_on():
    net, optimizer, record = run({}, watched=True, bad=12, guarded=True)
    assert all(bool(param.isfinite().all()) for param in net.parameters())
    assert all(bool(each.isfinite().all()) for state in optimizer.state.values() for each in state.values())
    assert record["loss"][-1] < record["loss"][0]
