"""What two ranks find when they replay together, checked on each; run by `test_replay_ranks.py`.

`python -m tests.replay.ranks RANK PORT`; prints OK, or ends in an assertion.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from foreshock import History, Monitor, Snapshots, replay, what_if
from foreshock.run import Event

BAD, STEPS = 40, 60  # only the second rank's batch is bad


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.Dropout(0.1), nn.Tanh(), nn.Linear(24, 1))


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2 * step + rank)
    x = torch.randn(16, 8, generator=generator)
    return x, x.sum(1, keepdim=True) + (300.0 if step == BAD and rank == 1 else 0.0)


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = [*model.parameters()]
    found += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [(each.full_tensor() if isinstance(each, DTensor) else each).detach().clone() for each in found]


def check(model: nn.Module, rank: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

    def step_fn(given: Any) -> Tensor:
        x, y = given
        loss = nn.functional.mse_loss(model(x), y)
        monitor.observe(loss, batch=given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    with Monitor(model, optimizer, probes=[]) as monitor, History(monitor, snapshots=Snapshots(every=10)):
        for step in range(STEPS):
            step_fn(batch(step, rank))
        before = whole(model, optimizer)
        event = Event("spike", BAD, BAD, BAD, BAD + 1, 1.0, 9.0, "loss", {"baseline": 1.0})
        arms = [what_if.cut_lr(), what_if.hold_lr(), what_if.skip(), what_if.other_batches(), what_if.float64()]
        found = replay(monitor, event, step_fn, arms)
        assert found.reproducible, found.differs_at
        verdicts = {row.name: row.verdict for row in found.rows}
        assert verdicts["hold_lr"] == "not applicable", verdicts
        if rank == 1:
            assert {"skip", "other_batches"} <= set(found.cures), verdicts
        kept = len(monitor.run.findings)
        assert kept == (rank == 0), kept
        assert all(torch.equal(a, b) for a, b in zip(before, whole(model, optimizer), strict=True))
        step_fn(batch(STEPS, rank))  # and the training goes on


def main() -> None:
    rank, port = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    check(nn.parallel.DistributedDataParallel(net()), rank)
    sharded = net()
    fully_shard(sharded)
    check(sharded, rank)
    dist.destroy_process_group()
    print("OK")


if __name__ == "__main__":
    main()
