"""The warnings of a low-precision softmax: the order, one of each kind a cycle, silence where nothing is wrong."""

from __future__ import annotations

import doctest
import json
from functools import cache
from types import ModuleType

import numpy as np
import pytest

from foreshock.detect import Absorption, Forecast, absorption, scan, softmax_levels
from foreshock.detect.absorption import CALM
from foreshock.run import Event, Run, StepRecord
from foreshock.testing import check_detector

from .softmax import HEALTHY, PERIOD, SPIKE, constant, slingshot

KINDS = ("absorbing", "inflating", "imminent")


@cache
def found(every: int = 10, steps: int = 2440) -> tuple[Event, ...]:
    return tuple(scan(slingshot(steps, every=every), [Absorption()]))


def of(kind: str, events: tuple[Event, ...] | list[Event]) -> list[Event]:
    return [event for event in events if event.kind == kind]


def changed(run: Run, **columns: np.ndarray | None) -> list[StepRecord]:
    """Returns the records of a run read at every 10th step, with these softmax signals instead, None for without."""
    records = []
    for record in run.records():
        values = {name: value for name, value in record.values.items() if name.removeprefix("softmax_") not in columns}
        if record.step % 10 == 0:
            values |= {f"softmax_{name}": float(new[record.step]) for name, new in columns.items() if new is not None}
        records.append(StepRecord(record.step, values))
    return records


def test_it_keeps_the_contract_of_detectors() -> None:
    check_detector(Absorption)


@pytest.mark.parametrize("module", [absorption, softmax_levels])
def test_the_docstrings_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted >= 4) == (0, True)


@pytest.mark.parametrize("every", [5, 10, 20])
def test_the_three_levels_come_in_order_hundreds_of_steps_before_the_spike(every: int) -> None:
    absorbing, inflating, imminent = (of(kind, found(every))[0] for kind in KINDS)
    assert 480 <= absorbing.raised <= 560  # foretold: the residual is a tenth at 625
    assert 780 <= inflating.raised <= 850
    assert 1000 <= imminent.raised <= 1070
    assert SPIKE - absorbing.raised >= 300
    assert SPIKE - inflating.raised >= 200
    assert imminent.signal == "softmax_sensitivity"


