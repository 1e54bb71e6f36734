"""Who drove chi over the edge, and how long before the loss: closed forms, limiting cases, relations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from foreshock.diagnose import approach
from foreshock.diagnose.growth import growth
from foreshock.run import ABSENT, Event, Run

from ..detect.spikes import Settings, quad, tanh_line, thinned, train
from ..detect.test_stages import descent_run, quad_run, tl_run, watched


@cache
def plain_tl() -> Run:
    """The same training without the exact parts of d ln chi, read at the monitor's cadence."""
    return thinned(tl_run(), 100, without=tuple(name for name in tl_run().columns if name.startswith("chi_growth")))


def ramp(**columns: float) -> Run:
    """Returns 400 steps in which chi grows from .7 to 1.2 by step 300, and columns that grow by the given factors."""
    n = 400
    along = np.clip(np.arange(n) / 300, 0, 1)
    chi = 0.7 * (1.2 / 0.7) ** along
    made = {name: factor**along for name, factor in columns.items()}
    loss = np.where(np.arange(n) < 310, np.exp(-np.arange(n) / 500), 0.6 * 1.1 ** (np.arange(n) - 310.0))
    return Run.from_arrays({"loss": loss, "chi": chi, **made}, optimizers=[{"class": "SGD", "groups": [{"lr": 1.0}]}])


def test_a_parabola_is_all_preconditioner() -> None:
    found = approach(quad_run(), watched(quad_run())[0])
    assert found.verdict == "preconditioner"
    assert found.shares["preconditioner"] == pytest.approx(1, abs=1e-9)
    assert found.shares["landscape"] == pytest.approx(0, abs=1e-9)
    assert found.growth.tensors["theta"] == pytest.approx(found.growth.total)
    assert found.growth.total == pytest.approx(np.log(quad_run()["chi"][887] / found.chi_begin))
    assert found.hessian == (1.0, 1.0)
    assert (found.tensor, found.tensor_share) == ("theta", 1.0)
    assert found.lead_peak == 948 - 887
    assert found.chi_max == pytest.approx(1.336, abs=1e-3)


def test_gradient_descent_is_all_landscape() -> None:
    watch = next(event for event in watched(descent_run()) if event.onset > 4400)
    found = approach(descent_run(), watch)
    assert found.verdict == "landscape"
    assert found.shares["landscape"] == pytest.approx(1, abs=1e-6)
    assert found.shares["preconditioner"] == pytest.approx(0, abs=1e-9)
    first, last = found.hessian
    assert first < last or found.marks.peak is not None


@pytest.mark.parametrize("exact", [True, False])
def test_the_parts_add_up_and_the_preconditioner_leads_on_the_tanh_line(exact: bool) -> None:
    run = tl_run() if exact else plain_tl()
    for watch in watched(run)[1:]:
        found = approach(run, watch)
        assert found.growth.estimated is not exact
        assert sum(found.growth.parts.values()) == pytest.approx(found.growth.total)
        assert sum(found.growth.tensors.values()) == pytest.approx(found.growth.parts["denominator"])
        assert found.verdict in ("preconditioner", "mixed")
        assert found.shares["preconditioner"] > 0.5
        assert found.tensor == max(found.growth.tensors, key=found.growth.tensors.get)
        assert 20 < found.lead_rise < 120
        assert found.warned == found.lead_rise - (watch.raised - watch.onset)
        assert found.chi_begin < 1 < found.chi_max < 1.3


def test_the_estimate_from_effective_steps_is_close_to_the_exact_split() -> None:
    run = tl_run()
    names = [name for name in run.columns if not name.startswith("chi_growth")]
    without = Run.from_arrays({"step": run.steps} | {name: run[name] for name in names}, **run.meta)
    for watch in watched(run)[1:]:
        marks = approach(run, watch).marks
        exact, estimate = (growth(each, marks.begin, marks.crossing) for each in (run, without))
        assert not exact.estimated
        assert estimate.estimated
        assert estimate.parts["denominator"] == pytest.approx(exact.parts["denominator"], rel=0.1)


def test_a_rate_that_rises_is_to_blame_and_two_causes_are_a_mixture() -> None:
    [watch] = watched(ramp())
    assert approach(ramp(lr=1.2 / 0.7), watch).verdict == "learning rate"
    assert approach(ramp(lr=1.0), watch).verdict == "landscape"
    found = approach(ramp(lr=(1.2 / 0.7) ** 0.5), watch)
    assert found.verdict == "mixed"
    assert found.shares["learning rate"] == pytest.approx(0.5, abs=0.01)


