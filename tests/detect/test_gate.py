"""The gate: what it finds against an attempt, and what it must not (acceptance values of the notes on 2503.05139)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from foreshock.detect.gate import Gate


def noise(n, level=2.0, sigma=0.02, seed=0):
    return (level + sigma * np.random.default_rng(seed).standard_normal(n)).tolist()


def judged(losses, *, refuse=True, gate=None, first=0, **signals):
    """Feeds losses; what is found against an attempt is refused. Returns {step: events}."""
    gate = gate or Gate()
    found = {}
    for step, loss in enumerate(losses, first):
        events = gate.judge(step, {"loss": loss} | {name: values[step] for name, values in signals.items()})
        if events:
            found[step] = events
        gate.refused() if events and refuse else gate.took()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_flat_noise_is_let_pass(seed):
    assert len(judged(noise(10_000, seed=seed))) <= 1


def test_one_outlier_is_one_detection_and_leaves_no_mark_on_the_baseline():
    losses = noise(400)
    losses[300] += 1.0
    gate = Gate()
    found = judged(losses, gate=gate)
    assert list(found) == [300]
    (event,) = found[300]
    assert (event.kind, event.signal, event.data["width"], event.data["records"]) == ("spike", "loss", "narrow", 1)
    assert event.data["baseline"] == pytest.approx(2.0, abs=0.02)
    clean = Gate()
    judged(noise(400), gate=clean)
    assert gate._spike._base.level == pytest.approx(clean._spike._base.level, abs=1e-3)


def test_one_nan_is_found_and_does_not_blind():
    losses = noise(400)
    losses[200], losses[300] = math.nan, 3.0
    found = judged(losses)
    assert {step: [event.kind for event in events] for step, events in found.items()} == {
        200: ["nonfinite"], 300: ["spike"],
    }  # fmt: skip


def test_attempts_in_a_row_are_counted_and_wide_from_the_fifth_on():
    losses = noise(400)
    for step in range(300, 308):
        losses[step] += 1.0
    found = judged(losses)
    assert list(found) == list(range(300, 308))
    data = [events[0].data for events in found.values()]
    assert [each["records"] for each in data] == list(range(1, 9))
    assert [each["refused"] for each in data] == list(range(8))
    assert [each["width"] for each in data] == ["narrow"] * 4 + ["wide"] * 4
    assert len({events[0].key for events in found.values()}) == 1


def test_a_slow_drift_is_let_pass_and_a_level_that_stays_is_learnt_once_it_is_taken():
    losses = noise(4000)
    for step in range(1000, 4000):
        losses[step] *= 1.0 + 0.2 * min(1.0, (step - 1000) / 2000)
    assert not judged(losses)
    losses = noise(1000)
    for step in range(500, 1000):
        losses[step] *= 1.3
    found = judged(losses, refuse=False)
    assert min(found) == 500
    assert 5 <= max(found) - 500 < 200
    assert len({event.key for events in found.values() for event in events}) == 1


def test_the_spikes_of_the_published_curve_are_found_on_a_curve_like_it():
    """Peak and base of the 12 events in the loss of Ling 2503.05139 without its remedy, digitised."""
    steps = [8002, 11892, 12600, 15380, 28518, 45473, 46536, 51475, 55772, 60136, 72879, 95509]
    peaks = [8.78, 5.85, 2.61, 3.63, 6.65, 7.06, 8.69, 5.03, 3.88, 5.97, 8.53, 2.76]
    places = [step // 9 for step in steps]
    rng = np.random.default_rng(0)
    t = np.arange(10_700)
    losses = 1.25 + 12.35 / (1 + t / 15.0) + 0.01 * rng.standard_normal(len(t))
    losses[places] = peaks
    assert list(judged(losses.tolist())) == places


@pytest.mark.parametrize("factor", [60.0, 1000.0])
def test_a_burst_of_the_gradient_is_found_where_the_loss_is_as_ever(factor):
    norms = np.exp(0.3 * np.random.default_rng(1).standard_normal(300))
    norms[200] *= factor
    found = judged(noise(300), grad_norm=norms.tolist())
    assert list(found) == [200]
    assert (found[200][0].kind, found[200][0].signal) == ("precursor", "grad_norm")


def test_a_weaker_rise_counts_where_the_gradient_is_unusual_too():
    losses = noise(300)
    losses[200] += 0.7  # a third of the loss, once, seven times what the noise is
    rough = [loss + (0.1 if step % 3 == 0 else 0.0) for step, loss in enumerate(losses)]
    norms = [1.0 + 0.01 * (step % 5) for step in range(300)]
    assert not judged(rough, grad_norm=norms)
    norms[200] *= 6
    assert list(judged(rough, grad_norm=norms)) == [200]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_gradients_that_scatter_are_let_pass(sigma):
    norms = np.exp(sigma * np.random.default_rng(2).standard_normal(10_000))
    assert len(judged(noise(10_000), grad_norm=norms.tolist())) <= 1


def rates(name):
    t = np.arange(400)
    return {
        "warm-up": 1e-3 * np.minimum(1.0, (t + 1) / 100),
        "warm-up from nothing": 1e-3 * np.minimum(1.0, t / 10),
        "warm restarts": 1e-3 * (0.001 + 0.5 * (1 + np.cos(np.pi * (t % 100) / 100))),
        "steps down": 1e-3 * 0.1 ** (t // 100),
        "one cycle": 1e-3 * np.interp(t, [0, 120, 399], [0.04, 1.0, 1e-4]),
        "doubled": 1e-3 * 2.0 ** (t // 100),
        "constant": np.full(400, 1e-3),
    }[name].tolist()


@pytest.mark.parametrize(
    "name", ["warm-up", "warm-up from nothing", "warm restarts", "steps down", "one cycle", "doubled", "constant"]
)
def test_ordinary_schedules_of_the_learning_rate_are_let_pass(name):
    assert not judged(noise(400), lr=rates(name))


@pytest.mark.parametrize("factor", [10.0, 60.0])
@pytest.mark.parametrize("name", ["constant", "steps down"])
def test_a_leap_of_the_learning_rate_is_found_while_it_lasts(factor, name):
    lr = rates(name)
    for step in range(80, 84):
        lr[step] *= factor
    found = judged(noise(400), refuse=False, lr=lr)
    assert list(found) == [80, 81, 82, 83]
    assert all(event.signal == "lr" and event.data["factor"] == pytest.approx(factor) for (event,) in found.values())


def test_a_leap_in_a_falling_schedule_lasts_until_the_rate_is_back():
    lr = [1e-3 * (1 - step / 400) for step in range(400)]
    for step in range(350, 380):
        lr[step] *= 30
    assert list(judged(noise(400), refuse=False, lr=lr)) == list(range(350, 380))


def test_what_was_let_pass_is_remembered_when_the_loss_rises():
    losses, lr = noise(400), [1e-3] * 400
    lr[200], losses[201] = 1e-2, 4.0
    gate, found = Gate(), {}
    for step, (loss, rate) in enumerate(zip(losses, lr, strict=True)):
        events = gate.judge(step, {"loss": loss, "lr": rate})
        found[step] = events
        gate.took(events[0].signal if events else "")
    (spike,) = found[201]
    assert (spike.data["suspect"], spike.data["since"]) == ("lr", 200)


def test_moments_that_vanish_are_found_and_those_that_decay_are_not():
    moments, steps = [0.9**t + 0.01 for t in range(300)], [float(t) for t in range(300)]
    assert not judged(noise(300), moments=moments, steps=steps)
    lost = [*moments[:200], *([1e-4] * 100)]
    assert list(judged(noise(300), moments=lost, steps=steps, refuse=False)) == [200]
    counted = [*steps[:200], *(float(t) for t in range(100))]
    assert list(judged(noise(300), moments=moments, steps=counted, refuse=False)) == [200]
    faint = [1e-19 * each for each in moments[:200]] + [0.0] * 100  # float32 has lost what they are made of
    assert not judged(noise(300), moments=faint, steps=steps)


@pytest.mark.parametrize("cut", [50, 120, 151, 202, 260])
def test_a_resumed_gate_judges_as_if_it_had_not_stopped(cut):
    losses, norms, lr = noise(300), [1.0 + 0.1 * (t % 7) for t in range(300)], [1e-3] * 300
    losses[120] = losses[121] = 5.0
    norms[150], lr[200], losses[201] = 500.0, 2e-2, math.nan
    whole = judged(losses, grad_norm=norms, lr=lr)
    first = Gate()
    found = judged(losses[:cut], gate=first, grad_norm=norms, lr=lr)
    second = Gate()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found |= judged(losses[cut:], gate=second, first=cut, grad_norm=norms, lr=lr)
    assert str(found) == str(whole)  # NaN in an event equals itself only in writing
    assert set(whole) == {120, 121, 150, 200, 201}


def test_parameters_that_leap_are_found_until_they_are_put_back_or_are_what_they_are():
    norms = [10.0 + 0.01 * t for t in range(100)]
    norms[60:] = [1e30] * 40
    gate, found = Gate(), []
    for step in range(96):
        looked = {"weights": norms[step]} if step % 8 == 0 else {}
        events = gate.judge(step, {"loss": 2.0 + 0.01 * (step % 3)} | looked)
        found += [(step, event.signal, event.onset, event.raised) for event in events]
        gate.took()
    assert found == [(64 + 8 * look, "parameters", 56, 64) for look in range(3)]


def test_parameters_that_swing_through_zero_have_not_leapt():
    gate = Gate()
    for step in range(400):
        events = gate.judge(step, {"loss": 1.0, "weights": abs(math.cos(0.1 * step)) + 1e-6})
        assert not [event for event in events if event.signal == "parameters"]
        gate.took("")


def test_a_schedules_own_leap_is_meant_and_one_that_lasted_is_known_when_it_comes_again():
    lr = [1e-4] * 400
    for begin in (100, 300):
        lr[begin : begin + 50] = [1e-2] * 50
    assert set(judged(noise(400), refuse=False, lr=lr)) == set(range(100, 150))
    assert not judged(noise(400), refuse=False, lr=lr, lr_meant=[1.0] * 400)


def test_other_tensors_to_train_are_learnt_anew():
    n = 200
    signals = {
        "grad_norm": [1.0] * 100 + [50.0] * 100, "weights": [10.0] * 100 + [90.0] * 100,
        "moments": [1.0] * 100 + [0.01] * 100, "steps": [float(t) for t in range(100)] * 2,
        "lr": [1e-4] * 100 + [1e-2] * 100,
    }  # fmt: skip
    assert judged(noise(n), refuse=False, **signals)
    assert not judged(noise(n), refuse=False, **signals, tensors=[4.0] * 100 + [9.0] * 100)


def test_a_loss_that_comes_back_to_the_bit_is_told():
    losses = noise(300)
    losses[200] = losses[201] = 5.0
    losses[202] = 5.1
    assert [events[0].data["same"] for events in judged(losses).values()] == [False, True, False]


def test_a_rise_after_a_calm_attempt_is_another_cause():
    losses = noise(300)
    losses[200] = losses[203] = losses[204] = 5.0
    gate, found = Gate(), {}
    for step, loss in enumerate(losses):
        for event in gate.judge(step, {"loss": loss}):
            found[step] = event
            gate.restored()
        if step not in found:
            gate.took()
    assert {step: (event.raised, event.onset, event.data["restored"]) for step, event in found.items()} == {
        200: (200, 200, 0), 203: (203, 203, 0), 204: (203, 203, 1),
    }  # fmt: skip


def test_a_burst_among_the_first_gradients_must_be_huge():
    for factor, found in ((30.0, []), (1000.0, [5])):
        norms = [1.0 + 0.1 * (step % 3) for step in range(30)]
        norms[5] *= factor
        assert list(judged(noise(30), grad_norm=norms)) == found


def test_a_suspicion_is_forgotten_after_a_while():
    """A rise of 7 times the noise counts soon after something was let pass, and not long after."""
    for later, found in ((20, True), (60, False)):
        losses = noise(300)
        losses = [loss + (0.1 if step % 3 == 0 else 0.0) for step, loss in enumerate(losses)]
        losses[200 + later] += 0.7 - (0.1 if (200 + later) % 3 == 0 else 0.0)
        gate = Gate()
        for step, loss in enumerate(losses[: 200 + later]):
            gate.judge(step, {"loss": loss})
            gate.took("lr" if step == 200 else "")
        assert bool(gate.judge(200 + later, {"loss": losses[200 + later]})) == found
