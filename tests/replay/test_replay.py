"""Replays repeat the record bit for bit, tell which single change removes an event, and leave no trace."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from foreshock.diagnose.rank import diagnose
from foreshock.errors import UsageError
from foreshock.history import History
from foreshock.monitor import Monitor
from foreshock.replay import Replay, aside, edge, replay, what_if
from foreshock.replay.scene import Scene
from foreshock.run import Event, Run
from tests.replay.worlds import AT, World, batch, train


def state_of(world: World) -> list[torch.Tensor]:
    """Returns all tensors of a training, gradients and the random stream included, copied."""
    tensors = [*world.model.state_dict().values()]
    tensors += [each for state in world.optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
    tensors += [param.grad for param in world.model.parameters() if param.grad is not None]
    return [each.detach().clone() for each in (*tensors, torch.get_rng_state())]


@cache
def world_of(fault: str, optimizer: str = "adamw", dropout: float = 0.0) -> World:
    """Returns a training that several tests share: a replay leaves it as it was."""
    return train(fault, optimizer=optimizer, dropout=dropout)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_unchanged_course_is_the_record_bit_for_bit(optimizer: str, dropout: float) -> None:
    world = world_of("labels", optimizer, dropout)
    found = replay(world.monitor, world.event, world.step_fn, [])
    assert found.reproducible
    assert found.differs_at is None
    assert [*found.original.values()] == [world.losses[step] for step in found.original]
    assert found.start <= found.event.onset < max(found.original)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_a_bad_batch_is_removed_by_the_batches_alone(optimizer: str) -> None:
    world = world_of("labels", optimizer)
    found = replay(world.monitor, world.event, world.step_fn)
    assert {"skip", "other_batches"} <= set(found.cures)
    assert not {"floor", "beta2", "float64", "float64_loss", "exact_softmax", "cut_lr"} & set(found.cures)
    assert found["hold_lr"].verdict == "not applicable"
    assert found.arms["skip"] < found.peak


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_a_raised_learning_rate_is_removed_by_holding_it(optimizer: str) -> None:
    world = world_of("lr", optimizer)
    found = replay(world.monitor, world.event, world.step_fn)
    assert "hold_lr" in found.cures
    assert not {"exact_softmax", "float64", "float64_loss"} & set(found.cures)


def test_a_scaled_gradient_is_removed_by_clipping_it() -> None:
    world = world_of("gradient", "sgd")
    found = replay(world.monitor, world.event, world.step_fn)
    assert "clip_grad" in found.cures
    assert found["other_batches"].verdict != "removed"  # the fault strikes its step, whatever the batch
    assert found["float64"].verdict != "removed"


def test_a_weight_changed_by_nobody_is_not_reproducible() -> None:
    world = world_of("weight")
    found = replay(world.monitor, world.event, world.step_fn)
    assert not found.reproducible
    assert found.differs_at == AT
    assert found.repeats
    assert found.rows == ()
    best = diagnose(world.monitor.run, world.event).best
    assert best.name == "not_reproducible"
    assert "hardware" in " ".join(best.evidence)


def test_a_step_function_that_draws_otherwise_each_time_is_told_apart() -> None:
    world = world_of("labels")

    def noisy(given: Any) -> torch.Tensor:
        loss = world.step_fn(given)
        return loss + next(noise)

    noise = iter(torch.arange(1, 10_000) * 1e-6)
    found = replay(world.monitor, world.event, noisy, [what_if.skip(), what_if.float64_loss()])
    assert not found.reproducible
    assert found.repeats is False
    assert found.returns  # so the changes can be judged all the same
    assert found.cures == ["skip"]
    assert "comes again" in found.summary


def test_a_step_that_a_scaler_refuses_is_refused_again_and_all_else_of_it_done() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step_fn(given: Any) -> torch.Tensor:
        x, y = given
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        monitor.observe(loss, batch=given)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    with Monitor(model, optimizer) as monitor, History(monitor, scaler=scaler):
        for step in range(60):
            x, y = batch(step)
            step_fn((x * (math.inf if step == 40 else 1.0), y))
        event = Event("nonfinite", 40, 40, 40, 40, math.inf, math.inf, "loss")
        found = replay(monitor, event, step_fn, [what_if.skip()])
    assert found.reproducible
    assert math.isnan(found.original[40])
    assert scaler.get_scale() == 2.0**9


def test_nan_in_a_batch_is_removed_without_it() -> None:
    world = world_of("nan")
    found = replay(world.monitor, world.event, world.step_fn, [what_if.skip(), what_if.cut_lr()])
    assert math.isinf(found.peak)
    assert found.cures == ["skip"]


def test_the_training_is_afterwards_what_it_was() -> None:
    world = world_of("labels", "adamw", 0.2)
    before, modes = state_of(world), [module.training for module in world.model.modules()]
    grads = [param.grad for param in world.model.parameters()]
    records, rate = len(world.monitor.run), world.optimizer.param_groups[0]["lr"]
    replay(world.monitor, world.event, world.step_fn)
    assert same(before, state_of(world))
    assert all(param.grad is grad for param, grad in zip(world.model.parameters(), grads, strict=True))
    assert [module.training for module in world.model.modules()] == modes
    assert (len(world.monitor.run), world.optimizer.param_groups[0]["lr"]) == (records, rate)
    assert all(param.dtype == torch.float32 for param in world.model.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_it_is_what_it_was_also_when_the_step_function_fails() -> None:
    world = world_of("labels")
    before = state_of(world)

    def fails(given: Any) -> torch.Tensor:
        world.step_fn(given)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        replay(world.monitor, world.event, fails)
    assert same(before, state_of(world))


def test_a_training_goes_on_after_a_replay_as_if_there_had_been_none() -> None:
    """Two live trainings, one of which is replayed in mid-course, end bit for bit alike."""
    ends = []
    for replayed in (False, True):
        torch.manual_seed(8)
        world = train("labels", dropout=0.2, steps=90)
        with world.monitor, world.history:
            torch.manual_seed(9)
            if replayed:
                replay(world.history, world.event, world.step_fn, [what_if.cut_lr(), what_if.float64()])
            for step in range(90, 95):
                world.step_fn(batch(step))
        ends.append(state_of(world))
    assert same(*ends)


def test_arms_in_processes_of_their_own_find_the_same() -> None:
    world = world_of("labels")
    arms = [what_if.cut_lr(), what_if.skip(), what_if.hold_lr()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = replay(world.monitor, world.event, world.step_fn, arms)
        forked = replay(world.monitor, world.event, world.step_fn, arms, processes=2)
    finally:
        torch.set_num_threads(threads)
    assert [row.name for row in forked.rows] == [row.name for row in alone.rows]
    assert [dict(row.losses) for row in forked.rows] == [dict(row.losses) for row in alone.rows]


def test_an_arm_of_ones_own_changes_what_it_likes_and_is_undone() -> None:
    world = world_of("labels")

    def frozen(scene: what_if.Scene) -> None:
        for group in scene.optimizer.param_groups:
            group["lr"] = 0.0

    found = replay(world.monitor, world.event, world.step_fn, [what_if.arm("still", frozen, what="lr 0")])
    assert found["still"].what == "lr 0"
    assert found["still"].losses[found.start + 5] != found.original[found.start + 5]
    assert world.optimizer.param_groups[0]["lr"] == 5e-3


def test_an_arm_that_fails_is_said_and_the_others_are_tried() -> None:
    world = world_of("labels")

    def broken(scene: what_if.Scene) -> None:
        raise ValueError("no such thing")

    found = replay(world.monitor, world.event, world.step_fn, [what_if.arm("own", broken), what_if.skip()])
    assert found["own"].verdict == "failed"
    assert "no such thing" in found["own"].why
    assert found.cures == ["skip"]


def test_what_it_finds_is_kept_with_the_run_and_moves_the_diagnosis(tmp_path: Path) -> None:
    world = train("labels", path=tmp_path / "a")
    found = replay(world.monitor, world.event, world.step_fn)
    run = Run.load(tmp_path / "a")
    kept = run.findings_of(world.event, "replay")[-1]
    assert kept["cures"] == found.cures
    assert kept["arms"][0]["losses"] == [*found.rows[0].losses.values()]
    diagnosis = diagnose(run, world.event)
    assert diagnosis.best.name == "outlier_batch"
    assert any("Run again" in said for said in diagnosis.best.evidence)


def test_a_window_is_replayed_without_its_monitor() -> None:
    world = world_of("labels")
    window = world.history.window(world.event)
    found = replay(window, world.event, world.step_fn, [what_if.skip()])
    assert found.cures == ["skip"]


@pytest.mark.parametrize(
    ("arms", "message"),
    [(["cut_lr"], "what_if.cut_lr"), ([what_if.skip(), what_if.skip()], "two arms are called 'skip'")],
)
def test_wrong_arms_are_named(arms: Any, message: str) -> None:
    world = world_of("labels")
    with pytest.raises(UsageError, match=message):
        replay(world.monitor, world.event, world.step_fn, arms)


def test_without_a_history_it_says_what_to_write() -> None:
    model = torch.nn.Linear(2, 1)
    monitor = Monitor(model, torch.optim.SGD(model.parameters(), 0.1))
    event = Event("spike", 5, 5, 5, 5, 1.0, 9.0, "loss")
    with pytest.raises(UsageError, match=r"fs.History\(monitor\)"):
        replay(monitor, event, lambda _: 0.0)


def test_a_step_function_that_returns_no_loss_is_an_error() -> None:
    world = world_of("labels")

    def silent(given: Any) -> None:
        world.step_fn(given)

    with pytest.raises(UsageError, match=r"step_fn\(batch\)"):
        replay(world.monitor, world.event, silent)


def test_the_summary_names_what_cures() -> None:
    found: Replay = replay((world := world_of("labels")).monitor, world.event, world.step_fn)
    assert "bit for bit" in found.summary
    assert "`skip`" in found.summary
    with pytest.raises(KeyError, match="there are: cut_lr"):
        found["nothing"]


def test_a_burst_that_shows_only_later_is_held_against_what_was_before_it() -> None:
    """Momentum carries a burst on, and the loss rises steps after it: what is usual ends where the update leapt."""
    world = world_of("gradient", "sgd")
    late = Event("spike", AT + 8, AT + 8, max(world.event.peak, AT + 9), AT + 12, 1.0, 9.0, "loss")
    found = replay(world.monitor, late, world.step_fn, [what_if.clip_grad()])
    assert found.cures == ["clip_grad"]


def test_chi_is_read_along_the_course_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step_fn(given: torch.Tensor) -> torch.Tensor:
        loss = ((model(given) - torch.sin(3 * given)) ** 2).mean()
        monitor.observe(loss, batch=given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses: list[float] = []
    with Monitor(model, optimizer, probes=[]) as monitor, History(monitor):
        for _ in range(80):
            losses.append(float(step_fn(x).detach()))
    peak = max(range(60, 80), key=lambda step: losses[step])
    event = Event("spike", 62, 62, peak, peak, 1.0, 9.0, "loss")
    before = state_of_model(model)
    read = _measured(monitor, event, step_fn)
    assert read is not None
    assert len(read["chi"]) == len(read["steps"]) > 10
    assert max(read["chi"]) > 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, state_of_model(model), strict=True))


def state_of_model(model: torch.nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def _measured(monitor: Monitor, event: Event, step_fn: Any) -> Any:
    window = monitor.history.window(event)
    with aside(window.holding, monitor=monitor):
        return edge.measured(Scene(window, event), step_fn)