def test_an_unknown_optimizer_is_not_split() -> None:
    run = ramp()
    run.meta.pop("optimizers")
    found = approach(run, watched(run)[0])
    assert found.verdict == "not split"
    assert found.growth is None
    assert found.shares == {}


def test_a_swap_of_the_top_direction_leaves_a_stretch_out() -> None:
    run = tl_run()
    marks = approach(run, watched(run)[1]).marks
    columns = {"step": run.steps} | {name: run[name] for name in run.columns}
    whole = growth(run, marks.begin, marks.crossing)
    at = int(np.searchsorted(run.steps, (marks.begin + marks.crossing) // 2))
    for name in columns:
        if name.startswith("chi_growth"):
            columns[name][at] = ABSENT
    cut = growth(Run.from_arrays(columns, **run.meta), marks.begin, marks.crossing)
    assert cut.restarts == 1
    assert cut.total == pytest.approx(whole.total - run["chi_growth"][at])


def test_a_spike_below_the_edge_is_unexplained_and_one_without_readings_is_not_judged() -> None:
    n = 400
    loss = np.ones(n)
    loss[300:304] = 5
    event = Event("spike", 300, 300, 300, 303, 4.0, 50.0, "loss")
    found = approach(Run.from_arrays({"loss": loss, "chi": np.full(n, 0.4)}), event)
    assert found.verdict == "unexplained"
    assert found.chi_max == 0.4
    assert found.lead_rise is None
    assert approach(Run.from_arrays({"loss": loss}), event) is None
    assert approach(Run.from_arrays({"loss": loss}), Event("drift", 300, 300, 300, 303, 4.0, 50.0, "loss")) is None


def test_an_approach_that_goes_on_has_a_verdict_and_no_lead_yet() -> None:
    watch = watched(tl_run())[1]
    run = tl_run().window(0, watch.raised + 4)
    event = Event("watch", watch.raised, watch.onset, watch.raised, None, 0.0, 1.0, "chi")
    found = approach(run, event)
    assert found.lead_rise is found.lead_peak is found.warned is None
    assert found.shares == approach(tl_run(), watch).shares


def test_a_second_moment_that_stands_still_is_not_to_blame() -> None:
    """GD on TL read as if its optimizer had a denominator: none of the growth is its."""
    run = train(tanh_line(), Settings(0.05, 0.0, None), 60)
    found = growth(run, 5, 50)
    assert found.parts["denominator"] == found.parts["momentum"] == 0
    assert found.parts["landscape"] == pytest.approx(found.total)
    assert growth(train(quad(), Settings(0.1, 0.9, 0.99), 3), 2, 2) is None


@pytest.mark.parametrize(("low", "distance", "judged"), [(0.3, 8, True), (0.9, 15, False), (0.3, 40, False)])
def test_a_reading_before_the_rise_judges_it_only_if_chi_could_not_have_reached_the_edge(
    low: float, distance: int, judged: bool
) -> None:
    n = 400
    loss = np.ones(n) * (1 - 1e-3 * np.arange(n) / n)
    loss[300:304] = 5
    chi = np.full(n, ABSENT)
    chi[np.arange(299 - distance, 0, -20)] = low * np.exp(2e-3 * np.arange(0, -len(range(299 - distance, 0, -20)), -1))
    run = Run.from_arrays({"loss": loss, "chi": chi})
    found = approach(run, Event("spike", 300, 300, 300, 303, 4.0, 50.0, "loss"))
    assert (found is not None and found.verdict == "unexplained") == judged


def test_parts_that_cancelled_are_not_shares_of_what_they_left() -> None:
    """A run that lives at its edge: chi is above 1 from its first reading on, and the parts undo each other."""
    n = 200
    loss = np.where(np.arange(n) < 160, 0.99 ** np.arange(n), 0.3 * 1.2 ** (np.arange(n) - 160.0))
    columns = {
        "loss": loss, "chi": 1.05 * np.exp(1e-4 * np.arange(n)), "chi_growth": np.full(n, 1e-4),
        "chi_growth_landscape": np.full(n, 0.0101), "chi_growth_denominator": np.full(n, -0.01),
    }  # fmt: skip
    run = Run.from_arrays(columns, optimizers=[{"class": "RMSprop", "groups": [{"lr": 1.0, "alpha": 0.99}]}])
    found = approach(run, Event("watch", 2, 0, n - 1, None, 0.07, 5.0, "chi"))
    assert found.growth.share("landscape") == pytest.approx(101, rel=1e-3)
    assert found.verdict == "not split"
    assert not found.shares
