"""A declared switch of the batch is not taken for an event; a blow-up after it is."""

from __future__ import annotations

import doctest
import json
from collections import Counter

import numpy as np
import pytest

from foreshock.detect import switched
from foreshock.detect.gate import Gate
from foreshock.detect.precursor import Precursor
from foreshock.detect.scan import default_detectors, scan
from foreshock.detect.spike import Spike
from foreshock.run import Run, absent

AT, RECORDS = 300, 520


def run(seed: int, scale: float, what: str = "calm", *, declared: bool = True, heavy: bool = False) -> Run:
    """Returns a falling loss whose noise changes with the batch, at a switch in the middle."""
    rng, t = np.random.default_rng(seed), np.arange(RECORDS)
    batch, since = np.where(t < AT, 1.0, scale), t - AT
    noise = rng.standard_t(4, RECORDS) / 2**0.5 if heavy else rng.standard_normal(RECORDS)
    loss = (2.0 * np.exp(-t / 200) + 0.2) * np.exp(0.04 * noise / np.sqrt(batch))
    grad = np.sqrt(1 + 4 / batch) * np.exp(0.1 * rng.standard_normal(RECORDS) / np.sqrt(batch))
    if what == "stumble":  # an optimizer that has lost its moments
        loss[AT:] *= 1 + 0.5 * np.exp(-since[AT:] / 15)
    elif what == "blow-up":
        loss[AT + 20 :] *= np.minimum(1.06 ** (since[AT + 20 :] - 20), 40.0)
    elif what == "burst":
        loss[AT + 40 : AT + 60] *= 6.0
    elif what == "gradient":
        grad[AT + 5] *= 300.0
    mark = absent(RECORDS)
    if declared:
        mark[AT] = scale
    return Run.from_arrays({"loss": loss, "grad_norm": grad, "batch_switched": mark})


def kinds(found: Run) -> set[str]:
    return {event.kind for event in scan(found) if event.onset >= AT}


def test_the_examples_are_true():
    assert doctest.testmod(switched).failed == 0


@pytest.mark.parametrize("scale", [16.0, 1 / 16])
@pytest.mark.parametrize("what", ["calm", "stumble"])
def test_a_declared_switch_is_no_event(scale, what):
    told, untold = Counter(), Counter()
    for seed in range(3):
        for heavy in (False, True):
            told.update(kinds(run(seed, scale, what, heavy=heavy)))
            untold.update(kinds(run(seed, scale, what, declared=False, heavy=heavy)))
    assert sum(told.values()) <= 1, told
    if (scale, what) != (16.0, "calm"):
        assert sum(untold.values()) >= 4, untold  # it would have been


@pytest.mark.parametrize("scale", [16.0, 1 / 16])
@pytest.mark.parametrize(("what", "kind"), [("blow-up", "divergence"), ("burst", "spike"), ("gradient", "precursor")])
def test_a_blow_up_after_it_is_raised(scale, what, kind):
    for seed in range(3):
        assert kind in kinds(run(seed, scale, what)), seed


@pytest.mark.parametrize("scale", [16.0, 1 / 16])
def test_detectors_resume_in_the_middle_of_a_switch(scale):
    records = list(run(1, scale, "burst").records())
    for cut in (AT + 1, AT + 6, AT + 45):
        whole, first, second = default_detectors(), default_detectors(), default_detectors()
        every = [event for record in records for each in whole for event in each.update(record)]
        events = [event for record in records[:cut] for each in first for event in each.update(record)]
        for each, other in zip(first, second, strict=True):
            other.load_state_dict(json.loads(json.dumps(each.state_dict())))
        events += [event for record in records[cut:] for each in second for event in each.update(record)]
        assert [event.to_dict() for event in events] == [event.to_dict() for event in every]


def test_states_of_before_there_were_switches_are_read():
    for made in (Spike, Precursor):
        state = made().state_dict()
        for name in ("switched", "allowed"):
            state.pop(name, None)
        made().load_state_dict(state)


def test_the_gate_lets_a_declared_switch_pass():
    for declared in (True, False):
        gate, found = Gate(), []
        for at in range(80):
            values = {"loss": 1.0 + 0.01 * (at % 3), "grad_norm": 1.0, "lr": 0.1, "moments": 1.0, "steps": float(at)}
            if at >= 60:  # sixteenfold: learning rate in proportion, moments reset
                values |= {"lr": 1.6, "moments": 1e-3, "steps": float(at - 60)}
            if at == 60 and declared:
                values["batch_switched"] = 16.0
            found += gate.judge(at, values)
            gate.took()
        signals = {event.signal for event in found}
        assert signals == (set() if declared else {"lr", "optimizer_state"})
