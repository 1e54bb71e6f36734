"""Weights that no update moved are found by their norms; a fault of memory is told from a program that drew anew."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foreshock.diagnose import diagnose, leaps, outside, written
from foreshock.diagnose.cold_start import cold_start
from foreshock.diagnose.not_reproducible import not_reproducible
from foreshock.diagnose.written import Written
from foreshock.monitor import Monitor
from foreshock.probes import FREE
from foreshock.run import ABSENT, Event, Run

AT, STEPS = 60, 110
SIZES = {"body.weight": 4096, "body.bias": 64, "head.weight": 640, "head.bias": 10}
EVENT = Event("spike", AT + 1, AT, AT + 2, AT + 30, 3.0, 80.0, "loss")


@pytest.mark.parametrize("module", [leaps, written])
def test_the_docstrings_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


def trained(
    after: Mapping[str, float], written: Mapping[str, tuple[float, int]] | None = None, *,
    updates: Mapping[str, float] | None = None, optimizer: str = "Adam",
) -> Run:  # fmt: skip
    """Returns a run whose tensors have these norms from step 60 on, as a share of those before.

    Args:
        after: tensor -> its norm over that before; others stay.
        written: tensor -> what `outside_norm` (over the norm before) and `outside_count` say.
        updates: tensor -> its update at step 60, over the norm before.
        optimizer: class.
    """
    at, draw = np.arange(STEPS), np.random.default_rng(0)
    loss = 1 + np.where(at >= AT, 3 * np.exp(-(at - AT) / 15), 0) + 0.02 * draw.standard_normal(STEPS)
    columns = {"loss": loss, "lr": np.full(STEPS, 1e-3)}
    for name, size in SIZES.items():
        norm = math.sqrt(size) * 0.1
        columns[f"param_norm/{name}"] = np.where(at >= AT, after.get(name, 1.0), 1.0) * norm + 1e-4 * at
        moved = 3e-4 * np.sqrt(size) * np.exp(0.1 * draw.standard_normal(STEPS))
        moved[AT] = (updates or {}).get(name, moved[AT] / norm) * norm
        columns[f"update_norm/{name}"], columns[f"update_rms/{name}"] = moved, moved / math.sqrt(size)
        columns[f"grad_norm/{name}"] = np.exp(0.1 * draw.standard_normal(STEPS))
        if written is not None and name in written:
            for signal, value in zip(("outside_norm", "outside_count"), written[name], strict=True):
                values = np.full(STEPS, ABSENT)
                values[AT] = value * (norm if signal == "outside_norm" else 1)
                columns[f"{signal}/{name}"] = values
    group = {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "momentum": 0.9}
    return Run.from_arrays(columns, optimizers=[{"class": optimizer, "groups": [group]}])


def scores(run: Run, event: Event = EVENT) -> tuple[float, float]:
    fault, new = not_reproducible(run, event), cold_start(run, event)
    assert fault is not None
    assert new is not None
    return fault.score, new.score


BITS: Mapping[str, tuple[Mapping[str, float], Mapping[str, tuple[float, int]]]] = {
    "one bit": ({"body.weight": 40.0}, {"body.weight": (40.0, 1)}),
    "one bit that changes the norm by little": ({"body.weight": 1.01}, {"body.weight": (0.15, 1)}),
    "a bit that makes it infinite": ({"head.weight": math.inf}, {"head.weight": (math.inf, 1)}),
    "a few bits of two tensors": (
        {"body.weight": 9.0, "head.weight": 5.0}, {"body.weight": (9.0, 5), "head.weight": (5.0, 3)},
    ),
    "a tensor scaled": ({"body.weight": 4.0}, {"body.weight": (3.0, 4096)}),
    "noise on a tensor": ({"body.weight": 1.41}, {"body.weight": (1.0, 4096)}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BITS))
def test_a_fault_of_memory_is_called_so(name: str) -> None:
    run = trained(*BITS[name])
    fault, new = scores(run)
    assert fault > 0.75
    assert new < 0.3
    assert diagnose(run, EVENT).best.name == "not_reproducible"


DRAWN: Mapping[str, tuple[Mapping[str, float], Mapping[str, tuple[float, int]] | None]] = {
    "a module": (
        {"head.weight": 0.6, "head.bias": 0.5}, {"head.weight": (1.17, 640), "head.bias": (1.1, 10)},
    ),
    "a module, larger": (
        {"head.weight": 2.0, "head.bias": 2.0}, {"head.weight": (2.24, 640), "head.bias": (2.2, 10)},
    ),
    "some rows": ({"head.weight": 0.97}, {"head.weight": (0.5, 128)}),
    "a module, by its norms alone": ({"head.weight": 0.6, "head.bias": 0.4}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_weights_that_the_program_drew_again_are_a_cold_start(name: str) -> None:
    run = trained(*DRAWN[name])
    fault, new = scores(run)
    assert new > 0.75
    assert fault < 0.3
    best = diagnose(run, EVENT).best
    assert best.name == "cold_start"
    assert f"Before step {AT}" in best.evidence[0]


def test_weights_that_were_loaded_are_neither() -> None:
    """An older state, much like the one it replaced: nobody has drawn these weights, and no bit has flipped."""
    run = trained(dict.fromkeys(SIZES, 0.9), {name: (0.2, size) for name, size in SIZES.items()})
    fault, new = scores(run)
    assert max(fault, new) < 0.5
    assert "The cosine of" in " ".join(cold_start(run, EVENT).evidence)  # type: ignore[union-attr]


def test_what_an_update_cannot_have_done_is_found_without_being_measured() -> None:
    """`.data` is not counted by torch, so that what it wrote shows as part of the update."""
    moves = {"head.weight": 1.2, "head.bias": 1.1}
    for optimizer in ("Adam", "AdamW", "SGD"):
        run = trained({"head.weight": 0.7, "head.bias": 0.6}, updates=moves, optimizer=optimizer)
        found = outside.outside(run, EVENT)
        assert found is not None
        assert {each.how for each in found.tensors} == {"bound"}
        assert found.modules == ("head",)
        assert cold_start(run, EVENT).score > 0.75  # type: ignore[union-attr]
    assert outside.outside(trained({}, updates=moves, optimizer="Unheard"), EVENT) is None


def test_an_optimizer_gone_wild_is_nobody_else() -> None:
    """Its state was written to: all tensors move too far, or one does for longer than a step."""
    run = trained({}, updates=dict.fromkeys(SIZES, 1.0))
    assert outside.outside(run, EVENT) is None
    columns = {name: run[name].copy() for name in run.columns}
    for name in SIZES:
        columns[f"update_norm/{name}"][AT] = columns[f"update_norm/{name}"][AT - 1]
    columns["update_norm/head.bias"][AT : AT + 8] = 0.3
    assert outside.outside(Run.from_arrays(columns, **run.meta), EVENT) is None


def test_what_a_loop_writes_all_the_time_is_no_event() -> None:
    run = trained({"head.weight": 1.05}, {"head.weight": (0.06, 640)})
    columns = {name: run[name].copy() for name in run.columns}
    columns["outside_norm/head.weight"][:AT] = columns["outside_norm/head.weight"][AT]
    columns["outside_count/head.weight"][:AT] = 640
    columns["param_norm/head.weight"][:] = columns["param_norm/head.weight"][0]
    assert outside.outside(Run.from_arrays(columns, **run.meta), EVENT) is None


def test_weights_that_moved_by_their_updates_rule_a_fault_out() -> None:
    fault, new = scores(trained({}))
    assert fault < 0.05
    assert new < 0.5
    rare = {name: trained({})[name][::10] for name in trained({}).columns}
    assert not_reproducible(Run.from_arrays({"step": np.arange(0, STEPS, 10), **rare}), EVENT) is None
    loss_alone = Run.from_arrays({"loss": trained({})["loss"]})
    assert not_reproducible(loss_alone, EVENT) is None


@pytest.mark.parametrize(
    ("change", "after", "cosine"),
    [(1.0, 2.0, 1.0), (math.sqrt(2), 1.0, 0.0), (1.0, math.sqrt(2), math.sqrt(0.5)), (2.0, 1.0, -1.0)],
)
def test_the_cosine_comes_from_three_norms(change: float, after: float, cosine: float) -> None:
    change_of = Written("w", change, 1.0, after, 0.0, 9, 9, "measured")
    assert change_of.cosine == pytest.approx(cosine)


def test_the_cosine_of_real_weights_is_theirs() -> None:
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Written("w", float((b - a).norm()), float(a.norm()), float(b.norm()), 0.0, 500, 500, "measured")
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)))


MADE: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.5),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.95, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, betas=(0.5, 0.9999), weight_decay=0.3),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_no_update_of_a_real_training_is_taken_for_a_write(name: str) -> None:
    dtype = torch.float64 if name == "adam" else torch.float32
    draw = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4)).to(dtype)
    optimizer = MADE[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t % 20 < 10 else 0.3)
    with Monitor(model, optimizer, probes=FREE) as monitor:
        for step in range(56):
            x = torch.randn(8, 6, generator=draw, dtype=dtype) * (30.0 if step in (40, 60) else 1.0)
            loss = model(x).square().mean() + 0.1 * model(x).sum(1).mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        run = monitor.run
    for step in range(4, 56, 8):
        assert outside.outside(run, Event("spike", step, step, step + 1, step + 3, 1.0, 9.0, "loss")) is None


def test_a_flipped_bit_of_a_training_is_found(tmp_path: Any) -> None:
    first = nn.Linear(6, 16)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    with Monitor(model, optimizer, run=tmp_path / "run", probes=FREE) as monitor:
        for step in range(50):
            if step == 30:
                with torch.no_grad():
                    first.weight[3, 2] = 1e4
            x = torch.randn(8, 6, generator=draw)
            loss = (model(x) - x[:, :4]).square().mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    cause = not_reproducible(Run.load(tmp_path / "run"), Event("spike", 30, 30, 30, 40, 1.0, 9.0, "loss"))
    assert cause is not None
    assert cause.score > 0.9
    assert "`0.weight` changed by 1e+4" in cause.evidence[0] or "`0.weight` changed by 10,000" in cause.evidence[0]
    assert "in 1 element of 96" in cause.evidence[0]
