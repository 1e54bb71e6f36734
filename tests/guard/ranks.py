"""What two ranks do under a guard, checked on each; run by `test_guard_ranks.py`.

`python -m tests.guard.ranks RANK PORT`; prints OK, or ends in an assertion.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from foreshock import Guard, Monitor, Snapshots, policies
from foreshock.guard.agreement import anywhere, common, mark, same
from foreshock.run.action import Action
from tests.guard.loops import adamw, at, batch

CPU = torch.device("cpu")
NAN, NOISE, ROW = 20, 26, (32, 33, 34)  # steps at which batches are bad; in a row of them the state is suspected


def norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 1))


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1))


def spoiled(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Returns this rank's batch; rank 1 meets what is bad, but for a batch of noise that both meet."""
    x, y = batch(2 * step + rank)
    if step == NAN and rank == 1:
        x = x * math.nan
    if (step == NOISE and rank == 1) or step in ROW:
        y = y + 50.0
    return x, y


def train(
    model: nn.Module, rank: int, policy: Any = None, *, steps: int = 37, every: int = 10,
    between: Callable[[int, nn.Module, Guard], None] | None = None,
) -> tuple[torch.optim.Optimizer, Guard, Monitor]:  # fmt: skip
    optimizer = adamw(model)
    with Monitor(model, optimizer, probes=[]) as monitor:
        guard = Guard(monitor, policy, snapshots=Snapshots(every=every))
        for step in range(steps):
            x, y = spoiled(rank, step)
            loss = nn.functional.mse_loss(model(x), y)
            monitor.observe(loss)
            loss.backward()
            if between is not None:
                between(step, model, guard)
            guard.step()
            optimizer.zero_grad()
    return optimizer, guard, monitor


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """Returns all parameters, buffers and moments, whole, as one vector."""
    found = [*model.parameters(), *model.buffers()]
    found += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in found]
    return torch.cat([each.detach().double().flatten() for each in whole])


def agree(mine: Tensor) -> None:
    others = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(others, mine.contiguous())
    assert torch.equal(others[0], others[1]), "the ranks differ"


def agree_on(actions: tuple[Action, ...]) -> list[dict[str, Any]]:
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, [action.to_dict() for action in actions])
    assert gathered[0] == gathered[1], gathered
    return gathered[0]


def check_agreement(rank: int) -> None:
    group = dist.group.WORLD
    for values, alike in (((3, 3), True), ((3, 4), False), (((1.5, math.nan), (1.5, math.nan)), True)):
        sums = torch.tensor(mark(values[rank]), dtype=torch.float64)
        dist.all_reduce(sums)
        assert same(float(sums[0]), float(sums[1]), 2) == alike
    assert common([(0, 10, 20), (10, 20, 30)][rank], group, CPU) == (10, 20)
    assert common([(), (10,)][rank], group, CPU) == ()
    assert anywhere(rank == 1, group, CPU)
    assert not anywhere(False, group, CPU)


def check_data_parallel(rank: int) -> None:
    model = nn.parallel.DistributedDataParallel(norm_net())
    optimizer, guard, monitor = train(model, rank)
    done = agree_on(guard.actions)
    assert {NAN, NOISE, *ROW} <= {each["step"] for each in done}, done
    assert [each["kind"] for each in done[:2]] == ["skip", "skip"], done  # NaN is not left behind in the statistics
    assert "rollback" in {each["kind"] for each in done}, done
    agree(everything(nn.ParameterList(model.parameters()), optimizer))
    assert bool(everything(model, optimizer).isfinite().all())
    assert monitor.run["skipped"][NAN] == 1.0


def check_missing_snapshots(rank: int) -> None:
    """One rank has lost its newest snapshot: both go back to the newest that both have."""

    newest: list[int] = []
    left: list[int] = []

    def lose(step: int, model: nn.Module, guard: Guard) -> None:
        if step == 17:
            newest.extend(guard.snapshots.steps)
            guard.snapshots.drop_after(newest[-2] if rank == 0 else step)
            left.extend(guard.snapshots.steps)

    model = nn.parallel.DistributedDataParallel(plain_net())
    policy = at(18, policies.Rollback(before=18))
    optimizer, guard, _ = train(model, rank, policy, steps=20, every=4, between=lose)
    done = agree_on(guard.actions)
    assert [each["before"] for each in done] == [left[-1] if rank == 0 else newest[-2]], done
    agree(everything(model, optimizer))


def check_sharded(rank: int) -> None:
    """Sharded as whole: norms, decisions, and what skips, cuts, scaled and clipped updates and rollbacks leave."""

    def decide(events: Any, actions: Any) -> Action:
        answers: dict[int, Action] = {
            4: policies.Skip(), 5: policies.Scale(factor=0.5), 6: policies.ClipUpdate(limit=0.3),
            7: policies.CutLr(factor=0.1, steps=2), 14: policies.Rollback(before=13), 15: policies.RepairMoments(),
        }  # fmt: skip
        norms.append(events.values["grad_norm"])
        return answers.get(events.step, policies.Proceed())

    ended, seen = [], []
    for shard in (True, False):
        norms: list[float] = []
        model = plain_net()
        if shard:
            for layer in (model[0], model[2]):
                fully_shard(layer)
            fully_shard(model)
        else:
            model = nn.parallel.DistributedDataParallel(model)
        optimizer, guard, _ = train(model, rank, decide, steps=18)
        done = agree_on(guard.actions)
        assert [each["step"] for each in done] == [4, 5, 6, 7, 14, 15], done
        assert 0 < done[4]["before"] <= 13, done
        agree(everything(model, optimizer))
        agree(torch.tensor(norms))
        ended.append(everything(model, optimizer))
        seen.append(torch.tensor(norms))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(*ended, rtol=1e-3, atol=1e-6)


def check_sharded_default(rank: int) -> None:
    model = plain_net()
    fully_shard(model)
    optimizer, guard, _ = train(model, rank)
    done = agree_on(guard.actions)
    assert {NAN, NOISE, *ROW} <= {each["step"] for each in done}, done
    assert bool(everything(model, optimizer).isfinite().all())


def main() -> None:
    rank = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
    for check in (check_agreement, check_data_parallel, check_missing_snapshots, check_sharded, check_sharded_default):
        check(rank)
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps("OK"))


if __name__ == "__main__":
    main()
