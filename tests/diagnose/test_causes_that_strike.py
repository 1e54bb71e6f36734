"""Bad batches, bursts of the update and values that are no numbers are told apart, and from what builds up."""

from __future__ import annotations

import doctest
import re
from operator import attrgetter

import numpy as np
import pytest

import foreshock
from foreshock.diagnose import Diagnosis, diagnose, odds
from foreshock.diagnose.nonfinite import nonfinite
from foreshock.diagnose.outlier_batch import outlier_batch
from foreshock.diagnose.strike import strike
from foreshock.diagnose.update_burst import update_burst
from foreshock.run import Event, Run

from .struck import ADAM, AT, TENSORS, bad_batch, build_up, burst, calm, only, spike, times

SEEDS = range(4)
NO_NUMBER = Event("nonfinite", AT, AT, AT, None, np.nan, np.inf, "loss", {"signals": ["loss"], "count": 1})


def told(found: Diagnosis) -> str:
    return " ".join((*found.best.evidence, *found.best.contradicts))


def test_the_docstring_is_true() -> None:
    assert doctest.testmod(odds) == doctest.TestResults(failed=0, attempted=4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("factor", "steps"), [(3.0, 1), (30.0, 1), (5.0, 4), (5.0, 30)])
def test_a_batch_whose_own_loss_is_off_is_named(seed: int, factor: float, steps: int) -> None:
    found = diagnose(bad_batch(seed, factor=factor, steps=steps), spike(AT, peak=AT + steps - 1))
    assert found.best.name == "outlier_batch"
    assert found["update_burst"].score < 0.5
    assert f"The loss of step {AT}" in found.best.evidence[0]
    assert "usual" in " ".join(found.best.evidence)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("factor", "lag"), [(10.0, 1), (100.0, 1), (1e4, 1), (100.0, 4)])
def test_a_gradient_out_of_scale_at_a_usual_loss_is_a_burst(seed: int, factor: float, lag: int) -> None:
    found = diagnose(burst(seed, factor=factor, lag=lag), spike(AT + lag))
    assert found.best.name == "update_burst"
    assert found["outlier_batch"].score < 0.15
    text = told(found)
    assert f"At step {AT} the " in text
    assert "gradient norm was" in text
    assert "The loss of its own batch was as usual" in text


