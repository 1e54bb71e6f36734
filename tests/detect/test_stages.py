"""Stages of spikes whose corners are known: closed form for QUAD, figures of the papers, relations on chaotic runs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from foreshock.detect import scan
from foreshock.detect.stages import ADAM, LANDSCAPE, Stages, stages
from foreshock.run import Event, Run

from .spikes import Settings, quad, tanh_line, thinned, train


@cache
def quad_run() -> Run:
    return train(quad(), Settings(0.1, 0.9, 0.99), 1300)


@cache
def tl_run() -> Run:
    """TL up to its fourth spike; curvature is read from step 1,350 on."""
    return train(tanh_line(), Settings(0.02), 2600, readings=lambda step: step >= 1350)


@cache
def descent_run() -> Run:
    """TL-GD around its first spike."""
    return train(tanh_line(), Settings(0.05, 0.0, None), 5300, readings=lambda step: step >= 4300)


def of_kind(run: Run, *kinds: str) -> list[Event]:
    return [event for event in scan(run) if event.kind in kinds]


def watched(run: Run) -> list[Event]:
    """Returns a watch for each time that chi was above 1 for three readings or more, as the detector raises them."""
    steps, chi = run.measured("chi")
    found = []
    for part in np.split(np.arange(len(chi)), np.flatnonzero(np.diff(chi >= 1)) + 1):
        if len(part) >= 3 and chi[part[0]] >= 1:
            peak = int(part[np.argmax(chi[part])])
            at = [int(steps[i]) for i in (part[2], part[0], peak, part[-1])]
            found.append(Event("watch", *at, float(chi[peak]) - 1, 1.0, "chi"))
    return found


def names(found: Stages) -> list[str]:
    return [stage.name for stage in found.bounds]


def is_in_order(found: Stages) -> bool:
    order = ADAM if found.family == "adam" else LANDSCAPE
    places = [order.index(name) for name in names(found)]
    pairs = zip(found.bounds, found.bounds[1:], strict=False)
    return places == sorted(set(places)) and all(a.first <= a.last and b.first == a.last + 1 for a, b in pairs)


def test_the_spike_of_the_parabola_has_its_exact_corners() -> None:
    """Table of QUAD at beta2 = .99: up 888, v minimum 945, peak and down 949, all one less as records."""
    first = watched(quad_run())[0]
    found = stages(quad_run(), first)
    assert names(found) == ["decoupled", "onset", "refill", "decay"]  # in one dimension the gradient is aligned
    assert found.family == "adam"
    assert found.missing == ()
    assert found["onset"].first == 887
    assert found["refill"].evidence["v_minimum"] == 944
    assert found["decay"].first == 948
    assert found.marks.peak == 948
    assert found["decoupled"].evidence["v_ratio"] == pytest.approx(0.99, abs=1e-6)
    assert found["decoupled"].evidence["beta2"] == 0.99
    assert found["refill"].tensor == "theta"


def test_the_second_spike_has_corners_of_its_own() -> None:
    found = stages(quad_run(), watched(quad_run())[1])
    assert (found.marks.crossing, found.marks.down) == (1149, 1176)
    assert found["decoupled"].first > 948


@pytest.mark.parametrize("kinds", ["spike", "watch"])
def test_ordering_relations_hold_on_a_chaotic_run(kinds: str) -> None:
    """Invariants (a) to (d) of the paper's figures, and what else follows from the rules."""
    run = tl_run()
    events = of_kind(run, "spike") if kinds == "spike" else watched(run)
    events = [event for event in events if event.onset > 1350]
    assert len(events) >= 3
    good = []
    for event in events:
        found = stages(run, event)
        marks = found.marks
        assert is_in_order(found)
        assert names(found)[-5:] == ["decoupled", "silent", "onset", "refill", "decay"]
        corners = (marks.crossing, marks.along, marks.turn, marks.refill, marks.down, marks.peak, marks.risen)
        assert None not in corners
        crossing, along, turn, refill, down, peak, risen = corners
        relations = [crossing <= along + 1, along <= turn + 20, turn <= refill, down <= peak + 1]
        assert crossing < turn < risen <= peak
        assert 20 < risen - crossing < 120  # seen: 26 to 92
        good.append(all(relations))
    assert np.mean(good) >= 0.9


def test_watch_and_spike_of_one_rise_have_the_same_stages() -> None:
    run = tl_run()
    for watch in watched(run)[1:]:
        spike = next(event for event in of_kind(run, "spike") if watch.onset <= event.onset <= watch.end + 30)
        assert stages(run, watch) == stages(run, spike)


def test_rare_readings_find_the_same_corners_within_their_distance() -> None:
    exact, rare = tl_run(), thinned(tl_run(), 100)
    assert np.isfinite(rare["chi"]).sum() < 0.6 * np.isfinite(exact["chi"]).sum()
    for full, watch in zip(watched(exact), watched(rare), strict=True):
        true, found = stages(exact, full), stages(rare, watch)
        assert 0 <= found.marks.crossing - true.marks.crossing <= 10
        assert found.marks.below is None or found.marks.below < true.marks.crossing
        for corner in ("along", "turn", "refill", "down", "peak"):
            assert getattr(found.marks, corner) == getattr(true.marks, corner), corner


def test_gradient_descent_has_the_phases_of_the_landscape_paper() -> None:
    """Figures of TL-GD: crossing 4525, onset = minimum in [5115, 5145], peak in [5165, 5195], flattening before it."""
    run = descent_run()
    [watch] = [event for event in watched(run) if event.onset > 4400][:1]
    found = stages(run, watch)
    assert found.family == "landscape"
    assert names(found) == list(LANDSCAPE)
    assert abs(found["silent"].first - 4525) <= 2
    assert 5115 <= found["onset"].first <= 5145
    assert abs(found.marks.along - found.marks.turn) <= 2
    assert 5165 <= found.marks.peak <= 5195
    assert found.marks.down <= found.marks.peak
    assert is_in_order(found)


