"""The softmax-absorption reproduction: its pieces and the way to a first spike; all of it under the `slow` mark."""

from __future__ import annotations

import doctest
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from foreshock.cli import main
from foreshock.errors import UsageError
from foreshock.papers import absorption_spikes, absorption_training
from foreshock.papers.absorption_arms import ARMS, Arm, Later, collapsed, row_centred
from foreshock.papers.absorption_drift import drift
from foreshock.papers.absorption_figures import figures
from foreshock.papers.absorption_spikes import Relapse, relapses
from foreshock.papers.absorption_statements import STATEMENTS
from foreshock.papers.absorption_studies import descent, timeline
from foreshock.papers.absorption_thresholds import by_hand, exactness, partial, thresholds
from foreshock.papers.absorption_training import Common, common_mode, reference, train
from foreshock.papers.experiment import Request
from foreshock.papers.softmax_absorption import QUICK, STUDIES, reproduce
from foreshock.papers.studies import Found, judge, silent
from foreshock.run import Run

COMMAND = ("reproduce", "softmax-absorption")
SHORT = 1320  # steps to the first spike of seed 0 and a little beyond


@pytest.fixture(scope="module")
def way() -> Found:
    """The way to the first spike, beside float64 and the exact loss."""
    return timeline(0, silent, SHORT, {})


@pytest.fixture(scope="module")
def floats() -> Found:
    return thresholds(0, silent, 0, {})


def logits(rows: int, classes: int, scale: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).requires_grad_()


def test_the_examples_are_true():
    assert doctest.testmod(absorption_spikes).failed == 0


def test_a_loss_that_never_fits_has_no_spike_and_one_that_is_not_finite_has():
    assert relapses([1.0] * 50) == []
    assert relapses([]) == []
    assert relapses([1e-7, np.nan, 1e-7]) == [Relapse(1, 1, 1)]
    assert relapses([1.0, 1e-2, 1e-7, 1e-2]) == []  # 1e-2 itself is not above


@given(
    gaps=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 20), min_size=6, max_size=6),
)
def test_spikes_are_runs_above_joined_where_they_are_less_than_a_hundred_steps_apart(gaps, lengths):
    losses, runs = [1.0, 1e-9], []
    for gap, length in zip(gaps, lengths, strict=False):
        losses += [1e-9] * gap
        runs.append((len(losses), len(losses) + length - 1))
        losses += [1.0] * length
    joined = [list(runs[0])]
    for first, last in runs[1:]:
        if first - joined[-1][1] < 100:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    found = relapses(losses)
    assert [[each.first, each.last] for each in found] == joined
    assert all(losses[each.peak] == 1.0 for each in found)


def test_all_arms_begin_at_the_same_point_and_have_the_same_loss():
    values = {}
    for name, arm in ARMS.items():
        problem = reference(3, hidden=arm.hidden, dtype=arm.dtype)
        if arm.hidden == (32, 32, 32) and name != "smoothing":
            outputs = problem.model(problem.inputs)
            values[name] = arm.loss(outputs, problem.labels).item()
    narrow = {"bfloat16": 1e-2, "float16": 2e-3}
    for name, value in values.items():
        assert value == pytest.approx(values["float64"], rel=narrow.get(name, 1e-6)), name


