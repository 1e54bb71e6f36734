"""The contract of detectors."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType

from foreshock.detect.base import Detector
from foreshock.detect.scan import scan
from foreshock.run.event import KINDS, Event
from foreshock.run.record import StepRecord
from foreshock.testing.contract import ContractError

Factory = Callable[[], Detector]


def check_detector(factory: Factory) -> None:
    """Runs the contract of detectors on what `factory()` returns: a fresh detector with its settings, at each call.

    Every detector: is deterministic; survives NaN, infinite, missing, negative, zero and huge values, and steps with
    gaps; returns well-formed events; makes one event of one disturbance; `finish` changes nothing; its state is JSON,
    bounded, and gives 2n records == n, save, load, n, wherever it is cut; live == scan.

    One that raises an event of kind "spike" on a plain spike is held to six scenarios as well, which detectors in use
    fail: silence on flat noise; a second, equal spike is found again; one NaN neither blinds it nor makes it fire on
    and on; a long disturbance is one event; it adapts to a new level; a spike on a falling trend is found.

    Raises:
        ContractError: at the first broken clause; an AssertionError, so test runners show it as a failure.

    >>> from foreshock.detect import Spike
    >>> check_detector(Spike)
    """
    mixed = _mixed()
    _check_protocol(factory)
    _check_survives(factory)
    _check_events(factory, mixed)
    _check_determinism(factory, mixed)
    _check_state(factory, mixed)
    _check_finish(factory, mixed)
    _check_bounded(factory)
    _check_live_is_scan(factory, mixed)
    if any(event.kind == "spike" for event in _found(factory, _flat(400, {300: 1.0}))):
        _check_spikes(factory)


def _check_protocol(factory: Factory) -> None:
    detector = factory()
    if not isinstance(detector, Detector):
        needed = ("update", "finish", "state_dict", "load_state_dict")
        missing = [name for name in needed if not hasattr(detector, name)]
        raise ContractError(f"protocol: {type(detector).__name__} lacks {', '.join(missing)}")
    if factory() is detector:
        raise ContractError("protocol: the factory returned the same detector twice; it must make a fresh one")


def _check_survives(factory: Factory) -> None:
    awkward = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, 1.0)
    rows: list[dict[str, float]] = [{}]
    for value in awkward:
        rows += [{"loss": value}, {"grad_norm": value}, {"loss": 1.0, "grad_norm": value, "lr": value}, {"lr": value}]
    chooser = random.Random(1)
    rows += [
        {name: chooser.choice(awkward) for name in ("loss", "grad_norm", "lr", "update_norm") if chooser.random() < 0.8}
        for _ in range(600)
    ]
    detector, step = factory(), 0
    for row in rows:
        step += chooser.choice((1, 1, 1, 7))
        try:
            detector.update(StepRecord(step, MappingProxyType(row)))
            detector.finish()
        except Exception as error:
            raise ContractError(
                f"survives: update or finish raised {type(error).__name__}: {error}, on the values {row}; a detector "
                "must take any float, missing signals included, and leave the record as it is"
            ) from error


def _check_events(factory: Factory, records: Sequence[StepRecord]) -> None:
    detector, seen = factory(), {}
    for record in records:
        for event in detector.update(record):
            seen[event.key] = event
            _check_event(event, record.step)
    for event in detector.finish():
        if event.key not in seen:
            raise ContractError(f"events: finish returned an event that was never raised before: {event}")
        _check_event(event, records[-1].step)


def _check_event(event: Event, now: int) -> None:
    if not isinstance(event, Event):
        raise ContractError(f"events: update returned {event!r}, which is no foreshock Event")
    wrong = None
    if event.kind not in KINDS:
        wrong = f"unknown kind {event.kind!r}; the kinds are {', '.join(KINDS)}"
    elif event.raised > now or event.onset > event.raised or event.peak > now:
        wrong = f"at step {now}: onset <= raised <= now and peak <= now must hold"
    elif event.end is not None and not event.onset <= event.end <= now:
        wrong = f"at step {now}: onset <= end <= now must hold"
    else:
        try:
            json.dumps(event.to_dict())
        except TypeError as error:
            wrong = f"not plain JSON values: {error}"
    if wrong:
        raise ContractError(f"events: {wrong}: {event}")


def _check_determinism(factory: Factory, records: Sequence[StepRecord]) -> None:
    if _stream(factory(), records) != _stream(factory(), records):
        raise ContractError("deterministic: two fresh detectors gave different events on the same records")


def _check_finish(factory: Factory, records: Sequence[StepRecord]) -> None:
    calm, asked = factory(), factory()
    for record in records:
        asked.finish()
        if _text(calm.update(record)) != _text(asked.update(record)):
            raise ContractError(f"finish: calling it changed what update returns at step {record.step}")
    before = json.dumps(asked.state_dict())
    asked.finish()
    if json.dumps(asked.state_dict()) != before:
        raise ContractError("finish: calling it changed the state")


def _check_state(factory: Factory, records: Sequence[StepRecord]) -> None:
    whole = _stream(factory(), records)
    for cut in (0, 1, 5, 37, 200, *range(300, len(records), 61)):
        first = factory()
        events = [text for record in records[:cut] for text in _text(first.update(record))]
        try:
            state = json.loads(json.dumps(first.state_dict()))
        except (TypeError, ValueError) as error:
            raise ContractError(f"state: state_dict is not plain JSON after {cut} records: {error}") from error
        second = factory()
        second.load_state_dict(state)
        if events + _stream(second, records[cut:]) != whole:
            raise ContractError(
                f"state: {cut} records, state_dict through JSON, load_state_dict and the other records do not give the "
                "events of the whole run; something that update uses is not in the state"
            )


def _check_bounded(factory: Factory) -> None:
    detector, sizes = factory(), []
    for index, record in enumerate(_flat(4000, {})):
        detector.update(record)
        if index in (1999, 3999):
            sizes.append(len(json.dumps(detector.state_dict())))
    if sizes[1] > 1.5 * sizes[0] + 500:
        raise ContractError(f"bounded: the state grows with the run, from {sizes[0]} to {sizes[1]} characters of JSON")


def _check_live_is_scan(factory: Factory, records: Sequence[StepRecord]) -> None:
    detector, kept = factory(), {}
    for record in records:
        kept.update({event.key: event for event in detector.update(record)})
    kept.update({event.key: event for event in detector.finish()})
    if sorted(_text(kept.values())) != sorted(_text(scan(records, [factory()]))):
        raise ContractError("live == scan: scan of the run gives other events than the same records one by one")


def _check_spikes(factory: Factory) -> None:
    """The six scenarios."""
    quiet = _found(factory, _flat(3000, {}))
    if len(quiet) > 1:
        raise ContractError(f"silence on flat noise: {len(quiet)} events in 3,000 records of normal noise")

    twice = dict.fromkeys((*range(300, 305), *range(360, 365)), 1.0)
    _must_find(factory, _flat(600, twice), (300, 360), "a second, equal spike is found again")

    nan = {200: math.nan}
    _must_find(factory, _flat(600, {300: 1.0} | nan), (300,), "one NaN must not blind it")
    after = [event for event in _found(factory, _flat(600, nan)) if event.raised > 201]
    if after:
        raise ContractError(f"one NaN must not make it fire on and on: {len(after)} events raised after it")

    long = _found(factory, _flat(700, dict.fromkeys(range(300, 340), 1.0)))
    if len(long) != 1:
        raise ContractError(f"a disturbance is one event: 40 elevated records gave {len(long)} events")

    shifted = dict.fromkeys(range(300, 1200), 0.6)
    found = _must_find(factory, _flat(1200, shifted | {1000: 1.6}), (1000,), "it adapts to a new level")
    if len(found) > 3:
        raise ContractError(f"it adapts to a new level: a step and a spike gave {len(found)} events")

    falling = _flat(400, {250: 1.0}, trend=lambda i: 4.0 * math.exp(-i / 80.0))
    _must_find(factory, falling, (250,), "a spike on a falling trend is found")


def _must_find(factory: Factory, records: Sequence[StepRecord], steps: Iterable[int], clause: str) -> list[Event]:
    found = _found(factory, records)
    for step in steps:
        if not any(step <= event.raised <= step + 5 for event in found):
            raised = [event.raised for event in found]
            raise ContractError(f"{clause}: a rise of 50 sigma at step {step} raised nothing (events at {raised})")
    return found


def _found(factory: Factory, records: Sequence[StepRecord]) -> list[Event]:
    return scan(records, [factory()])


def _flat(n: int, extra: dict[int, float], *, trend: Callable[[int], float] = lambda i: 0.0) -> list[StepRecord]:
    """Returns a loss of 2.0 plus normal noise of 0.02, plus `trend`, plus what `extra` adds at some records."""
    noise = random.Random(0)
    losses = (2.0 + noise.gauss(0.0, 0.02) + trend(i) + extra.get(i, 0.0) for i in range(n))
    return [StepRecord(i, MappingProxyType({"loss": loss})) for i, loss in enumerate(losses)]


def _mixed() -> list[StepRecord]:
    """Returns a run in which most things happen: spikes, gradient leaps, NaN, gaps, a drift, a divergence."""
    noise = random.Random(2)
    records, step = [], 0
    for i in range(1200):
        loss = 2.0 + 4.0 * math.exp(-i / 60.0) + noise.gauss(0.0, 0.02) + 0.6 * max(0, i - 600) / 300.0
        gradient = 0.4 * math.exp(noise.gauss(0.0, 0.12))
        if 310 <= i < 325:
            loss, gradient = loss + 1.5 * math.exp((310 - i) / 4.0), 3.0 * gradient
        if 303 <= i < 310 or 700 <= i < 704:
            gradient *= 4.0
        if i == 450:
            loss += 2.0
        if 500 <= i < 503:
            loss, gradient = math.nan, math.inf
        if i >= 1000:
            loss += 0.2 * (i - 1000)
        values = {"loss": loss, "grad_norm": gradient, "lr": 0.1 if i < 900 else 0.2}
        if i % 97 == 5:
            del values["loss"]
        step += 1 if i % 50 else 10
        records.append(StepRecord(step, MappingProxyType(values)))
    return records


def _stream(detector: Detector, records: Iterable[StepRecord]) -> list[str]:
    events = [text for record in records for text in _text(detector.update(record))]
    return events + _text(detector.finish())


def _text(events: Iterable[Event]) -> list[str]:
    """Events as text, so that NaN equals NaN."""
    return [json.dumps(event.to_dict()) for event in events]
