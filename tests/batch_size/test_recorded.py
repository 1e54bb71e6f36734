"""Advice from a recorded run, in Python and on the command line."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from foreshock.batch_size import recorded_advice
from foreshock.cli import main
from foreshock.errors import UsageError
from foreshock.run import Run, absent

STEPS = 600


def run(batches=(32, 128), low: float = 0.8, **signals) -> Run:
    """Returns a run at one batch size after the other, seconds 1 + B/100 a step, a noise scale that grows to 1,000."""
    sizes = np.repeat(np.array(batches, float), STEPS // len(batches))
    scales = np.geomspace(10, 1000, STEPS)
    rng = np.random.default_rng(0)
    columns = {
        "loss": np.geomspace(2, 0.1, STEPS), "batch_size": sizes,
        "step_seconds": (1 + sizes / 100) * rng.lognormal(0, 0.02, STEPS),
        "noise_scale": scales, "noise_low": low * scales, "noise_high": scales / low, "noise_trace": scales,
    }  # fmt: skip
    return Run.from_arrays(columns | signals)


def test_the_last_noise_scale_and_the_recorded_times_decide():
    found = recorded_advice(run((512, 128, 32)))
    assert found.current == 32
    assert found.noise_scale == pytest.approx(1000)
    assert found.times.fixed == pytest.approx(1.0, rel=0.05)
    assert found.advice.target == 512  # B* = sqrt(100 * 2000), among those it had
    assert found.schedule.phases[-1].batch == 512
    json.dumps(found.to_dict(), default=str)


def test_a_line_opens_other_sizes():
    found = recorded_advice(run((32,)), line=(1.0, 0.01))
    assert found.advice.target == 512
    assert found.advice.lr_factor == 4.0
    assert found.schedule.seconds == pytest.approx(sum(phase.seconds for phase in found.schedule.phases))
    alone = recorded_advice(run((32,)), line=(1.0, 0.01), batches=[64])
    assert alone.advice.target == 64
    with pytest.raises(UsageError, match="one batch size only"):
        recorded_advice(run((32,)))


def test_a_schedule_of_a_run_takes_the_run_s_time():
    found = recorded_advice(run((32, 128)))
    scales, sizes = np.geomspace(10, 1000, STEPS), np.repeat([32.0, 128.0], STEPS // 2)
    progress = sizes / (1 + sizes / (2 * scales))
    seconds = (progress / (128 / 2.28 / (1 + 128 / (2 * scales)))).sum()
    assert found.schedule.fixed[128] == pytest.approx(seconds, rel=0.03)


@pytest.mark.parametrize(
    "signals",
    [
        {"softmax_absorbed": np.full(STEPS, 0.7), "softmax_residual": np.full(STEPS, 0.3)},
        {"noise_gated": np.where(np.arange(STEPS) > 590, 1.0, absent(STEPS)),
         "noise_scale": np.where(np.arange(STEPS) > 590, absent(STEPS), 1000.0)},
        {"noise_scale": np.where(np.arange(STEPS) > 100, absent(STEPS), 1000.0)},
        {"chi": np.full(STEPS, 0.99)},
    ],
)  # fmt: skip
def test_what_forbids_a_switch_is_read_from_the_run(signals):
    held = recorded_advice(run((32,), **signals), line=(1.0, 0.01)).advice
    assert held.decision == "hold"
    assert held.reasons


def test_a_run_without_noise_holds_and_one_without_batches_is_refused():
    bare = Run.from_arrays({"loss": np.ones(20), "batch_size": np.full(20, 64.0)})
    found = recorded_advice(bare, line=(1.0, 0.01))
    assert found.advice.decision == "hold"
    assert math.isnan(found.noise_scale)
    with pytest.raises(UsageError, match="no batch_size"):
        recorded_advice(Run.from_arrays({"loss": np.ones(20)}), line=(1.0, 0.01))


def test_the_command_prints_the_advice(tmp_path):
    place = str(tmp_path / "run")
    run((512, 128, 32)).save(place)
    shown = CliRunner().invoke(main, ["batch-size", place])
    assert shown.exit_code == 0, shown.output
    assert "Switch from 32 to 512, learning rate times 4." in shown.output
    assert "512 *" in shown.output
    told = CliRunner().invoke(main, ["batch-size", place, "--json", "--fixed", "1", "--per-sample", "0.01"])
    facts = json.loads(told.output)
    assert facts["advice"]["decision"] == "switch"
    held = CliRunner().invoke(main, ["batch-size", place, "--switch-time", "40", "--remaining", "1"])
    assert "Hold" in held.output
    half = CliRunner().invoke(main, ["batch-size", place, "--fixed", "1"])
    assert half.exit_code == 2