def test_drawing_a_network_leaves_the_random_stream_alone():
    before = torch.random.get_rng_state()
    problem = reference(0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sum(param.numel() for param in problem.model.parameters()) == 4522
    assert problem.inputs.shape == (200, 64)
    assert not torch.equal(problem.head.weight, reference(1).head.weight)


def test_the_row_centred_gradient_is_the_gradient_less_its_mean():
    z, labels = logits(7, 5, 30.0), torch.arange(7) % 5
    (plain,) = torch.autograd.grad(functional.cross_entropy(z, labels), z)
    (centred,) = torch.autograd.grad(row_centred(z, labels), z)
    torch.testing.assert_close(centred, plain - plain.mean(1, keepdim=True))


def test_emulated_collapse_takes_the_right_class_of_confident_rows_and_nothing_else():
    z, labels = logits(40, 5, 20.0), torch.arange(40) % 5
    (plain,) = torch.autograd.grad(functional.cross_entropy(z, labels), z)
    (removed,) = torch.autograd.grad(collapsed(z, labels, limit=10.0), z)
    p = functional.softmax(z.detach(), dim=1)
    right = p.gather(1, labels.unsqueeze(1)).squeeze(1)
    odds = (right / (p.sum(1) - right)).log()
    lost = odds > 10.0
    assert 0 < lost.sum() < 40
    expected = plain.clone()
    expected[lost, labels[lost]] = 0.0
    torch.testing.assert_close(removed, expected, rtol=0, atol=0)


def test_a_watched_training_is_the_unwatched_one_bit_for_bit():
    watched, plain = (train(ARMS["stock"], 5, 60, monitored=each) for each in (True, False))
    np.testing.assert_array_equal(watched.losses, plain.losses)
    np.testing.assert_array_equal(watched.truth, plain.truth)
    assert watched.end == plain.end
    np.testing.assert_allclose(watched.run["loss_exact"], plain.truth, rtol=1e-6)
    assert watched.run.meta["paper"] == plain.run.meta["paper"] == "softmax-absorption"


def test_the_probe_and_the_closed_form_agree_on_head_and_features(monkeypatch):
    monkeypatch.setattr(absorption_training, "EVERY", 1)
    trace = train(ARMS["stock"], 2, 40, monitored=True)
    for place, name in enumerate(Common._fields):
        steps, values = trace.run.measured(f"softmax_{name}")
        assert len(steps) >= 8
        dust = 1e-3 if name == "logit" else 1e-6
        np.testing.assert_allclose(values, trace.common[steps, place], rtol=1e-5, atol=dust)


def test_what_changes_on_the_way_changes_from_its_step_on():
    stock = train(ARMS["stock"], 0, 30)
    later = train(replace(ARMS["stock"], later=Later(20, lr=0.5)), 0, 30)
    np.testing.assert_array_equal(later.losses[:21], stock.losses[:21])
    assert not np.array_equal(later.losses[21:], stock.losses[21:])
    other = train(Arm("a", "a", later=Later(20, loss=lambda z, y: 2 * functional.cross_entropy(z, y))), 0, 30)
    np.testing.assert_array_equal(other.losses[:20], stock.losses[:20])
    assert other.losses[20] == 2 * stock.losses[20]


def test_a_head_that_is_re_centred_has_no_class_mean():
    trace = train(ARMS["re-centred"], 1, 40)
    assert trace.end.head_mean < 1e-7
    np.testing.assert_allclose(trace.truth[:20], train(ARMS["stock"], 1, 20).truth, rtol=1e-3)


def test_common_mode_of_a_head_by_hand():
    head = torch.nn.Linear(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [4.0, 4.0], [2.0, 4.0]]))
    features = torch.tensor([[-3.0, -4.0], [-9.0, -12.0]])
    found = common_mode(head, features, torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    assert found == pytest.approx([5.0, math.sqrt(2), 10.0, -1.0, 3.0])


@pytest.mark.parametrize("sharp", [1.0, 1000.0])
def test_the_drift_identity_holds_with_and_without_absorption(sharp):
    problem = reference(1)
    with torch.no_grad():
        problem.head.weight.mul_(sharp)
        problem = replace(problem, labels=problem.model(problem.inputs).argmax(1))
    found = drift(problem, problem.model.state_dict())
    assert (found.absorbed > 0.2) == (sharp > 1)
    if sharp > 1:  # without absorption both sides are dust
        assert found.identity < 1e-5
    assert (found.verdict < 1e-4) == (sharp == 1.0)


def test_every_threshold_lies_within_its_bounds_and_the_exact_loss_has_none(floats):
    claims = judge(STATEMENTS, {0: [floats]})
    assert len(claims) == 28
    assert {claim.name: claim.verdict for claim in claims if not claim.reproduced} == {}


def test_a_loss_written_by_hand_absorbs_earlier_the_farther_its_logits_are_from_zero(floats):
    hand = floats.drawn["by hand"]
    assert hand[0.0] > hand[16.0] > hand[100.0] > hand[1000.0] == hand[-1000.0]
    assert exactness(by_hand)[0] >= 1


def test_class_sums_have_either_sign_below_the_threshold_and_are_whole_above():
    sums = partial(np.array([8.0, 15.0, 15.5, 16.5, 18.0, 30.0]))
    assert abs(sums[0]) < 1e-3
    assert min(sums[1:4]) < -0.1
    np.testing.assert_array_equal(sums[4:], 1.0)


@pytest.mark.slow
def test_the_levels_come_in_their_order_long_before_the_first_spike(way):
    claims = {claim.name: claim for claim in judge(STATEMENTS, {0: [way]})}
    missed = {name: claim.verdict for name, claim in claims.items() if not claim.reproduced}
    assert missed == {}
    numbers = way.numbers
    assert numbers["spikes seen"] == 1
    assert numbers["lead of absorbing"] > numbers["lead of inflating"] > numbers["lead of imminent"] > 0
    assert {"drift: identity", "verdict", "W_G grows by", "exact: levels", "float64: levels"} <= set(claims)


@pytest.mark.slow
def test_the_way_to_the_first_spike_and_the_arms_are_drawn(way, floats):
    made = figures({0: {"timeline": way, "thresholds": floats}})
    assert list(made) == ["timeline", "arms", "thresholds"]
    assert len(made["timeline"].axes) == 6
    assert [len(each.lines) > 0 for each in made["arms"].axes[:3]] == [True] * 3
    texts = [text.get_text() for text in made["timeline"].axes[1].texts]
    assert sum("steps ahead" in text for text in texts) == 3
    assert figures({0: {}}) == {}


@pytest.mark.slow
def test_descent_at_an_enormous_rate_stays_with_an_exact_gradient_only():
    claims = judge(STATEMENTS, {0: [descent(0, silent, 0, {})]})
    assert len(claims) == 4
    assert {claim.name: claim.verdict for claim in claims if not claim.reproduced} == {}


def test_every_statement_has_an_interval_and_a_name_of_its_own():
    assert all(each.low <= each.high for each in STATEMENTS)
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)
    assert set(QUICK) <= set(STUDIES)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only=("threshold",)), "did you mean 'thresholds'"), (Request(seeds=()), "at least one seed"),
        (Request(steps=50), "100 steps"),
    ],
)
def test_a_request_without_sense_is_refused(request_, said):
    with pytest.raises(UsageError, match=said):
        reproduce(request_)


@pytest.mark.slow
def test_the_command_trains_judges_draws_and_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--only", "thresholds", "--only", "formats", "--steps", "120", "--seed", "4", "--seed", "6"]
    result = CliRunner().invoke(main, [*COMMAND, *asked])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "28 of 28 claims reproduced" in said
    assert "which leaves claims undecided: formats" in said
    out = tmp_path / "runs" / "softmax-absorption"
    for name in ("thresholds.png", "thresholds.pdf", "arms.png"):
        assert (out / name).stat().st_size > 5000
    facts = json.loads((out / "claims.json").read_text())
    assert facts["claims"][0]["measured"] == {"4": 7.625}
    run = Run.load(out / "bfloat16-seed-6")
    assert len(run) == 120
    assert run.meta["paper"] == "softmax-absorption"
    report = CliRunner().invoke(main, ["report", str(out / "float16-seed-4"), "-o", "page.html"])
    assert report.exit_code == 0, report.output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_claim_is_reproduced(seed):
    outcome = reproduce(Request(seeds=(seed,)))
    missed = {claim.name: claim.verdict for claim in outcome.claims if not claim.reproduced}
    assert missed == {}