@pytest.mark.parametrize("every", [5, 10, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cycle_is_one_event_of_each_kind_and_ends_with_its_spike(every: int, kind: str) -> None:
    events = of(kind, found(every))
    assert len(events) in (3, 4)  # before the spikes at 1240, 1780 and 2320; the next one may be foretold already
    for cycle, event in enumerate(events[:3]):
        spike = SPIKE + cycle * PERIOD
        assert spike - 2 * every <= event.end <= spike
        assert event.data["lead"] == spike - event.raised


def test_numbers_at_the_raising_are_kept() -> None:
    data = of("inflating", found())[0].data
    assert data["by"] == ["cosine"]
    assert data["cosine"] < -0.8
    assert data["baseline"] == pytest.approx(0.243, rel=0.02)
    assert data["growth"] == pytest.approx(data["head_mean"] / data["baseline"])
    assert {"absorbed", "residual", "error", "wrong", "margin", "head_centred", "logit", "sensitivity"} <= set(data)


def test_growth_alone_is_inflation_and_a_growing_head_is_not() -> None:
    run = slingshot()
    turned = np.full(len(run), -0.5)
    by_growth = of("inflating", scan(changed(run, cosine=turned), [Absorption()]))[0]
    assert by_growth.data["by"] == ["growth"]
    assert 820 <= by_growth.raised <= 870
    whole = run["softmax_head_mean"] * 10  # the rest of the head grows along
    assert not of("inflating", scan(changed(run, cosine=turned, head_centred=whole), [Absorption()]))


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_raise_nothing(name: str) -> None:
    assert scan(constant(**HEALTHY[name]), [Absorption()]) == []


def test_half_of_the_rows_with_a_noisy_residual_about_a_tenth_is_at_most_one_event() -> None:
    for residual in (0.08, 0.1, 0.12):
        run = constant(absorbed=0.6, residual=residual, noise=0.2)
        assert len(scan(run, [Absorption()])) <= 1


def test_without_a_head_only_absorption_is_seen() -> None:
    gone = dict.fromkeys(("head_mean", "head_centred", "cosine", "sensitivity", "feature_mean", "logit"))
    kinds = {event.kind for event in scan(changed(slingshot(), **gone), [Absorption()])}
    assert kinds == {"absorbing"}


def test_a_float64_recomputation_that_agrees_silences_it() -> None:
    run = slingshot()
    assert scan(changed(run, error=np.full(len(run), 0.002)), [Absorption()]) == []
    foretold = scan(changed(run, error=np.full(len(run), 0.08)), [Absorption()])
    assert {event.kind for event in foretold} == {"absorbing"}  # on its way, and then it does not come
    assert all(event.end - event.onset < 170 for event in foretold)
    assert of("absorbing", scan(changed(run, error=None), [Absorption()]))


def test_nan_readings_are_passed_over() -> None:
    run = slingshot()
    residual = run["softmax_residual"].copy()
    residual[[700, 710, 720, 730, 740]] = np.nan
    events = scan(changed(run, residual=residual), [Absorption()])
    assert [(event.kind, event.raised) for event in events] == [(event.kind, event.raised) for event in found()]


def test_flicker_is_few_events() -> None:
    """Logits of thousands in bfloat16: all margins are 0 or 8, and the residual is 1 or next to nothing."""
    chooser = np.random.default_rng(0)
    readings = [
        {"softmax_absorbed": 1.0, "softmax_residual": 1.0} if chooser.random() < 0.35
        else {"softmax_absorbed": 0.99, "softmax_residual": 0.005}
        for _ in range(400)
    ]  # fmt: skip
    events = scan([StepRecord(10 * i, values) for i, values in enumerate(readings)], [Absorption()])
    assert 1 <= len(events) <= 8  # and 50 times two in a row
    assert sum(event.end - event.onset for event in events) > 2000


def test_one_reading_is_not_enough() -> None:
    residuals = [0.5 if i == 20 else 0.01 for i in range(50)]
    readings = [{"softmax_absorbed": 0.9, "softmax_residual": residual} for residual in residuals]
    assert scan([StepRecord(10 * i, values) for i, values in enumerate(readings)], [Absorption()]) == []


def test_a_run_resumed_between_two_readings_goes_on_as_if_it_had_not_stopped() -> None:
    records = list(slingshot().records())
    for cut in (635, 1005, 1241, 1500):
        first, second = Absorption(), Absorption()
        events = [event for record in records[:cut] for event in first.update(record)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        events += [event for record in records[cut:] for event in second.update(record)]
        whole = Absorption()
        assert events == [event for record in records for event in whole.update(record)]


def test_an_exact_loss_put_in_midway_ends_it() -> None:
    run = slingshot(1200)
    at = np.arange(len(run))
    healed = {"absorbed": 0.0, "residual": 3e-8, "error": 1e-7}
    columns = {name: np.where(at < 900, run[f"softmax_{name}"], value) for name, value in healed.items()}
    events = scan(changed(run, **columns), [Absorption()])
    assert {event.kind for event in events} == {"absorbing", "inflating"}
    assert all(event.end == 890 for event in events)


def test_it_says_that_it_is_over_after_few_readings() -> None:
    detector, ended = Absorption(), []
    for i in range(60):
        working = i < 20
        values = {"softmax_absorbed": 0.9 if working else 0.0, "softmax_residual": 0.5 if working else 0.0}
        ended += [(i, event) for event in detector.update(StepRecord(10 * i, values)) if event.end is not None]
    ((reading, event),) = ended
    assert (reading, event.end) == (19 + CALM, 190)


def test_a_spike_ends_it_though_nothing_is_read_any_more() -> None:
    records = [
        record if record.step < 1100 else StepRecord(record.step, {"loss": record.values["loss"]})
        for record in slingshot(1600).records()
    ]  # fmt: skip
    detector = Absorption()
    events = {event.key: event for record in records for event in detector.update(record)}
    assert detector.finish() == []
    assert [event.kind for event in events.values()] == list(KINDS)
    assert all(event.end == 1090 and event.data["lead"] == SPIKE - event.raised for event in events.values())


def test_the_curvature_forecast_does_not_hear_of_it() -> None:
    assert scan(slingshot(), [Forecast()]) == []


def test_a_fast_training_is_warned_of_300_steps_ahead() -> None:
    # as read of a LeakyReLU net under AdamW at a rate of .002, betas (.85, .93), which spikes at step 583
    residual = {192: 1.7e-4, 212: 4.1e-4, 232: 9.2e-4, 252: 1.8e-3, 257: 2.3e-3, 262: 2.8e-3, 267: 2.9e-3, 272: 3.6e-3,
                277: 4.6e-3, 282: 5.6e-3, 287: 6.5e-3, 292: 8.0e-3, 297: 9.5e-3, 302: 1.0e-2, 307: 1.3e-2}  # fmt: skip
    records = [
        StepRecord(step, {"softmax_absorbed": 0.3, "softmax_residual": value, "softmax_error": 1.2 * value})
        for step, value in residual.items()
    ]
    absorbing = Absorption()
    raised = [event.raised for record in records for event in absorbing.update(record)]
    assert raised[0] <= 283
