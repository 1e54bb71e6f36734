"""A history changes nothing, and what it keeps leads through the same steps again, bit for bit."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from foreshock import ForeshockWarning, Monitor, UsageError
from foreshock.curvature.harmless import harmless
from foreshock.guard.snapshots import Snapshots
from foreshock.history import History
from foreshock.history.pins import Pin
from tests.history.loops import Training, adamw, cosine, exact, sgd, spike, two_groups


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


TRAININGS = {
    "sgd": {"make": sgd},
    "adamw": {"make": adamw},
    "groups": {"make": two_groups},
    "accumulated": {"make": adamw, "micro": 3},
    "noisy": {"make": sgd, "noise": True},
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_with_a_history_is_bit_for_bit_the_one_without(kind, stack):
    plain = Training(**TRAININGS[kind])
    plain.run(range(50))
    expected = plain.state()
    kept = Training(**TRAININGS[kind])
    kept.watched(range(50), stack)
    assert kept.losses == plain.losses
    assert kept.state() == expected


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_window_leads_through_the_same_losses_again(kind, stack):
    training = Training(**TRAININGS[kind])
    history = training.watched(range(90), stack)
    window = history.window(spike(70, 72))
    assert window.start == 40
    assert window.steps == tuple(range(40, 90))
    assert window.checkpoints == (60, 80)
    assert [window.loss(step) for step in window.steps] == training.losses[40:]
    history.close()
    history.monitor.close()
    before = int(training.noise)  # it draws before the model is called
    assert exact(window, training.step, before) == 50
    assert exact(window, training.step, before) == 50  # and once more: what was given back is not what was kept
    assert not window.same(window.start)


def test_learning_rates_and_micro_batches_are_kept(stack):
    training = Training(two_groups, micro=2)
    window = training.watched(range(60), stack).window(spike(50))
    assert len(window.batch(45)) == 2
    assert len(window.losses(45)) == 2
    assert torch.equal(window.batch(45)[1]["x"], training.batch(45)[1]["x"])
    shrink = (1 + math.cos(math.pi * 45 / 200)) / 2
    assert window.lr(45) == pytest.approx((1e-3 * shrink, 1e-4 * shrink))
    with pytest.raises(UsageError, match="step 99 is not in this window"):
        window.batch(99)


def test_a_window_of_a_later_event_begins_before_chi_passed_1(stack):
    training = Training()
    history = training.watched(range(120), stack)
    history.monitor._keep(spike(62, kind="watch", signal="chi", end=100))
    assert history.window(spike(100)).start == 60
    assert history.window(spike(119)).start == 60
    assert history.window(spike(45)).start == 20  # chi was below 1 then


def test_the_user_says_where_a_window_begins(stack):
    history = Training().watched(range(100), stack)
    assert history.window(spike(90), before=50).start == 40
    assert history.window(spike(90), before=40).start == 40
    assert history.window(spike(10)).start == 0  # the oldest, where none is 20 steps before
    with pytest.raises(UsageError, match="has not been taken yet"):
        history.window(spike(500))


def loud(training, history, later):
    """Runs into a loud batch and on; returns the event, and its window."""
    observe = history.monitor.observe
    training.run(range(100), observe)
    training.step({"x": training.batch(100)["x"], "y": 1e3 * training.batch(100)["y"]}, observe)
    training.run(range(101, 101 + later), observe)
    event = next(event for event in history.monitor.events if event.kind in ("spike", "divergence"))
    assert history.snapshots.steps[0] > event.onset
    window = history.window(event)
    assert window.steps[-1] > event.peak
    return event, window


def test_the_window_around_a_loud_event_outlives_the_ring(stack):
    training = Training(sgd)
    event, window = loud(training, training.watched(range(0), stack, snapshots=Snapshots(every=10, keep=5)), 250)
    assert window.start <= event.onset - 20
    assert exact(window, training.step) == len(window.steps)


@pytest.mark.slow
def test_the_window_around_a_loud_event_survives_a_thousand_steps(stack):
    training = Training(sgd)
    event, window = loud(training, training.watched(range(0), stack), 1000)
    assert window.start <= event.onset - 20
    assert exact(window, training.step) == len(window.steps)


def test_the_most_severe_windows_stay(stack):
    history = Training().watched(range(30), stack, keep=2)
    entries, states = history._all()
    for raised, severity in ((400, 7.0), (800, 30.0), (1200, math.nan), (1600, 8.0)):
        event = spike(raised, severity=severity)
        history._pins.add(Pin({event.key: event}, states[20], {20: entries[20]}, raised))
        history._pins.drop(10**9, 10**9)
    assert [event.raised for pin in history._pins for event in pin.events.values()] == [800, 1200]
    history._pins.drop(entries[20].nbytes, 10**9)
    assert [event.raised for pin in history._pins for event in pin.events.values()] == [1200]
    history._pins.drop(10**9, 10)
    assert len(history._pins) == 0


def test_events_of_one_rise_share_a_window_that_grows_until_both_are_over(stack):
    training = Training()
    history = training.watched(range(42), stack)
    history.monitor._keep(spike(40))
    history.monitor._keep(spike(41, 50, kind="divergence"))
    training.run(range(42, 100), history.monitor.observe)
    pin, = history._pins
    assert (pin.state.step, pin.newest) == (20, 80)
    assert set(pin.events) == {("spike", "loss", 40), ("divergence", "loss", 41)}


def test_without_batches_the_error_says_what_to_write(stack):
    training = Training()
    history = training.watched(range(0), stack)
    training.run(range(60), lambda loss, batch: history.monitor.observe(loss))
    window = history.window(spike(50))
    with pytest.raises(UsageError, match=r"monitor.observe\(loss, batch=batch\)"):
        window.batch(45)
    made = history.window(spike(50), batches=training.batch)
    assert exact(made, training.step) == len(made.steps)
    short = history.window(spike(50), batches={45: 0})
    assert short.batch(45) == 0
    with pytest.raises(UsageError, match="there is none for step 46"):
        short.batch(46)


def test_batches_can_be_made_again_instead_of_kept(stack):
    training = Training()
    history = training.watched(range(60), stack, batches=training.batch)
    assert history.nbytes == 0
    assert exact(history.window(spike(50)), training.step) == 40


def test_batches_stay_within_their_memory(stack):
    training = Training()
    one = sum(each.nbytes for each in training.batch(0).values())
    history = training.watched(range(100), stack, memory=50 * one)
    assert history.nbytes <= 50 * one
    assert history.window(spike(90)).start == 60  # the snapshots before have lost their batches
    with pytest.raises(UsageError, match=r"reach back to step 50.*History\(memory=\.\.\.\)"):
        history.window(spike(30))


def test_a_batch_that_does_not_fit_is_said_once(stack):
    training = Training()
    with pytest.warns(ForeshockWarning, match="may take 100") as said:
        history = training.watched(range(50), stack, memory=100)
    assert len(said) == 1
    with pytest.raises(UsageError, match=r"was not kept: it takes .* bytes"):
        history.window(spike(40)).batch(30)


def test_snapshots_of_ones_own_bounds_are_taken_here(stack):
    training = Training()
    history = training.watched(range(50), stack, snapshots=Snapshots(every=5, keep=3))
    assert len(history.snapshots.steps) == 3
    assert history.window(spike(45)).start % 5 == 0


def test_a_model_that_is_called_by_its_parts_is_seen_to_begin(stack):
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))])
            self.head = nn.Linear(8, 1)

        def predict(self, x):
            return self.head(self.layers[0](x))

    torch.manual_seed(0)
    model = Apart()
    training = Training()
    training.model, training.optimizer = model, adamw(model)
    training.scheduler = cosine(training.optimizer)
    training.loss = lambda part: (model.predict(part["x"]) - part["y"]).square().mean()
    history = training.watched(range(60), stack)
    window = history.window(spike(50))
    assert exact(window, training.step) == len(window.steps)


def test_a_model_whose_forward_passes_are_not_seen_has_clean_statistics_all_the_same(stack):
    """As one that is compiled: its state is taken behind the update, not when its loss is observed."""
    training = Training()

    def loss(part):
        x = part["x"]
        for layer in training.model:
            x = layer.forward(x)  # no hooks
        return (x - part["y"]).square().mean()

    training.loss = loss
    window = training.watched(range(60), stack).window(spike(50))
    assert window.checkpoints == (40,)
    assert exact(window, training.step) == len(window.steps)


def test_a_monitor_without_a_model_has_windows_too(stack):
    """The forward pass is not seen to begin then, so that the state of the step before has the random streams."""
    training = Training()
    monitor = stack.enter_context(Monitor(None, training.optimizer))
    ring = Snapshots(every=20)
    history = stack.enter_context(History(monitor, scheduler=training.scheduler, snapshots=ring))
    training.run(range(60), monitor.observe)
    window = history.window(spike(50))
    assert exact(window, training.step) == len(window.steps)


def test_a_step_that_draws_before_its_forward_pass_has_the_other_candidate(stack):
    training = Training()
    plain = training.step

    def step(batch, observe=lambda loss, batch: None):
        torch.rand(3)  # an augmentation, which going through it again draws as well
        return plain(batch, observe)

    training.step = step
    window = training.watched(range(60), stack).window(spike(50))
    assert [len(window.rng(step)) for step in window.steps] == [2] * len(window.steps)
    assert exact(window, step, candidate=1) == len(window.steps)


def test_evaluating_in_between_leaves_no_mark(stack):
    training = Training()
    history = training.watched(range(0), stack)
    for step in range(60):
        training.run(range(step, step + 1), history.monitor.observe)
        training.model.eval()
        with torch.no_grad():
            training.model(torch.zeros(2, 6))
        training.model.train()
    window = history.window(spike(50))
    assert exact(window, training.step) == len(window.steps)


def test_copies_of_the_model_know_nothing_of_the_history(stack):
    training = Training()
    history = training.watched(range(30), stack)
    copies = [copy.deepcopy(training.model), pickle.loads(pickle.dumps(training.model))]
    begun = history._entry
    for each in copies:
        assert torch.equal(each.eval()(torch.ones(2, 6)), each(torch.ones(2, 6)))
        each.train()(torch.ones(2, 6))
        assert not any("foreshock" in repr(hook) for hook in each._forward_pre_hooks.values())
    assert history._entry is begun is None


def test_measuring_at_other_weights_in_between_leaves_no_mark(stack):
    training = Training()
    history = training.watched(range(0), stack)
    for step in range(60):
        training.run(range(step, step + 1), history.monitor.observe)
        with harmless(list(training.model.parameters()), training.model, values=True), torch.no_grad():
            for param in training.model.parameters():
                param.mul_(1.5)
            with torch.enable_grad():
                training.model(torch.zeros(2, 6))
    window = history.window(spike(50))
    assert exact(window, training.step) == len(window.steps)


def test_a_loaded_state_parts_the_history(stack):
    training = Training()
    history = training.watched(range(50), stack)
    training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    training.run(range(50, 100), history.monitor.observe)
    assert 50 in history.snapshots.steps
    assert history.window(spike(45)).steps[-1] == 49
    assert history.window(spike(55)).start == 50


def test_no_window_leads_across_other_parameters(stack):
    training = Training()
    history = training.watched(range(50), stack)
    training.model[4] = nn.Linear(12, 1)
    training.optimizer.add_param_group({"params": training.model[4].parameters(), "initial_lr": 1e-3})
    training.scheduler.base_lrs.append(1e-3)
    training.run(range(50, 90), history.monitor.observe)
    assert history.window(spike(45)).steps[-1] == 49
    with pytest.raises(UsageError, match=r"other parameters: no way leads there"):
        history.window(spike(50))
    window = history.window(spike(80))
    assert window.start > 50
    assert exact(window, training.step) == len(window.steps)


def test_a_resumed_monitor_begins_its_history_anew(stack):
    training = Training()
    history = training.watched(range(50), stack)
    saved = history.monitor.state_dict()
    training.run(range(50, 70), history.monitor.observe)
    history.monitor.load_state_dict(saved)
    training.run(range(50, 120), history.monitor.observe)
    assert history.window(spike(100)).start >= 50
    assert exact(history.window(spike(100)), training.step) == 120 - history.window(spike(100)).start
    with pytest.raises(UsageError, match="the oldest snapshot is of step 50"):
        history.window(spike(45))


def test_two_monitors_have_a_history_each(stack):
    one, other = Training(seed=1), Training(seed=2)
    first, second = one.watched(range(0), stack), other.watched(range(0), stack)
    for step in range(60):
        one.run(range(step, step + 1), first.monitor.observe)
        other.run(range(step, step + 1), second.monitor.observe)
    assert exact(first.window(spike(50)), one.step) == 40
    assert exact(second.window(spike(50)), other.step) == 40


def test_wrong_arguments_are_named(stack):
    training = Training()
    monitor = stack.enter_context(Monitor(training.model, training.optimizer))
    for wrong, said in (
        ({"snapshots": 3}, "snapshots=..."), ({"batches": 3}, "batches=..."), ({"memory": 0}, "memory=..."),
        ({"keep": 0}, "keep=..."), ({"scheduler": 3}, "scheduler"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            History(monitor, **wrong)
    with pytest.raises(UsageError, match=r"a foreshock\.Monitor is needed"):
        History(training.model)
    stack.enter_context(History(monitor))
    with pytest.raises(UsageError, match="has a history already"):
        History(monitor).__enter__()
    with pytest.raises(UsageError, match=r"one of monitor\.events"):
        monitor.history.window(3)