def test_larger_bursts_are_surer() -> None:
    scores = [update_burst(burst(factor=factor), spike(AT + 1)).score for factor in (5.0, 30.0, 1000.0)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_moment_that_falls_faster_than_it_can_was_lost(seed: int) -> None:
    records = calm(seed)
    records["v_ratio"][AT] = 0.02
    times(records, 8.0, "update_rms", steps=4)
    records["loss"][AT + 1 : AT + 20] *= 4
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), spike(AT + 1))
    assert found.best.name == "update_burst"
    assert found.best.score > 0.9
    assert "its own decay does not allow" in told(found)
    assert "what writes to the optimizer's state" in found.best.advice[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_momentum_out_of_scale_is_seen_in_the_update_alone(seed: int) -> None:
    records = calm(seed)
    times(records, 50.0, "update_rms", steps=10)
    records["loss"][AT + 1 :] *= 6
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), spike(AT + 1))
    assert found.best.name == "update_burst"
    assert "Its gradient was as usual" in told(found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("growth", [1.25, 1.5, 1.9])
def test_what_builds_up_is_neither(seed: int, growth: float) -> None:
    steps = int(np.log(70) / np.log(growth))
    run, event = build_up(seed, growth=growth, steps=steps), spike(AT - 2, peak=AT)
    assert strike(run, event).climbing >= 2
    assert outlier_batch(run, event).score < 0.15
    assert update_burst(run, event).score < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_learning_rate_that_leaps_is_no_burst(seed: int) -> None:
    records = calm(seed)
    times(records, 30.0, "lr", "update_rms", steps=4)
    records["loss"][AT + 1 :] *= 4
    run = Run.from_arrays(records, optimizers=[ADAM])
    assert update_burst(run, spike(AT + 1)).score < 0.15
    assert outlier_batch(run, spike(AT + 1)).score < 0.3
    assert diagnose(run, spike(AT + 1)).best.name == "schedule"


@pytest.mark.parametrize("name", ["loss_scale", "micro_batches"])
def test_a_scale_that_somebody_set_is_no_burst(name: str) -> None:
    run = burst()
    records = {column: run[column] for column in run.columns if column not in ("step", "time")}
    records[name] = np.where(np.arange(300) >= AT, 100.0, 1.0)
    assert update_burst(Run.from_arrays(records, optimizers=[ADAM]), spike(AT + 1)).score < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_an_easy_batch_that_does_harm_is_a_bad_batch(seed: int) -> None:
    """All examples alike: the loss is low, the gradient is all in one direction, and the next loss is high."""
    records = calm(seed)
    records["loss"][AT] *= 0.05
    times(records, 20.0, "grad_norm")
    times(records, 5.0, "update_rms", steps=3)
    records["loss"][AT + 1 : AT + 20] *= 8
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), spike(AT + 1))
    assert found.best.name == "outlier_batch"
    assert "unusually low" in told(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_batch_that_does_harm_comes_before_its_update(seed: int) -> None:
    records = calm(seed)
    times(records, 8.0, "loss", "grad_norm")
    times(records, 20.0, "update_rms", steps=5)
    records["loss"][AT + 1 :] *= 6
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), spike(AT))
    assert found.best.name == "outlier_batch"
    assert 0.15 < found["update_burst"].score < found.best.score


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [3.0, 20.0])
def test_a_number_that_was_misread_is_unexplained(seed: int, factor: float) -> None:
    records = calm(seed)
    times(records, factor, "loss")
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), spike(AT))
    assert found.best.name == "unexplained"
    assert "as if only the number were wrong" in " ".join(found["outlier_batch"].evidence)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_norm_that_the_loop_clips_does_not_speak_against_a_bad_batch(seed: int) -> None:
    run = bad_batch(seed)
    records = {name: run[name] for name in ("loss", "lr", "update_rms")}
    clipped = Run.from_arrays(records | {"grad_norm": np.minimum(run["grad_norm"], 0.8)})
    assert np.mean(clipped["grad_norm"] == 0.8) > 0.2
    assert diagnose(clipped, spike(AT)).best.name == "outlier_batch"