def test_stages_so_far_of_a_live_run_grow_with_it() -> None:
    run, watch = tl_run(), watched(tl_run())[1]
    whole = stages(run, watch)
    seen = []
    for until in range(watch.raised, whole.marks.last, 3):
        so_far = Event("watch", watch.raised, watch.onset, watch.raised, None, 0.0, 1.0, "chi")
        found = stages(run.window(0, until + 1), so_far)
        assert is_in_order(found)
        assert found.bounds[-1].last == until
        right = found.bounds[-1].name == whole.at(until)
        seen.append(right)
        if found.bounds[-1].name == "silent":
            assert until < whole["onset"].first + 8  # a turn is a turn once the loss has risen
    assert np.mean(seen) > 0.7


def test_missing_signals_leave_stages_out_and_are_named() -> None:
    run = thinned(tl_run(), 100)
    event = watched(run)[1]
    bare = stages(thinned(tl_run(), 100, without=("v_ratio", "grad_sq_over_v_mean")), event)
    assert "v_ratio" in bare.missing
    assert not {"decoupled", "refill"} & set(names(bare))
    assert bare["silent"] == stages(run, event)["silent"]
    curvature = tuple(name for name in run.columns if name.startswith("chi"))
    spike = of_kind(run, "spike")[1]
    blind = stages(thinned(tl_run(), 100, without=(*curvature, "chi_share")), spike)
    assert "chi" in blind.missing
    assert "silent" not in names(blind)
    assert blind["refill"].first == pytest.approx(stages(run, spike)["refill"].first, abs=2)
    loss_only = stages(Run.from_arrays({"step": run.steps, "loss": run["loss"]}), spike)
    assert loss_only.bounds == ()
    assert set(loss_only.missing) == {"chi", "v_ratio"}


def test_a_spike_below_the_edge_has_no_stages() -> None:
    n = 400
    random = np.random.default_rng(0)
    loss = np.exp(-np.arange(n) / 400 + 0.01 * random.standard_normal(n))
    loss[300:304] *= 3
    run = Run.from_arrays({"loss": loss, "chi": 0.5 + 0.02 * random.standard_normal(n), "v_ratio": np.full(n, 1.0)})
    [event] = of_kind(run, "spike")
    found = stages(run, event)
    assert found.bounds == ()
    assert "chi" not in found.missing


def test_noise_moves_no_corner_far() -> None:
    run, random = tl_run(), np.random.default_rng(3)
    columns = {name: run[name] for name in run.columns} | {"step": run.steps}
    columns["loss"] = columns["loss"] * np.exp(0.02 * random.standard_normal(len(run)))
    columns["chi"] = columns["chi"] * (1 + 0.003 * random.standard_normal(len(run)))
    noisy = Run.from_arrays(columns, **run.meta)
    for event in [event for event in of_kind(run, "spike") if event.onset > 1350]:
        true, found = stages(run, event).marks, stages(noisy, event).marks
        assert abs(found.crossing - true.crossing) <= 12
        assert abs(found.turn - true.turn) <= 20  # the floor is flat
        assert abs(found.peak - true.peak) <= 3
        assert abs(found.down - true.down) <= 3


def test_a_watch_that_ends_without_a_rise_is_silent_only() -> None:
    n = 600
    chi = 0.8 + 0.3 * np.exp(-(((np.arange(n) - 300) / 40) ** 2))
    run = Run.from_arrays({"loss": np.exp(-np.arange(n) / 300), "chi": chi})
    [watch] = watched(run)
    found = stages(run, watch)
    assert names(found)[-1] == "silent"
    assert (found["silent"].first, found["silent"].last) == (watch.onset, watch.end)


@pytest.mark.slow
def test_the_fifty_dimensional_example_has_the_papers_corners() -> None:
    """N50 of Bai et al. 2025: chi 245, minimum 248, v minimum 274 to 277, down 280, peak 281; one less as records."""
    import torch
    from torch import nn

    import foreshock

    draw = np.random.default_rng(0)
    inputs, w, v = draw.standard_normal((200, 50)), draw.standard_normal(50), draw.standard_normal(50)
    shapes = ((1000, 50), (1000,), (1000,), (1,))
    first, bias, second, last = (torch.tensor(draw.standard_normal(shape) / 1000) for shape in shapes)
    net = nn.Sequential(nn.Linear(50, 1000), nn.Tanh(), nn.Linear(1000, 1)).double()
    for parameter, values in zip(net.parameters(), (first, bias, second[None], last), strict=True):
        parameter.data.copy_(values)
    x, y = torch.tensor(inputs), torch.tensor(inputs @ w + inputs**2 @ v)[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    with foreshock.Monitor(net, optimizer, every=10, max_overhead=1.0) as monitor:
        for _ in range(330):
            loss = ((net(x) - y) ** 2).mean()
            monitor.observe(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    spike = next(event for event in monitor.events if event.kind == "spike")
    found = stages(monitor.run, spike)
    assert names(found) == ["stable", "decoupled", "silent", "onset", "refill", "decay"]
    assert abs(found.marks.crossing - 244) <= 2
    assert abs(found.marks.turn - 247) <= 2
    assert 272 <= found["refill"].evidence["v_minimum"] <= 278
    assert abs(found.marks.down - 279) <= 2
    assert abs(found.marks.peak - 280) <= 3
    assert 50 <= found["decoupled"].first <= 100
