"""Whatever a run holds, the causes that read what a loop does beside its updates give a score or say they cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foreshock.diagnose import diagnose
from foreshock.run import ABSENT, Event, Run

from .noting import noted

NAMES = (
    "loss", "lr", "lr/group0", "lr/group1", "batch_size", "micro_batches", "loss_scale", "grad_norm", "grad_cosine",
    "v_ratio", "chi", "chi_secant", "softmax_new", "param_norm", "update_norm", "update_rms", "outside_norm",
    *(f"{name}/{tensor}" for name in ("param_norm", "update_norm", "update_rms", "outside_norm", "outside_count")
      for tensor in ("a.weight", "a.bias", "b")),
)  # fmt: skip
NOTES = (
    {"kind": "parameters_changed", "added": ["a.weight"], "removed": None, "resized": 3, "replaced": ["b", 4]},
    {"kind": "settings_changed", "group": 0, "setting": "momentum", "was": 0.9, "now": "?"},
    {"kind": "settings_changed", "setting": "betas", "was": [0.9, 0.999], "now": [0.9, 0.99]},
    {"kind": "resumed"},
)
OPTIMIZERS = (
    {"class": "Adam", "groups": [{"lr": 0.1, "betas": [0.9, 0.999]}, {"betas": None}]},
    {"class": "SGD", "groups": [{"momentum": 0.9, "weight_decay": "x"}]},
    {"class": "RMSprop", "groups": [{"alpha": 1.0}]}, {"class": "AdamW", "groups": [{"betas": ["a", "b"]}]}, "odd",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(24))
def test_random_columns_and_notes_break_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 160))
    columns: dict[str, np.ndarray] = {}
    for name in NAMES:
        if random.random() < 0.7:
            noise = np.exp(random.standard_normal(n) * random.choice([0.0, 0.1, 4.0]))
            values = np.array([noise, -noise, np.zeros(n), np.cumprod(noise)])[random.integers(4)]
            values[random.random(n) < 0.05] = random.choice([np.nan, np.inf, 0, 1e30])
            values[random.random(n) < random.choice([0, 0.9])] = ABSENT
            columns[name] = values
    columns["step"] = np.cumsum(random.integers(1, random.choice([2, 30]), n))
    steps = columns["step"]
    notes = [note | {"step": int(random.choice(steps))} for note in NOTES if random.random() < 0.7]
    run: Run = noted(columns, notes, optimizers=[OPTIMIZERS[random.integers(len(OPTIMIZERS))]])
    for kind in ("spike", "divergence", "nonfinite", "drift"):
        onset, raised, peak, end = (int(steps[i]) for i in sorted(random.integers(0, n, 4)))
        last = None if random.random() < 0.3 else end
        found = diagnose(run, Event(kind, raised, onset, peak, last, 1.0, 2.0, "loss"))
        assert all(0 <= cause.score <= 1 for cause in (*found.causes, *found.ruled_out))
        json.dumps(found.to_dict())