@pytest.mark.parametrize("seed", SEEDS)
def test_updates_that_grow_before_the_loss_does_are_a_build_up(seed: int) -> None:
    records = calm(seed, noise=0.03)
    records["update_rms"][AT - 4 : AT + 10] *= np.array([1.4, 1.8, 2.5, 4.0, *[8.0] * 10])
    records["loss"][AT : AT + 10] *= 5
    times(records, 4.0, "grad_norm", steps=10)
    found = strike(Run.from_arrays(records, optimizers=[ADAM]), spike(AT))
    assert found.growing
    assert outlier_batch(Run.from_arrays(records, optimizers=[ADAM]), spike(AT)).score < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_alternating_gradients_count_where_a_training_does_not_have_them_anyway(seed: int) -> None:
    runs = []
    for usual in (0.1, -0.7):
        records = calm(seed)
        records["grad_cosine"] += usual - 0.1
        records["grad_cosine"][AT - 6 : AT] = -0.9
        times(records, 5.0, "loss", "grad_norm")
        runs.append(Run.from_arrays(records, optimizers=[ADAM]))
    rare, habit = (outlier_batch(run, spike(AT)).score for run in runs)
    assert rare < 0.3
    assert habit > 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_that_nobody_recorded_may_have_done_it(seed: int) -> None:
    for run, judge, at in ((bad_batch(seed), outlier_batch, AT), (burst(seed), update_burst, AT + 1)):
        sparse = Run.from_arrays({name: run[name] for name in run.columns if name not in ("step", "time")} | {
            "step": run.steps * 10}, optimizers=[ADAM])  # fmt: skip
        found = judge(sparse, spike(10 * at))
        assert found.score < judge(run, spike(at)).score - 0.05
        assert "hat the 9 steps before" in " ".join((*found.evidence, *found.contradicts))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leap_against_the_gradient_before_is_an_overshoot(seed: int) -> None:
    run = burst(seed, factor=10.0)
    records = {name: run[name] for name in run.columns if name not in ("step", "time")}
    straight = update_burst(run, spike(AT + 1)).score
    records["grad_cosine"][AT] = -0.9
    assert update_burst(Run.from_arrays(records, optimizers=[ADAM]), spike(AT + 1)).score < straight - 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_loss_alone_a_lone_spike_is_weakly_a_bad_batch(seed: int) -> None:
    lone = diagnose(only(bad_batch(seed), "loss"), spike(AT))
    assert 0.3 < lone["outlier_batch"].score < 0.6
    assert any("`grad_norm`" in line for line in lone.best.advice) or lone.best.name == "outlier_batch"
    assert "grad_norm" in next(each for each in lone.unjudged if each.cause == "update_burst").signals
    lasting = only(burst(seed, harm=6.0), "loss")
    assert diagnose(lasting, spike(AT + 1))["outlier_batch"].score < lone["outlier_batch"].score


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("names", [("loss", "grad_norm"), ("loss", "grad_norm", "lr")])
def test_loss_and_gradient_are_enough(seed: int, names: tuple[str, ...]) -> None:
    assert diagnose(only(bad_batch(seed), *names), spike(AT)).best.name == "outlier_batch"
    assert diagnose(only(burst(seed), *names), spike(AT + 1)).best.name == "update_burst"


def test_a_gradient_that_leaps_and_does_no_harm_is_explained_too() -> None:
    event = spike(AT, kind="precursor", signal="grad_norm")
    assert diagnose(burst(harm=1.0), event).best.name == "update_burst"
    assert diagnose(bad_batch(factor=5.0), event).best.name == "outlier_batch"


def test_few_examples_that_pushed_it_speak_for_a_bad_batch() -> None:
    run, event = bad_batch(factor=3.0), spike(AT)
    before = outlier_batch(run, event).score
    finding = {"kind": "attribution", "event": list(event.key), "culprit_concentration": 2, "culprit_count": 64}
    run.add_finding(finding)
    after = outlier_batch(run, event)
    assert after.score > before
    assert "2 examples of 64" in " ".join(after.evidence)


def broken(seed: int = 0, **changes: object) -> Run:
    records = calm(seed)
    for name, value in changes.items():
        records[name.replace("__", "/")][AT:] = value
    return Run.from_arrays(records, optimizers=[ADAM], tensors=list(TENSORS))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_in_a_sound_training_is_named(seed: int, value: float) -> None:
    found = diagnose(broken(seed, loss=value, grad_norm=np.nan), NO_NUMBER)
    assert found.best.name == "nonfinite"
    assert found.best.score > 0.9
    assert "in their range until the step before" in told(found)
    assert found["outlier_batch"].score < 0.15


