from __future__ import annotations

import numpy as np
import pytest

from foreshock.report.departures import departures, earliest, ranked

N, ONSET = 500, 400


def found(columns: dict[str, np.ndarray], **more: object) -> dict[str, object]:
    steps = 1000 + 2 * np.arange(N)
    table = np.stack(list(columns.values()), axis=1)
    where = {"onset": 1000 + 2 * ONSET, "end": 1000 + 2 * (ONSET + 20)} | more
    return {item.column: item for item in departures(tuple(columns), steps, table, **where)}  # type: ignore[arg-type]


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N)


def test_the_lead_is_counted_in_steps_from_the_first_lasting_departure() -> None:
    signal = np.exp(0.1 * noise())
    signal[ONSET - 12 : ONSET + 20] *= 50
    item = found({"a": signal})["a"]
    assert (item.first, item.lead) == (1000 + 2 * (ONSET - 12), 24)
    assert item.before == pytest.approx(1.0, rel=0.15)
    assert item.extreme > 30
    assert item.low < 1 < item.high < item.extreme


def test_an_outlier_that_does_not_last_is_no_early_sign() -> None:
    signal = np.exp(0.1 * noise())
    signal[ONSET - 40] *= 1000
    signal[ONSET + 1 : ONSET + 20] *= 50
    assert found({"a": signal})["a"].lead == -2


def test_noise_and_trends_are_not_departures() -> None:
    x = np.arange(N)
    quiet = found({
        "noise": noise(), "positive": np.exp(0.2 * noise(1)), "trend": 5 + 0.01 * x + 0.05 * noise(2),
        "decay": np.exp(-x / 100 + 0.05 * noise(3)), "cosine": 1 + np.cos(np.pi * x / 900), "linear": 1 - x / 520,
        "inverse": 1 / (10 + x), "constant": np.full(N, 0.001), "zero": np.zeros(N),
    })  # fmt: skip
    assert [item.column for item in quiet.values() if item.moved] == []


def test_a_constant_that_changes_is_a_departure() -> None:
    lr = np.full(N, 1e-3)
    lr[ONSET - 3 :] = 1e-2
    flag = np.zeros(N)
    flag[ONSET + 2] = 1
    items = found({"lr": lr, "nonfinite": flag})
    assert items["lr"].lead == 6
    assert items["nonfinite"].moved


def test_signals_are_ranked_by_distance_and_the_earliest_is_found() -> None:
    far, early = np.exp(0.1 * noise()), np.exp(0.1 * noise(1))
    far[ONSET : ONSET + 20] *= 1e6
    early[ONSET - 30 : ONSET + 20] *= 50
    items = list(found({"early": early, "quiet": noise(2), "far": far}).values())
    assert [item.column for item in ranked(items)] == ["far", "early"]
    first = earliest(items)
    assert first is not None
    assert first.column == "early"


def test_a_measured_nan_departs_and_an_absent_one_does_not() -> None:
    signal = np.exp(0.1 * noise())
    signal[ONSET + 2] = np.nan
    assert found({"a": signal})["a"].moved
    assert not found({"a": signal}, absent=np.isnan(signal)[:, None])["a"].moved


@pytest.mark.parametrize("onset", [0, 1, 4])
def test_too_little_history_gives_no_score(onset: int) -> None:
    item = found({"a": noise()}, onset=1000 + 2 * onset, end=1000 + 2 * onset)["a"]
    assert np.isnan(item.score)
    assert not item.moved


def test_the_event_before_is_kept_out_of_what_is_normal() -> None:
    signal = np.exp(0.1 * noise())
    signal[200:260] *= np.random.default_rng(5).choice([1e-3, 1e3], 60)
    signal[ONSET : ONSET + 20] *= 30
    assert not found({"a": signal})["a"].moved
    assert found({"a": signal}, since=1000 + 2 * 260)["a"].moved


@pytest.mark.parametrize("memory", [0.0, 0.9, 0.98, 1.0])
def test_among_a_thousand_wandering_signals_none_is_an_early_sign(memory: float) -> None:
    random = np.random.default_rng(3)
    kicks = random.standard_normal((N, 1000)) * max(np.sqrt(1 - memory**2), 0.1)
    walks = np.zeros((N, 1000))
    for t in range(1, N):
        walks[t] = memory * walks[t - 1] + kicks[t]
    names = tuple(map(str, range(1000)))
    items = departures(names, np.arange(N), np.exp(0.3 * walks), onset=ONSET, end=ONSET + 20)
    assert earliest(items) is None
