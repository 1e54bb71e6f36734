"""Probes that look at the loss while its graph lives, and at the gradients before they are consumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foreshock.errors import ForeshockWarning
from foreshock.monitor import Monitor
from foreshock.probes import Moment, Step, UnavailableError
from tests.live.nets import OPTIMIZERS, batches, net, same, state_of


class Looker:
    """Takes gradients of every live loss and keeps all that it was shown."""

    name = "looker"

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.seen: list[Any] = []
        self.raised: list[tuple[str, int]] = []
        self.error: Exception | None = None

    def observe(self, moment: Moment) -> bool:
        assert moment.loss is not None
        if self.error is not None and moment.number == 3:
            raise self.error
        params = [p for group in moment.optimizer.param_groups for p in group["params"]]
        found = torch.autograd.grad(moment.loss, params, create_graph=True, allow_unused=True)
        self.moments.append(moment)
        self.seen.append([None if g is None else g.detach() for g in found])
        return True

    def before(self, moment: Moment) -> bool:
        assert moment.loss is None
        params = [p for group in moment.optimizer.param_groups for p in group["params"]]
        self.seen.append([None if p.grad is None else p.grad.clone() for p in params])
        return False

    def heard(self, kind: str, step: int) -> None:
        self.raised.append((kind, step))

    def __call__(self, step: Step) -> dict[str, float]:
        return {"looks": float(len(self.moments))} if step.number % 2 else {}


def train(monitor: Any, steps: int = 6, accumulate: int = 1, spoil: int = -1) -> tuple[nn.Module, Any]:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    torch.manual_seed(1)
    with monitor(model, optimizer) as watching:
        for i, (x, y) in enumerate(batches(steps * accumulate)):
            loss = F.cross_entropy(model(x), y) * (1e4 if i == spoil else 1.0)
            watching.observe(loss, batch=i)
            (loss / accumulate).backward()
            if i % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
        run = watching.run
    return run, state_of(model, optimizer)


def test_a_live_probe_sees_the_loss_before_backward_and_the_gradients_before_the_step() -> None:
    looker = Looker()
    run, _ = train(lambda m, o: Monitor(m, o, probes=[looker], max_overhead=9.0))
    assert [m.number for m in looker.moments] == list(range(6))
    assert [m.batch for m in looker.moments] == list(range(6))
    for ahead, consumed in zip(looker.seen[::2], looker.seen[1::2], strict=True):
        for a, b in zip(ahead, consumed, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
    assert run.measured("looks")[0].tolist() == [1, 3, 5]


def test_what_it_does_to_the_graph_is_no_backward_of_the_training() -> None:
    """The factor between loss and backward is not counted twice, and the training stays what it was."""
    looker = Looker()
    run, state = train(lambda m, o: Monitor(m, o, probes=[looker]), accumulate=3)
    _, plain = train(lambda m, o: Monitor(m, o, probes=[]), accumulate=3)
    assert same(state, plain)
    assert run["loss_scale"].tolist() == pytest.approx([1.0] * 6)
    assert [m.place for m in looker.moments] == [0, 1, 2] * 6
    assert looker.moments[0].weights == ()
    assert [float(w) for w in looker.moments[-1].weights] == pytest.approx([1 / 3] * 3)


def test_it_is_told_of_events() -> None:
    looker = Looker()

    def monitor(model: nn.Module, optimizer: Any) -> Monitor:
        return Monitor(model, optimizer, probes=[looker])

    train(monitor, steps=60, spoil=50)
    assert ("spike", 50) in looker.raised


def test_one_that_fails_is_left_out_and_said_once() -> None:
    looker = Looker()
    looker.error = ZeroDivisionError("on purpose")
    with pytest.warns(ForeshockWarning, match=r"(?s)'looker' failed at step 3.*on purpose") as said:
        run, state = train(lambda m, o: Monitor(m, o, probes=[looker]))
    assert len(said) == 1
    assert [n["name"] for n in run.notes if n["kind"] == "probe_disabled"] == ["looker"]
    assert same(state, train(lambda m, o: Monitor(m, o, probes=[]))[1])
    assert len(looker.moments) == 3


def test_one_that_cannot_measure_here_says_so_in_the_run_and_nowhere_else() -> None:
    looker = Looker()
    looker.error = UnavailableError("there is nothing to see")
    run, _ = train(lambda m, o: Monitor(m, o, probes=[looker]))
    notes = [n for n in run.notes if n["kind"] == "probe_unavailable"]
    assert [(n["name"], n["reason"], n["step"]) for n in notes] == [("looker", "there is nothing to see", 3)]
    assert len(looker.moments) == 3
