"""Spikes: what must be found, when, with which shape, and what must not."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from foreshock.detect import Spike, scan
from tests.detect.curves import falling, noisy, records, versions, with_


def spikes(loss: list[float], **signals: list[float]) -> list:
    return scan(records(loss, **signals), [Spike()])


def raised(loss: list[float], **signals: list[float]) -> list[int]:
    return [event.raised for event in spikes(loss, **signals)]


def test_flat_noise_is_silent_for_ten_thousand_steps() -> None:
    assert len(spikes(noisy(10_000))) <= 1  # G1


def test_one_outlier_is_one_narrow_event_at_its_own_step() -> None:
    (event,) = spikes(with_(noisy(600), {300: 1.0}))  # G2
    assert (event.raised, event.onset, event.peak, event.end) == (300, 300, 300, 300)
    assert event.height == pytest.approx(1.0, abs=0.1)
    assert event.severity > 20.0
    assert event.data["width"] == "narrow"
    assert event.data["records"] == 1
    assert event.data["baseline"] == pytest.approx(2.0, abs=0.02)


def test_an_outlier_leaves_the_baseline_where_it_was() -> None:
    loss = with_(noisy(600), {300: 1.0})
    with_spike, without = Spike(), Spike()
    for record in records(loss):
        with_spike.update(record)
        if record.step != 300:
            without.update(record)
    a, b = with_spike.state_dict()["base"]["residuals"], without.state_dict()["base"]["residuals"]
    assert max(a) < 0.1  # nothing of the outlier, ln 1.5 = 0.4, is in the history
    assert statistics.median(a) == pytest.approx(statistics.median(b), abs=1e-3)


def test_eight_elevated_steps_are_wide_from_the_fifth_on() -> None:
    rows = records(with_(noisy(600), dict.fromkeys(range(300, 308), 1.0)))  # G4
    detector = Spike()
    told = {record.step: event for record in rows for event in detector.update(record)}
    assert told[300].data["width"] == "narrow"
    assert told[300].end is None
    assert told[304].data["width"] == "wide"
    assert told[304].key == told[300].key
    last = told[max(told)]
    assert (last.onset, last.end, last.data["records"]) == (300, 307, 8)
    assert last.data["area"] == pytest.approx(8.0, abs=0.5)


def test_slow_climb_of_a_fifth_is_no_spike() -> None:
    assert spikes(noisy(3000, lambda step: 2.0 + 0.4 * min(1.0, max(0, step - 500) / 2000))) == []  # G6


def test_step_that_stays_is_one_wide_event_then_the_baseline_adapts() -> None:
    loss = noisy(1500, lambda step: 2.0 if step < 500 else 2.6)  # G6
    (event,) = spikes(loss)
    assert event.onset == 500
    assert event.data["width"] == "wide"
    assert event.data["level_change"] is True
    assert [step for step in raised(with_(loss, {1200: 1.0})) if step > 600] == [1200]


def test_twelve_published_spikes_are_all_found() -> None:
    # G7: the events read off figure 1 of arXiv 2503.05139, on a smooth curve 13.6 -> 1.26
    peaks = (8.78, 5.85, 2.61, 3.63, 6.65, 7.06, 8.69, 5.03, 3.88, 5.97, 8.53, 2.76)
    steps = (889, 1321, 1400, 1709, 3169, 5053, 5171, 5719, 6197, 6682, 8098, 10612)
    noise = random.Random(0)
    loss = [1.15 + 12.4 * (1.0 + i / 30.0) ** -0.8 + noise.gauss(0.0, 0.01) for i in range(10_700)]
    for step, peak in zip(steps, peaks, strict=True):
        loss[step] = peak
    assert raised(loss) == list(steps)


def test_second_equal_spike_is_found_again() -> None:
    assert raised(with_(noisy(600), {300: 1.0, 420: 1.0})) == [300, 420]


def test_three_spikes_thirty_steps_apart_are_three_events() -> None:
    bump = {start + i: 1.5 * math.exp(-i / 4.0) for start in (300, 330, 360) for i in range(20)}
    assert raised(with_(noisy(600), bump)) == [300, 330, 360]


@pytest.mark.parametrize("start", [12, 18, 25])
def test_spike_within_the_first_thirty_steps(start: int) -> None:
    bump = {start + i: 5.0 * math.exp(-i / 15.0) for i in range(80)}
    assert raised(with_(noisy(300, falling), bump)) == [start]


def test_spike_on_a_falling_trend_is_found_at_once() -> None:
    assert raised(with_(noisy(400, falling), {100: 1.0, 101: 0.8, 102: 0.6})) == [100]


def test_small_bump_is_found_because_it_lasts() -> None:
    bump = {700 + i: 0.09 * math.exp(-i / 10.0) for i in range(60)}
    assert len(spikes(with_(noisy(1200, sigma=0.006), bump))) == 1
    assert spikes(with_(noisy(1200, sigma=0.006), {700: 0.09})) == []


def test_heavy_tails_are_noise() -> None:
    noise = random.Random(4)
    student = [noise.gauss(0, 1) / math.sqrt(noise.gammavariate(1.3, 2.0) / 2.6) for _ in range(8000)]
    assert spikes([2.5 * (1.0 + 0.01 * max(-14.0, min(14.0, z))) for z in student]) == []


def test_log_normal_noise_near_zero_is_noise() -> None:
    noise = random.Random(5)
    assert spikes([1e-3 * math.exp(noise.gauss(0.0, 0.5)) for _ in range(5000)]) == []


def test_noise_that_triples_at_once_is_no_spike() -> None:
    calm, loud = noisy(700, sigma=0.015, seed=1), noisy(700, sigma=0.045, seed=2)
    assert spikes(calm + loud) == []


def test_rounded_loss_is_silent() -> None:
    assert spikes([round(value, 1) for value in noisy(3000, falling, sigma=0.02)]) == []
    assert spikes([round(value * 128) / 128 for value in noisy(3000, 1.23, sigma=0.0005)]) == []


def test_easy_batches_far_below_are_no_spikes_and_hide_none() -> None:
    easy = dict.fromkeys(range(50, 1500, 90), -1.0)
    assert spikes(with_(noisy(1500), easy)) == []
    assert raised(with_(noisy(1500), easy | {1000: 1.0})) == [1000]


def test_downward_steps_are_no_spikes() -> None:
    assert spikes(noisy(1600, lambda step: 4.0 * 0.85 ** (step // 400))) == []


def test_season_of_two_percent_is_no_spike() -> None:
    assert spikes(noisy(3000, lambda step: 3.0 * (1.0 + 0.02 * math.sin(step / 30.0)), sigma=0.015)) == []


def test_restart_of_the_learning_rate_explains_a_small_rise_but_not_a_large_one() -> None:
    lr = [1e-3 if step % 400 < 200 else 1e-4 for step in range(1200)]
    small = dict.fromkeys(range(805, 860), 0.25)
    large = dict.fromkeys(range(805, 860), 1.5)
    loss = noisy(1200)
    assert raised(with_(loss, small)) != []
    assert raised(with_(loss, small), lr=lr) == []
    assert raised(with_(loss, large), lr=lr) == [805]


def test_signed_losses_shift_freely() -> None:
    loss = with_(noisy(900, lambda step: 5.0 * math.exp(-step / 80.0) - 2.0, sigma=0.05), {700: 2.0, 701: 1.5})
    assert raised(loss) == [700]
    assert raised([value - 100.0 for value in loss]) == [700]


def test_loss_that_turns_negative_in_mid_run_goes_on_being_watched() -> None:
    loss = noisy(900, lambda step: 4.0 - 6.0 * (1.0 - math.exp(-step / 100.0)), sigma=0.05)
    assert raised(loss) == []
    assert raised(with_(loss, {600: 3.0, 601: 2.0, 602: 1.0})) == [600]


def test_a_few_dozen_records_suffice() -> None:
    # an evaluation loss every 500 steps
    loss = [2.0 + 4.0 * (1.0 + i / 3.0) ** -0.8 for i in range(60)]
    bump = {33: 1.6, 34: 0.9, 35: 0.5}
    assert raised(with_(loss, bump)) == [33]


def test_ring_down_belongs_to_the_spike() -> None:
    ring = {600 + i: 1.5 * math.exp(-i / 25.0) * math.cos(i / 2.0) ** 2 for i in range(150)}
    (event,) = spikes(with_(noisy(1200, falling), ring))
    assert event.data["width"] == "wide"
    assert 640 <= event.end <= 760


def test_second_spike_in_the_long_tail_of_a_first_is_its_own_event() -> None:
    tail = {300 + i: 2.0 * math.exp(-i / 80.0) for i in range(600)}
    assert raised(with_(noisy(1200), tail | {460: 4.0, 461: 3.0, 462: 2.0})) == [300, 460]


def test_outliers_that_keep_coming_are_the_noise_of_the_run() -> None:
    chooser = random.Random(6)
    loss = [value * (1.4 if chooser.random() < 0.1 else 1.0) for value in noisy(3000)]
    assert len(spikes(loss)) < 15  # of 300 outliers


def test_a_growing_event_is_told_again_when_it_doubles() -> None:
    growth = {300 + i: 0.3 * 1.3**i for i in range(20)}
    emitted = [event for event in versions(records(with_(noisy(400), growth)), [Spike()]) if event.end is None]
    heights = [event.height for event in emitted]
    assert len({event.key for event in emitted}) == 1
    assert 3 <= len(heights) <= 9
    assert heights == sorted(heights)
