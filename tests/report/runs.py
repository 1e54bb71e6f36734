"""Runs for the report's tests: ordinary, empty, broken, huge, and badly named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from foreshock.run import Event, Run, RunMemory
from foreshock.run.action import (
    Action,
    CutLr,
    ExactSoftmax,
    Proceed,
    Refill,
    RepairMoments,
    Rollback,
    Scale,
    Skip,
)
from foreshock.run.actions import as_note

NASTY = (
    "</script><script>alert(1)</script>",
    "a\"b'c<d>&amp;",
    "слой.重み.😀",
    "{{ 7 * 7 }}",
    "<!--",
    "lines\u2028end",
)


def spiky(steps: int = 600, at: Sequence[int] = (200, 420), *, tensors: int = 5, **meta: object) -> Run:
    """Returns a run whose grad_norm and v_ratio leave their range five steps before each spike of the loss."""
    random = np.random.default_rng(0)
    loss = 2 + 0.02 * random.standard_normal(steps)
    columns = {"loss": loss, "grad_norm": np.exp(0.05 * random.standard_normal(steps)), "lr": np.full(steps, 1e-3)}
    columns["v_ratio"] = 0.95 + 1e-4 * random.standard_normal(steps)
    for i in range(tensors):
        columns[f"grad_norm/layer{i}.weight"] = np.exp(0.05 * random.standard_normal(steps))
    for place in at:
        loss[place : place + 20] += 6 * np.exp(-np.arange(20) / 6)
        columns["grad_norm"][place - 5 : place + 20] *= 8
        columns["v_ratio"][place - 5 : place + 3] = 1.4
        if tensors > 2:
            columns["grad_norm/layer2.weight"][place - 5 : place + 20] *= 30
    columns["time"] = 1.7e9 + 0.1 * np.arange(steps)
    return Run.from_arrays(columns, **{"name": "spiky", **meta})


def spike(at: int, *, height: float = 6.0, severity: float = 300.0, length: int = 20) -> Event:
    """Returns a spike of the loss such as the detector would raise."""
    end = at + length - 1
    return Event("spike", at, at, at, end, height, severity, "loss", {"baseline": 2.0, "scale": 0.02, "width": "wide"})


def guarded(steps: int = 1500, actions: Sequence[Action] | None = None, **meta: object) -> Run:
    """Returns a run with what a guard does in it: refused batches, one of them twice, a rollback, many refills."""
    random = np.random.default_rng(2)
    at = np.arange(steps)
    loss = (1.2 + 1.6 * np.exp(-at / (steps / 4))) * np.exp(0.02 * random.standard_normal(steps))
    skipped = np.zeros(steps)
    for place, height in ((200, 4.0), (204, 4.2), (520, np.nan), (700, 3.0)):
        loss[place], skipped[place] = loss[place] + height, place != 700
    loss[900:906] += np.linspace(0.4, 2.4, 6)  # a wide one: taken at first, then rolled back
    skipped[905:909] = 1
    store = RunMemory({"name": "guarded", **meta})
    columns = np.stack([loss, skipped, np.exp(0.05 * random.standard_normal(steps))], axis=1)
    store.append("step", ("loss", "skipped", "grad_norm"), at, 1.7e9 + 0.1 * at, columns)
    for action in CHAPTER if actions is None else actions:
        store.note("action", **as_note(action))
    return store.run()


def _acted(columns: Mapping[str, np.ndarray]) -> Run:
    """Returns a run of these columns in which a guard did what makes little sense."""
    store = RunMemory()
    if columns:
        values = np.stack(list(columns.values()), axis=1)
        store.append("step", tuple(columns), range(len(values)), np.zeros(len(values)), values)
    far = Scale(step=10**9, factor=0.1)
    for action in (Skip(step=0), Rollback(step=5, before=9), Rollback(step=200, before=-3), far):
        store.note("action", **as_note(action))
    store.note("action", step=7, action="teleport", reason=NASTY[0], to=NASTY[1])
    return store.run()


def _caused(place: int, kind: str = "spike", signal: str = "loss") -> tuple[str, str, int]:
    return (kind, signal, place)


CHAPTER: tuple[Action, ...] = (
    Skip(step=200, reason="loss 6.1 at a level of 1.93, 96 robust sigmas", cause=_caused(200)),
    Skip(step=204, data="quarantine", reason="the batch of step 200 again: loss 6.3", cause=_caused(204)),
    *(Refill(step=300 + 3 * i, reason="chi along the gradient 1.02, above 1", cause=_caused(300, "imminent",
      "chi_gradient")) for i in range(40)),
    Skip(step=520, data="drop", reason="the loss is NaN", cause=_caused(520, "nonfinite")),
    RepairMoments(step=521, reason="second moments vanished between two steps"),
    Scale(step=700, factor=0.1, reason="third try of the same batch", cause=_caused(700)),
    Rollback(step=905, before=890, skip=3, reason="5 elevated attempts in a row: it is the state, not the data",
             cause=_caused(900)),
    CutLr(step=909, factor=0.5, steps=60, reason="cooling down after the rollback", cause=_caused(900)),
    ExactSoftmax(step=1200, reason="92 % of the rows absorbed", cause=_caused(1180, "absorbing", "softmax_absorbed")),
    Proceed(step=1300, reason="the loss stands at a new level for 40 attempts: accepted", cause=_caused(1260)),
)  # fmt: skip


@cache
def odd_runs() -> dict[str, tuple[Run, list[Event]]]:
    """Returns runs that a report must survive, by what is odd about them; made once, so leave them as they are."""
    n = 300
    x = np.arange(n)
    noise = np.random.default_rng(1).standard_normal(n)
    broken = np.where(x < 200, 2 + 0.1 * noise, np.nan)
    nan = Event("nonfinite", 200, 200, 200, None, np.nan, np.inf, "loss")
    huge = {"loss": np.exp(noise) * 1e300, "grad_norm/a": np.exp(noise) * 1e-300}
    sparse = {"step": 10_000 + 500 * x, "loss": 3 + 0.1 * noise}
    uneven = {"step": np.cumsum(1 + (x % 7)) + 2**33, "loss": 3 + 0.1 * noise}
    named = {f"grad_norm/{name}": np.exp(noise) for name in NASTY} | {f"my {name}": noise for name in NASTY}
    many = spiky(20_000, at=(), tensors=0)
    return {
        "empty": (Run.from_arrays({}), []),
        "empty_event": (Run.from_arrays({}), [spike(3)]),
        "long_nan": (Run.from_arrays({"loss": np.where(np.arange(5000) < 900, 2.0, np.nan)}), [nan]),
        "long_all_nan": (Run.from_arrays({"loss": np.full(5000, np.nan), "grad_norm/a": np.full(5000, np.nan)}), [nan]),
        "long_huge": (Run.from_arrays({"loss": np.tile([1e308, -1e308, 1.0], 1000)}), [spike(900)]),
        "empty_loss": (Run.from_arrays({"loss": []}), []),
        "one_step": (Run.from_arrays({"loss": [1.5], "grad_norm/a": [2.0]}), []),
        "one_step_event": (Run.from_arrays({"loss": [np.nan]}), [nan]),
        "two_steps": (Run.from_arrays({"loss": [1.5, 1.4]}), []),
        "no_loss": (Run.from_arrays({"grad_norm": np.exp(noise)}), []),
        "imported": (Run.from_arrays({"loss": 3 + 0.1 * noise, "train/accuracy": noise}), [spike(150, length=3)]),
        "all_nan": (Run.from_arrays({"loss": np.full(n, np.nan), "grad_norm": np.full(n, np.nan)}), []),
        "all_inf": (Run.from_arrays({"loss": np.full(n, np.inf), "grad_norm/a": np.full(n, -np.inf)}), []),
        "all_equal": (Run.from_arrays({"loss": np.full(n, 2.0), "grad_norm/a": np.zeros(n)}), [spike(150)]),
        "all_zero": (Run.from_arrays({"loss": np.zeros(n)}), []),
        "negative": (Run.from_arrays({"loss": -5 + noise}), [spike(150, length=4)]),
        "half_nan": (Run.from_arrays({"loss": broken, "grad_norm": broken}), [nan]),
        "huge_values": (Run.from_arrays(huge), [spike(150)]),
        "sparse_steps": (Run.from_arrays(sparse), [spike(10_000 + 500 * 150, length=501)]),
        "uneven_large_steps": (Run.from_arrays(uneven), [spike(int(uneven["step"][150]), length=9)]),
        "event_at_start": (spiky(at=()), [spike(0), spike(3, length=1)]),
        "event_past_end": (spiky(at=()), [spike(598, length=400), spike(5000)]),
        "names": (Run.from_arrays({"loss": np.exp(noise), **named}, name=NASTY[0], subtitle=NASTY[1]), [spike(150)]),
        "many_events": (many, [spike(20 + 3 * i, severity=float(i % 97), length=2) for i in range(5000)]),
        "many_tensors": (spiky(tensors=300), [spike(200), spike(420)]),
        "guarded_no_loss": (_acted({"grad_norm": np.exp(noise)}), []),
        "guarded_all_refused": (_acted({"loss": 2 + 0.1 * noise, "skipped": np.ones(n)}), [spike(150)]),
        "guarded_all_nan": (_acted({"loss": np.full(n, np.nan), "skipped": x % 2}), [nan]),
        "guarded_empty": (_acted({}), []),
    }  # fmt: skip
