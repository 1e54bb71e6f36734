"""On a GPU: copies that run beside the training hold what there was, and no update or reuse overtakes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foreshock.guard import buffers
from foreshock.guard.snapshots import Snapshots

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

OPTIMIZERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3, device="cuda"), capturable=True),
}


def training(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(8)], nn.BatchNorm1d(1024), nn.Dropout(0.1)).cuda()
    return model, OPTIMIZERS[optimizer](model.parameters()), torch.amp.GradScaler("cuda", init_scale=8.0)


def advance(model, optimizer, scaler, steps=1):
    for _ in range(steps):
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.randn(64, 1024, device="cuda")).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def state(model, optimizer, scaler):
    moments = [value for entry in optimizer.state.values() for value in entry.values()]
    rates = [group["lr"] for group in optimizer.param_groups if isinstance(group["lr"], torch.Tensor)]
    tensors = [*model.state_dict().values(), *moments, *rates, scaler._scale, scaler._growth_tracker]
    return [bits(tensor) for tensor in [*tensors, torch.cuda.get_rng_state()]]


def bits(tensor):
    return tensor.detach().cpu().flatten().view(torch.uint8).clone()  # not-a-number is equal to itself


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_snapshots_taken_while_training_goes_on_come_back_bit_for_bit(optimizer, staged, monkeypatch):
    if not staged:
        monkeypatch.setattr(buffers, "_ROOMY", 1e9)
    parts = training(optimizer)
    snapshots = Snapshots(every=1, keep=3)
    snapshots.attach(parts[0], parts[1], scaler=parts[2])
    advance(*parts, steps=2)
    wanted = {}
    for step in range(12):
        wanted[step] = state(*parts)
        assert snapshots.take(step)
        advance(*parts)  # at once: nobody waits
    assert all(snapshot.buffer.pinned for snapshot in snapshots._ring)
    where = [p.data_ptr() for p in parts[0].parameters()]
    for step in snapshots.steps:
        snapshots.restore(step, rng=True)
        assert all(map(torch.equal, state(*parts), wanted[step]))
    ended = []
    for _ in range(2):
        snapshots.restore(snapshots.steps[0], rng=True)
        advance(*parts, steps=3)
        ended.append(state(*parts))
    assert all(map(torch.equal, *ended))
    assert where == [p.data_ptr() for p in parts[0].parameters()]


def test_the_state_of_the_ring_moves_to_the_host_and_back():
    parts = training("fused")
    snapshots = Snapshots(every=1, keep=2)
    snapshots.attach(parts[0], parts[1], scaler=parts[2])
    advance(*parts, steps=2)
    wanted = state(*parts)
    snapshots.take(0)
    advance(*parts)
    saved = snapshots.state_dict()
    fresh = training("fused")
    again = Snapshots()
    again.load_state_dict(saved)
    again.attach(fresh[0], fresh[1], scaler=fresh[2])
    again.restore(0, rng=True)
    assert all(map(torch.equal, state(*fresh), wanted))
    for step in range(1, 5):
        again.take(step)  # the ring's own memory takes the place of what was lent


def test_taking_one_does_not_make_the_host_wait():
    parts = training("fused")
    snapshots = Snapshots(every=1, keep=2)
    snapshots.attach(parts[0], parts[1], scaler=parts[2])
    advance(*parts, steps=2)
    for step in range(3):
        snapshots.take(step)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    ended = torch.cuda.current_stream().record_event()
    snapshots.take(3)
    assert not ended.query()
    torch.cuda.synchronize()
