"""Events attributed live: odd batches, bursts, and a training that notices nothing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foreshock as fs
from foreshock.attribution import attribute_event
from foreshock.errors import UsageError
from foreshock.run import Event

BAD = (3, 11, 20)


class Training:
    """A small classifier on noisy linear classes; something may be wrong at one step."""

    def __init__(self, seed: int = 0, *, at: int = 60, wrong: str = "rows", dropout: float = 0.0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.seed, self.at, self.wrong = seed, at, wrong

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1000 * self.seed + step))
        y = x[:, :4].argmax(1)
        if step == self.at and self.wrong == "rows":
            x[list(BAD)] *= 6
            y[list(BAD)] = x[list(BAD), :4].argmin(1)
        return x, y

    def each(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1], reduction="none")

    def step(self, batch, observe=None) -> Tensor:
        loss = self.each(batch).mean()
        if observe is not None:
            observe(loss, batch=batch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.wrong == "moments" and self.optimizer.state[self.model[0].weight].get("step", 0) == self.at:
            for state in self.optimizer.state.values():
                state["exp_avg_sq"].mul_(1e-8)
        self.optimizer.step()
        return loss.detach()

    def run(self, steps: int, monitor) -> None:
        for step in range(steps):
            self.step(self.batch(step), monitor.observe)
        monitor.flush()

    def state(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict())), torch.get_rng_state()


def spoilt(steps: int = 70, **settings):
    """Returns a training, its monitor and an event around the largest loss from the plant on."""
    training = Training(**settings)
    monitor = fs.Monitor(training.model, training.optimizer)
    with monitor, fs.History(monitor):
        training.run(steps, monitor)
    losses = monitor.run["loss"]
    peak = training.at + int(losses[training.at :].argmax())
    onset = training.at + (training.wrong == "moments")
    return training, monitor, Event("spike", onset, onset, max(onset, peak), None, 1.0, 9.0, "loss")


def same(one, two) -> bool:
    flat = [list(_leaves(each)) for each in (one, two)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(*flat, strict=True))


def _leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)
    else:
        yield tree


def test_the_bad_examples_of_an_odd_batch_are_blamed():
    for seed in range(2):
        training, monitor, event = spoilt(seed=seed)
        found = attribute_event(monitor, event, training.step, training.each, decode=lambda batch, i: f"row {i}")
        assert found.step == training.at
        assert set(found.blamed(3)) == {(training.at, i) for i in BAD}
        assert found.from_batch > 5 * abs(found.from_step)
        assert float(found.suspects.sum()) == pytest.approx(found.from_batch, rel=0.2)
        assert found.completeness <= 1e-3
        assert found.seen < training.at
        told = json.loads(json.dumps(monitor.run.findings_of(event, "attribution")[-1]))
        assert told["event"] == list(event.key)
        assert {row["text"] for row in told["blamed"][:3]} == {f"row {i}" for i in BAD}
        assert told["suspects"][0]["step"] == training.at


def test_a_lost_state_is_the_updates_doing_and_not_the_batchs():
    training, monitor, event = spoilt(wrong="moments")
    found = attribute_event(monitor, event, training.step, training.each, decode=lambda one: one[0].reshape(2, 4))
    assert found.suspects is None
    assert found.from_step > abs(found.from_batch)
    assert found.step >= training.at
    assert found.measured > 0
    sides = float(found.culprits.sum()) + found.history + found.decay + found.l2 + found.rest
    assert sides == pytest.approx(found.total, rel=1e-6)
    assert abs(found.rest) <= 1e-3 * abs(found.total) or any("not what Adam does" in note for note in found.notes)
    assert found.to_dict()["blamed"][0]["image"].startswith("data:image/png;base64,")


def test_the_training_notices_nothing_also_when_something_fails():
    torch.manual_seed(5)
    training, monitor, event = spoilt(dropout=0.2)
    before, seen = training.state(), len(monitor.run["loss"])
    hooks = copy.copy(training.optimizer._optimizer_step_pre_hooks)
    attribute_event(monitor, event, training.step, training.each)
    assert same(training.state(), before)

    def failing(batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attribute_event(monitor, event, training.step, failing)
    assert same(training.state(), before)
    assert len(monitor.run["loss"]) == seen
    assert training.optimizer._optimizer_step_pre_hooks == hooks
    assert training.model.training


def test_without_a_history_or_a_step_it_says_so():
    training, monitor, event = spoilt()
    with pytest.raises(UsageError, match="took no step"):
        attribute_event(monitor, event, training.each, training.each)
    with pytest.raises(UsageError, match="functions"):
        attribute_event(monitor, event, training.step, None)
    with pytest.raises(UsageError, match="span"):
        attribute_event(monitor, event, training.step, training.each, span=0)
    other = Training()
    bare = fs.Monitor(other.model, other.optimizer)
    with pytest.raises(UsageError, match="history"):
        attribute_event(bare, Event("spike", 5, 5, 5, 6, 1.0, 9.0, "loss"), other.step, other.each)


def test_attributing_between_two_steps_does_not_disturb_a_history():
    """Its passes at other weights are not taken for the beginning of a step."""
    training = Training(wrong="")
    monitor = fs.Monitor(training.model, training.optimizer)
    with monitor, fs.History(monitor) as history:
        for step in range(30):
            batch = training.batch(step)
            before = [p.detach().clone() for p in training.model.parameters()]
            training.step(batch, monitor.observe)
            after = [p.detach().clone() for p in training.model.parameters()]
            losses = lambda batch=batch: training.each(batch)  # noqa: E731
            fs.attribute(losses, list(training.model.parameters()), before, after, names=training.model, nodes=1)
        window = history.window(Event("spike", 25, 25, 25, None, 1.0, 9.0, "loss"))
    window.restore()
    for step in window.steps:
        assert step not in window.checkpoints or window.same(step)
        window.set_rng(window.rng(step)[0])
        assert training.step(window.batch(step)).item() == window.loss(step)


def test_what_happens_outside_of_the_steps_is_said_not_to_repeat():
    training = Training(wrong="")
    monitor = fs.Monitor(training.model, training.optimizer)
    with monitor, fs.History(monitor):
        for step in range(50):
            if step == 40:
                with torch.no_grad():
                    training.model[0].weight.mul_(-1.0)  # by nobody's update
            training.step(training.batch(step), monitor.observe)
    found = attribute_event(
        monitor, Event("spike", 40, 40, 40, None, 1.0, 9.0, "loss"), training.step, training.each
    )
    assert any("step 40 on, losses are not what was observed" in note for note in found.notes)


def test_micro_batches_are_attributed_together():
    training, gather = Training(), []

    def step(parts, observe=None):
        training.optimizer.zero_grad()
        for part in parts:
            loss = training.each(part).mean()
            if observe is not None:
                observe(loss, batch=part)
            (loss / len(parts)).backward()
            gather.append(loss.item())
        training.optimizer.step()
        return sum(gather[-len(parts) :]) / len(parts)

    monitor = fs.Monitor(training.model, training.optimizer)
    with monitor, fs.History(monitor):
        for i in range(70):
            x, y = training.batch(i)
            step([(x[:24], y[:24]), (x[24:], y[24:])], monitor.observe)
    found = attribute_event(
        monitor, Event("spike", 60, 60, 60, None, 1.0, 9.0, "loss"), step, training.each,
        decode=lambda batch, i: f"{len(batch[0])} {i}",
    )  # fmt: skip
    assert set(found.blamed(3)) == {(60, i) for i in BAD}
    assert found.shown[60, 20] == {"text": "24 20"}
    assert not found.notes
    assert abs(found.rest) <= 1e-4 * max(abs(found.history), abs(float(found.culprits.abs().sum())))
