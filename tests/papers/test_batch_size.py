"""The batch-size reproduction: its laws, its trainings on a toy, and what it claims."""

from __future__ import annotations

import doctest
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from foreshock.cli import main
from foreshock.errors import UsageError
from foreshock.papers import batch_policy, batch_steps
from foreshock.papers.batch_policy import follow
from foreshock.papers.batch_size import EXPERIMENT, QUICK, STUDIES, reproduce
from foreshock.papers.batch_statements import STATEMENTS
from foreshock.papers.batch_steps import Sweep, critical, lr_slope, sweep, trade_off, turning
from foreshock.papers.batch_studies import steps
from foreshock.papers.batch_switches import after_switches, false_spikes
from foreshock.papers.batch_tasks import TASKS, Task
from foreshock.papers.batch_training import Noise, arrive, measured_noise, optimizer_of
from foreshock.papers.experiment import Request
from foreshock.papers.studies import silent


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs, noise = torch.randn(256, 6, generator=generator), torch.randn(256, 3, generator=generator)
    return inputs, (inputs @ torch.randn(6, 3, generator=generator) + noise).argmax(1)


TOY = Task("a toy", _data, lambda: nn.Linear(6, 3), 0.62, 0.8, 0.05, (8, 32, 128), (8, 128))


def test_the_examples_are_true():
    for module in (batch_steps, batch_policy):
        assert doctest.testmod(module).failed == 0


def test_the_laws_are_found_again_through_noise():
    rng, sizes = np.random.default_rng(0), [2**power for power in range(3, 11)]
    law = trade_off({size: (40 + 4000 / size) * rng.lognormal(0, 0.03) for size in sizes})
    assert law.critical == pytest.approx(100, rel=0.2)
    assert law.misfit < 0.1
    assert lr_slope({size: 1e-3 * size**0.5 for size in sizes}, 300) == pytest.approx(0.5)
    assert math.isnan(lr_slope({8: 0.1, 16: 0.2}, 100))
    top, noise, off = turning({size: 0.3 / (1 + 77 / size) for size in sizes})
    assert (top, noise) == pytest.approx((0.3, 77), rel=0.02)
    assert off < 0.01


def test_noise_along_a_training_counts_by_its_steps():
    noise = [Noise(10, 1.0, 100.0, 1.0), Noise(20, 1.0, 100.0, 1.0), Noise(120, 1.0, 1000.0, 1.0)]
    assert critical(noise) == pytest.approx(100 * 10 ** (100 / 120))
    assert math.isnan(critical([Noise(1, 1.0, 1.0, -1.0)]))


def test_the_measured_noise_is_that_of_single_examples():
    model = TOY.network(1)
    owner = optimizer_of("sgd", model, 0.1)
    inputs, labels = TOY.data()
    off = (model(inputs).softmax(1) - functional.one_hot(labels, 3)).detach().double()
    seen = torch.cat([inputs.double(), torch.ones(256, 1, dtype=torch.float64)], 1)
    each = off.unsqueeze(2) * seen.unsqueeze(1)  # gradients of single examples
    square = float(each.mean(0).square().sum())
    trace = float(each.square().sum((1, 2)).mean()) - square
    before = torch.random.get_rng_state()
    found = measured_noise(TOY, model, owner, torch.Generator().manual_seed(3), 0, 0.0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert found.tr_sigma == pytest.approx(trace, rel=0.3)
    assert found.g_sq == pytest.approx(square, rel=0.2)
    assert math.isnan(found.preconditioned)
    assert all(param.grad is None for param in model.parameters())


@pytest.fixture(scope="module")
def swept() -> Sweep:
    return sweep(TOY, 0, TOY.batches, reference=32)


def test_larger_batches_take_fewer_steps_and_more_examples(swept):
    counted = swept.steps
    assert counted[8] > counted[32] > counted[128]
    assert counted[8] * 8 < counted[128] * 128
    assert trade_off(counted).critical > 0
    assert swept.noise
    again = arrive(TOY, 0, 32, swept.best(32).lr)
    assert again.steps == swept.best(32).steps


def test_the_policy_follows_the_cost_of_a_step():
    ways = {cost: follow(TOY, 0, cost, start=16, lr=0.005, batches=[16, 64, 256]) for cost in (0.5, 3000.0)}
    assert ways[3000.0].sizes[-1][1] > 16
    assert ways[0.5].sizes == [(0, 16)]
    assert all(math.isfinite(way.time) for way in ways.values())


def test_a_reset_takes_chi_far_up_and_no_declared_switch_is_a_spike():
    up = after_switches(TOY, 0, 8, 128, 0.02, length=4, read=(1, 4))
    assert up["reset"].highest > 3 * up["keep"].highest
    assert up["rescale"].chi[0] > up["keep"].chi[0]
    for after in up.values():
        assert after.lr_factor == 4.0
        assert [note["kind"] for note in after.run.notes].count("batch_switched") == 1
        assert false_spikes(after, declared=True) == []


def test_each_statement_has_a_study_and_a_name_of_its_own(monkeypatch):
    names = [each.name for each in STATEMENTS]
    assert len(set(names)) == len(names)
    monkeypatch.setitem(TASKS, "digits", replace(TOY, title="a toy"))
    shelf: dict[str, object] = {}
    found = steps("digits", 0, silent, 0, shelf)
    plain = steps("digits", 0, silent, 0, shelf, "sgd")
    wanted = {name for name in names if name.startswith(("digits:", "digits-sgd:")) and "spikes" not in name}
    assert wanted <= {*found.numbers, *plain.numbers}


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(UsageError, match="no training"):
        reproduce(Request(only=("digit",)))
    with pytest.raises(UsageError, match="seed"):
        reproduce(Request(seeds=()))
    assert set(QUICK) < set(STUDIES)
    assert set(EXPERIMENT.trainings) == set(STUDIES)
    listed = CliRunner().invoke(main, ["reproduce", "batch-size", "--list"])
    assert listed.exit_code == 0
    assert "switches-digits" in listed.output


@pytest.mark.slow
def test_the_quick_reproduction_decides_its_claims():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    outcome = reproduce(Request(seeds=(0,), quick=True))
    assert set(outcome.figures()) == {"steps", "policy", "switches"}
    decided = {claim.name: claim for claim in outcome.claims}
    assert len(decided) > 20
    for name in ("digits: misfit", "digits up, keep: highest chi", "digits up, reset: highest chi"):
        assert decided[name].reproduced, decided[name]
