"""What a step function uses beside the training is found, named, and left as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from foreshock.guard.holding import Holding
from foreshock.history import History
from foreshock.monitor import Monitor
from foreshock.replay import Replay, replay, what_if
from foreshock.replay.beside import beside
from foreshock.replay.slots import changed
from foreshock.run import Event
from tests.replay.worlds import batch

STEPS, AT = 60, 40
EVENT = Event("spike", AT, AT, AT, AT, 1.0, 9.0, "loss")
counted = 0


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))


class Loop:
    """A training whose step touches what its history is not told of.

    Attributes:
        found: the replay in the middle of it, where one was asked for.
        losses: of all its steps.
    """

    def __init__(self, extra: Callable[[Loop], Callable[[], float]], *, replayed: bool, known: bool = True) -> None:
        self.model, self.found, self.losses = net(), None, list[float]()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.other = nn.Linear(4, 4)
        self.rival = torch.optim.SGD(self.other.parameters(), 0.1, momentum=0.9)
        self.factor = extra(self)
        model = self.model if known else [*self.model.named_parameters()]
        with Monitor(model, self.optimizer) as self.monitor, History(self.monitor):
            for step in range(STEPS + 10):
                if replayed and step == STEPS:
                    arms = [what_if.cut_lr(), what_if.float64()]
                    self.found = replay(self.monitor, EVENT, self.step, arms)
                self.losses.append(float(self.step(batch(step))))

    def step(self, given: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(self.model(given[0]), given[1]) * self.factor()
        self.monitor.observe(loss, batch=given)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def scheduler(loop: Loop) -> Callable[[], float]:
    schedule = LambdaLR(loop.optimizer, lambda step: 0.97**step)

    def factor() -> float:
        if loop.losses:  # torch warns of one that steps before its optimizer
            schedule.step()
        return 1.0

    return factor


def rival(loop: Loop) -> Callable[[], float]:
    def factor() -> float:
        loss = (loop.other(torch.ones(4)) - 3).square().mean()
        loop.rival.zero_grad()
        loss.backward()
        loop.rival.step()
        return 1 + float(loss.detach()) / 100

    return factor


def sources(_: Loop) -> Callable[[], float]:
    one, two, three = torch.Generator().manual_seed(1), np.random.default_rng(2), random.Random(4)
    return lambda: 1 + 0.1 * (float(torch.rand((), generator=one)) + two.random() + three.random())


def counters(loop: Loop) -> Callable[[], float]:
    inside, seen, weight = 0, {"steps": 0}, torch.ones(2)
    loop.model.steps = 0  # type: ignore[assignment]

    def factor() -> float:
        global counted
        nonlocal inside
        inside, counted = inside + 1, counted + 1
        seen["steps"] += 1
        loop.model.steps += 1
        weight.mul_(1.001)
        return 1 + 1e-3 * (inside + counted + seen["steps"] + float(weight[0]) + loop.model.steps)  # type: ignore[operator]

    return factor


def compared(extra: Callable[[Loop], Callable[[], float]], *, known: bool = True) -> Replay:
    """Returns the replay in a training that goes on afterwards as one does that had none."""
    global counted
    states, losses, found = [], [], None
    for replayed in (False, True):
        counted = 0
        torch.manual_seed(0)
        loop = Loop(extra, replayed=replayed, known=known)
        states.append([*loop.model.state_dict().values(), *loop.other.state_dict().values()])
        losses.append(loop.losses)
        found = loop.found
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *states))
    assert found is not None
    return found


def test_a_scheduler_that_the_history_was_not_given_is_named_and_left_alone() -> None:
    found = compared(scheduler)
    assert not found.reproducible
    assert any("LambdaLR" in each for each in found.beside)
    assert "LambdaLR" in found.summary
    assert found.to_dict()["beside"] == list(found.beside)


def test_a_second_network_and_its_optimizer_are_left_alone() -> None:
    assert {each.split("(")[1] for each in compared(rival).beside} >= {"SGD)"}


def test_generators_of_three_libraries_are_left_alone() -> None:
    assert {each.split("(")[1] for each in compared(sources).beside} == {"Generator)", "Random)"}


def test_counters_in_closures_globals_dicts_and_modules_are_left_alone() -> None:
    assert any("inside" in each for each in compared(counters).beside)


def test_statistics_of_a_model_that_the_monitor_does_not_know_are_left_alone() -> None:
    assert compared(lambda _: lambda: 1.0, known=False).start < AT


def test_what_is_held_is_not_kept_twice_and_logs_are_no_state() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    log: list[Any] = []
    found = beside(partial(lambda m, o, batch: log.append((m, o, batch)), model, optimizer), Holding(model, optimizer))
    assert not any("Adam" in each.kind or each.kind == "Tensor" for each in found)
    log.append(1)
    assert changed(found) == ()
    for each in found:
        each.put_back()
    assert log == []


def test_rates_set_by_hand_before_the_forward_pass_repeat() -> None:
    class ByHand(Loop):
        def step(self, given: tuple[Tensor, Tensor]) -> Tensor:
            done = int(self.model[1].num_batches_tracked)  # type: ignore[arg-type]
            self.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + done)
            return super().step(given)

    found = ByHand(lambda _: lambda: 1.0, replayed=True).found
    assert found is not None
    assert found.reproducible


def test_an_arm_may_turn_the_training_inside_out() -> None:
    def inside_out(scene: Any) -> None:
        scene.model.half()
        scene.model.add_module("more", nn.Linear(2, 2))
        scene.optimizer.state.clear()
        scene.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        scene.optimizer.param_groups[0]["betas"] = (0.5, 0.5)
        scene.params[0].requires_grad_(False)
        scene.model.eval()

    class Twice(Loop):
        def step(self, given: tuple[Tensor, Tensor]) -> Tensor:
            if self.found is None and len(self.losses) == STEPS and arms:
                arms.pop()
                self.found = replay(self.monitor, EVENT, self.step, [what_if.arm("all", inside_out), what_if.cut_lr()])
            return super().step(given)

    arms = [1]
    loop, plain = Twice(lambda _: lambda: 1.0, replayed=False), Loop(lambda _: lambda: 1.0, replayed=False)
    assert loop.found is not None
    assert [row.verdict == "failed" for row in loop.found.rows] == [True, False]
    assert loop.losses == plain.losses
    assert [each.dtype for each in loop.model.parameters()] == [torch.float32] * 6
    assert len(loop.optimizer.param_groups) == 1


def test_a_scaler_works_in_float64() -> None:
    class Scaled(Loop):
        def step(self, given: tuple[Tensor, Tensor]) -> Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(given[0].float()), given[1])
            self.monitor.observe(loss, batch=given)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return loss.detach()

        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    found = Scaled(lambda _: lambda: 1.0, replayed=True).found
    assert found is not None
    assert found["float64"].why == ""
