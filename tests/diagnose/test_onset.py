"""What left its range first is found at its step, whatever the noise, the trend and the gaps around it."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from foreshock.diagnose import onset as module
from foreshock.diagnose.onset import OUT, onset, tensors
from foreshock.diagnose.usual import Reading
from foreshock.run import Event, Run, absent

from .struck import AT, TENSORS, bad_batch, build_up, burst, calm, only, spike, times


def test_the_docstring_is_true() -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_a_burst_leaves_its_range_before_the_loss_does(seed: int, noise: float) -> None:
    run = burst(seed, noise=noise, harm=20.0)
    found = onset(run, spike(AT + 1))
    assert found is not None
    gradient, loss = found.left("grad_norm"), found.left("loss")
    assert (gradient.step, loss.step, found.rise) == (AT, AT + 1, AT + 1)
    assert gradient.ratio == pytest.approx(100, rel=12 * noise)
    assert found.first.step <= AT
    assert not found.at("loss", AT).out


@pytest.mark.parametrize("seed", range(5))
def test_within_a_step_the_order_is_that_of_causes(seed: int) -> None:
    found = onset(bad_batch(seed, factor=50.0), spike(AT))
    names = [each.signal for each in found.departures if each.step == AT]
    assert names[:3] == ["loss", "grad_norm", "grad_sq_over_v_mean"]


def test_calm_records_stay_in_their_range() -> None:
    out = 0
    for seed in range(20):
        run = Run.from_arrays(calm(seed))
        found = onset(run, spike(AT))
        out += len(found.departures)
        assert found.rise is None
    assert out <= 2  # 20 runs, 8 signals, 17 records each


def test_a_trend_is_no_departure() -> None:
    at = np.arange(300)
    for slope in (-0.03, -0.005, 0.005):
        loss = np.exp(slope * at + 0.02 * np.sin(at**2))
        found = onset(Run.from_arrays({"loss": loss}), spike(AT))
        assert abs(found.at("loss", AT - 1).z) < OUT
        assert found.rise is None


def test_signed_losses_are_read_on_their_own_scale() -> None:
    loss = np.sin(np.arange(300) ** 2)
    loss[AT] = 40.0
    found = onset(Run.from_arrays({"loss": loss}), spike(AT))
    assert found.rise == AT
    assert found.at("loss", AT).z > OUT


def test_what_is_usual_is_learnt_from_accepted_steps() -> None:
    records = calm()
    refused = np.zeros(300)
    refused[100:180:2] = 1
    records["loss"][100:180:2] *= 1e3
    found = onset(Run.from_arrays(records | {"skipped": refused}), spike(AT))
    assert found.at("loss", AT).usual == pytest.approx(np.exp(-AT / 400), rel=0.2)


def test_values_that_are_no_numbers_are_out_of_range() -> None:
    records = calm()
    records["loss"][AT:] = np.nan
    found = onset(Run.from_arrays(records), spike(AT))
    assert found.rise == AT
    assert found.left("loss").z == np.inf


def test_steps_of_records_are_walked_not_counted() -> None:
    run = burst()
    sparse = Run.from_arrays({"step": run.steps * 10, "loss": run["loss"], "grad_norm": run["grad_norm"]})
    found = onset(sparse, spike(10 * (AT + 1)))
    assert found.left("grad_norm").step == 10 * AT
    assert (found.previous(10 * AT), found.following(10 * AT, 2)) == (10 * AT - 10, 10 * AT + 20)
    assert found.previous(10 * AT + 5) == 10 * AT
    assert found.following(int(sparse.steps[-1])) is None


def test_signals_with_gaps_are_read_where_they_were_measured() -> None:
    run = burst()
    rare = absent(300)
    rare[::4] = run["grad_norm"][::4]
    found = onset(Run.from_arrays({"loss": run["loss"], "grad_norm": rare}), spike(AT + 1))
    assert found.left("grad_norm").step == AT
    assert found.at("grad_norm", AT - 1) is None


def test_too_short_a_past_tells_nothing() -> None:
    assert onset(Run.from_arrays({"loss": np.ones(300)}), spike(6)) is None
    assert onset(Run.from_arrays({"loss": []}), spike(6)) is None
    assert onset(Run.from_arrays({"loss": np.ones(300)}), spike(12)) is not None


def test_only_signals_recorded_often_enough_are_tracked() -> None:
    run = burst()
    found = onset(only(run, "loss"), spike(AT + 1))
    assert set(found.tracks) == {"loss"}
    assert found.at("grad_norm", AT) is None
    assert found.left("grad_norm") is None


def test_the_update_is_read_in_learning_rates() -> None:
    records = calm()
    times(records, 20.0, "lr", "update_rms", steps=4)
    found = onset(Run.from_arrays(records), spike(AT + 1))
    assert found.left("lr").step == found.left("update_rms").step == AT
    assert found.left("update_in_lr") is None


def test_learning_rates_of_groups_are_read_by_their_largest() -> None:
    records = calm()
    rate = records.pop("lr")
    groups = {"lr/group0": rate, "lr/group1": np.where(np.arange(300) >= AT, 0.1, rate / 2)}
    assert onset(Run.from_arrays(records | groups), spike(AT)).left("lr").step == AT


def test_tensors_are_ranked_by_how_far_they_were_out() -> None:
    records = calm()
    records["grad_norm/b"][AT] *= 1000
    records["grad_norm/c"][AT] *= 30
    run = Run.from_arrays(records)
    found = tensors(run, spike(AT), "grad_norm", AT)
    assert [each.signal for each in found] == ["grad_norm/b", "grad_norm/c", "grad_norm/a"]
    assert found[0].ratio == pytest.approx(1000, rel=0.9)
    assert tensors(run, spike(AT), "update_norm", AT) == ()
    assert len(found) == len(TENSORS)


@pytest.mark.parametrize("kind", ["spike", "divergence", "drift", "nonfinite", "precursor", "watch"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_run_holds_it_is_read(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 200))
    columns = {}
    for name in ("loss", "grad_norm", "lr", "v_ratio", "update_rms", "grad_cosine", "param_norm"):
        values = np.exp(random.standard_normal(n) * 3) * random.choice([1, -1, 0, 1e200])
        values[random.random(n) < 0.1] = random.choice([np.nan, np.inf, -np.inf, 0.0])
        values[random.random(n) < random.choice([0, 0.9])] = absent(1)[0]
        columns[name] = values
    run = Run.from_arrays(columns)
    first, last = sorted(int(each) for each in random.integers(0, n, 2))
    found = onset(run, Event(kind, last, first, last, None, 1.0, 1.0, "loss"))
    if found is not None:
        assert all(abs(each.z) >= OUT and not np.isnan(each.z) for each in found.departures)
        steps = [each.step for each in found.departures]
        assert steps == sorted(steps)


def test_a_build_up_is_seen_in_the_gradient_before_the_loss() -> None:
    found = onset(build_up(), spike(AT - 2, peak=AT))
    assert found.left("grad_norm").step < found.rise <= AT


def test_what_is_no_number_is_not_told_in_deviations() -> None:
    assert "deviations" not in Reading("grad_norm", 3, math.inf, 1.0, math.inf).told