def test_the_tensor_where_it_began_is_named() -> None:
    gradients = {"grad_norm": np.nan, "grad_norm__a": np.nan, "grad_norm__b": np.nan}
    found = nonfinite(broken(**gradients), NO_NUMBER)
    text = " ".join(found.evidence)
    assert "the norm of the gradient was NaN, the loss was not" in text
    assert "Of 3 tensors 2 gradients were not finite: `a`, `b`; it began in `b`" in text
    assert "detect_anomaly" in " ".join(found.advice)
    first = broken(grad_norm=np.inf)
    records = {name: first[name] for name in ("loss", "grad_norm")}
    records["nonfinite_first"] = np.where(np.arange(300) >= AT, 2.0, -1.0)
    run = Run.from_arrays(records, tensors=list(TENSORS))
    assert "The first tensor that was not finite was `c`" in " ".join(nonfinite(run, NO_NUMBER).evidence)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_divergence_that_ends_in_infinity_is_not_the_fault_of_infinity(seed: int) -> None:
    records = calm(seed)
    times(records, 1000.0, "grad_norm", at=AT - 10)
    records["loss"][AT - 9 : AT] *= 10.0 ** np.arange(1, 10)
    records["grad_norm"][AT - 9 : AT] *= 10.0 ** np.arange(1, 10)
    records["update_rms"][AT - 10 :] *= 100
    records["loss"][AT:] = np.inf
    found = diagnose(Run.from_arrays(records, optimizers=[ADAM]), NO_NUMBER)
    assert found["nonfinite"].score < 0.15
    assert "end of a divergence" in " ".join(found["nonfinite"].evidence)
    assert found.best.name == "update_burst"


def test_a_run_that_has_hardly_begun_is_judged_by_its_first_losses() -> None:
    well = Run.from_arrays({"loss": [2.0, 1.9, np.nan]})
    grown = Run.from_arrays({"loss": [2.0, 50.0, 3e4, np.inf]})
    at = [Event("nonfinite", step, step, step, None, np.nan, np.inf, "loss") for step in (2, 3)]
    assert nonfinite(well, at[0]).score > 0.9
    assert nonfinite(grown, at[1]).score < 0.15


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_half_precision_is_advised_on_first_where_it_is_used(scale: float) -> None:
    run = broken(loss=np.nan)
    records = {name: run[name] for name in ("loss", "grad_norm")} | {"loss_scale": np.full(300, scale)}
    advice = nonfinite(Run.from_arrays(records), NO_NUMBER).advice
    assert ("float16" in advice[1]) == (scale > 1)


def test_what_the_advice_says_to_call_exists() -> None:
    causes = [
        diagnose(bad_batch(), spike(AT)).best, diagnose(burst(), spike(AT + 1)).best,
        diagnose(broken(loss=np.nan), NO_NUMBER).best,
    ]  # fmt: skip
    assert [cause.name for cause in causes] == ["outlier_batch", "update_burst", "nonfinite"]
    called = {name for cause in causes for name in re.findall(r"fs((?:\.\w+)+)\(", " ".join(cause.advice))}
    assert called >= {".Guard", ".Requeue", ".policies.clip_update"}
    for name in called:
        assert callable(attrgetter(name[1:])(foreshock)), name
    for cause in causes:
        assert cause.references
        assert set(cause.signals) <= set(foreshock.signals.SIGNALS) | {"update_in_lr"}


def test_nothing_is_judged_where_nothing_was_recorded() -> None:
    empty = Run.from_arrays({"loss": np.ones(4)})
    assert outlier_batch(empty, spike(2)) is None
    assert update_burst(empty, spike(2)) is None
    assert update_burst(only(burst(), "loss"), spike(AT + 1)) is None
    assert nonfinite(empty, NO_NUMBER) is None


@pytest.mark.parametrize("kind", ["spike", "divergence", "nonfinite", "precursor"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_run_holds_it_is_judged(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 150))
    columns = {}
    for name in ("loss", "grad_norm", "grad_norm/a", "lr", "v_ratio", "update_rms", "grad_cosine", "nonfinite"):
        values = np.exp(random.standard_normal(n) * 3) * random.choice([1, 1, -1, 0, 1e200])
        values[random.random(n) < 0.1] = random.choice([np.nan, np.inf, -np.inf, 0.0])
        columns[name] = values
    run = Run.from_arrays(columns)
    for _ in range(5):
        first, last = sorted(int(each) for each in random.integers(0, n, 2))
        found = diagnose(run, Event(kind, last, first, last, None, 1.0, 1.0, "loss"))
        assert all(0 <= cause.score <= 1 for cause in (*found.causes, *found.ruled_out))
