"""The landscape-spike reproduction: one early spike dissected here, the reference run whole under the `slow` mark."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.papers.test_images import data_set

from foreshock.cli import main
from foreshock.curvature import edge
from foreshock.errors import UsageError
from foreshock.papers import images as image_files
from foreshock.papers import landscape_spikes, paper
from foreshock.papers.experiment import Request
from foreshock.papers.landscape_arms import Arm, closest_pairs, compare, merged
from foreshock.papers.landscape_crossing import crossing
from foreshock.papers.landscape_frequencies import directions, spectra
from foreshock.papers.landscape_image_studies import image_arms, image_run
from foreshock.papers.landscape_images import filters, follow, image_problem, plainly
from foreshock.papers.landscape_net import tanh_problem
from foreshock.papers.landscape_reference import dissect, reference
from foreshock.papers.landscape_spikes import QUICK, STUDIES, reproduce
from foreshock.papers.landscape_statements import ANATOMY, CNN, REFERENCE, STATEMENTS
from foreshock.papers.landscape_training import descend
from foreshock.papers.studies import Found, Statement, Study, judge
from foreshock.run import Run

EARLY = 5  # the seed of TL-GD that spikes before 500 updates


@pytest.fixture(scope="module")
def early():
    return reference(EARLY, steps=600)


@pytest.fixture
def small_images(tmp_path, monkeypatch):
    """60 images of 28 x 28 in which each class has a bright square of its own, under noise."""
    draw = np.random.default_rng(77)
    labels = draw.integers(0, 10, 60).astype("u1")
    pixels = draw.integers(0, 60, (60, 28, 28))
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[8 * row + 2 : 8 * row + 8, 7 * column : 7 * column + 5] += 180
    data_set(tmp_path, pixels.astype("u1"), labels)
    monkeypatch.setattr(image_files, "DEBIAN", tmp_path)
    return tmp_path


def test_an_early_spike_keeps_the_relations_of_the_paper(early):
    numbers = early.numbers
    (spike,) = early.drawn["trace"].spikes
    assert spike.up < spike.minimum < spike.trigger < spike.peak < spike.back
    assert numbers["order"] == 1.0
    assert numbers["sharp-at-minimum"] > 1 > numbers["flat-at-peak"]
    assert numbers["L2-confirmed"] <= 2
    assert numbers["first-lead"] > 100
    assert numbers["chi-grad-recall"] > 0.8
    assert numbers["L7-landscape"] == pytest.approx(1.0, abs=1e-6)
    assert numbers["L7-preconditioner"] == pytest.approx(0.0, abs=1e-6)
    assert "L1-crossing" not in numbers  # the published steps are those of seed 0


def test_shares_of_single_updates_are_those_of_the_spectrum(early):
    trace = early.drawn["trace"]
    (spike,) = trace.spikes
    shares = []
    for t in range(spike.minimum, spike.peak):
        change = trace.problem.outputs(trace.thetas[t + 1]) - trace.problem.outputs(trace.thetas[t])
        powers = np.abs(np.fft.rfft(change)) ** 2
        shares.append(powers[1] / powers.sum())
    assert early.numbers["low-ascent"] == pytest.approx(np.mean(shares))


def test_what_the_figures_need_belongs_to_the_spike(early):
    trace, path = early.drawn["trace"], early.drawn["path"]
    (spike,) = trace.spikes
    assert path.steps[0] == spike.up
    assert path.steps[-1] == spike.back
    away = path.betas[path.steps == spike.peak]
    assert abs(away) > 5 * abs(path.betas[path.steps == spike.minimum])
    surface = early.drawn["surface"]
    assert surface.alphas.min() < path.alphas.min()
    assert surface.betas.max() > path.betas.max()
    assert early.drawn["components"]["ascent"].alignments.max() > 0.7


def test_a_run_without_a_spike_says_so():
    found = reference(1, steps=60)
    assert any("no spike in 60 updates" in remark for remark in found.remarks)
    assert found.numbers == {}
    assert found.rows[0][2:4] == ("60", "0")


def test_a_training_that_is_cut_short_decides_what_it_can(early):
    numbers = dissect(descend(tanh_problem(EARLY), 0.05, least=415))  # it ends on the way down
    assert numbers["L2-height"] == pytest.approx(early.numbers["L2-height"], rel=0.05)
    assert "low-descent" not in numbers
    assert "leads-shrink" not in numbers
    assert all(math.isfinite(value) for value in numbers.values())


def test_closest_pairs_are_merged_and_the_rest_is_left_alone():
    problem = tanh_problem(2)
    weights = problem.neurons_of(problem.theta)
    pairs = closest_pairs(weights, 3)
    assert len({neuron for pair in pairs for neuron in pair}) == 6
    new = merged(problem, problem.theta, 3)
    after = problem.neurons_of(new)
    touched = sorted(neuron for pair in pairs for neuron in pair)
    others = [j for j in range(20) if j not in touched]
    assert np.array_equal(after[others], weights[others])
    for i, j in pairs:
        assert np.array_equal(after[i], after[j])
        turned = np.sign(weights[i] @ weights[j])
        assert new[40 + j] == turned * problem.theta[40 + j]
    # a pair that is parallel already can be merged without a change of the function
    same = problem.theta.copy()
    same[1], same[21] = -2 * same[0], -2 * same[20]
    assert closest_pairs(problem.neurons_of(same), 1) == [(0, 1)]
    twins = problem.theta.copy()
    twins[1], twins[21] = -twins[0], -twins[20]
    np.testing.assert_allclose(problem.outputs(merged(problem, twins, 1)), problem.outputs(twins), atol=1e-12)


def test_arms_are_compared_where_they_came_as_low():
    from foreshock.landscape import condensation

    close = condensation(torch.tensor([[1.0, 0.0], [1.0, 0.1]]))
    apart = condensation(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    natural, quiet = Arm("natural", 5, 0.1, 0.2, close, 9.0), Arm("quiet", 9, 0.1, 0.25, apart, 1.0)
    numbers = compare("x", [natural, quiet, Arm("merged", None, 0.3, 0.1, close, 1.0)])
    assert numbers.keys() == {"x-spike-condenses", "x-spike-simplifies", "x-spike-helps"}
    assert numbers["x-spike-condenses"] == pytest.approx(close.mean)
    assert numbers["x-spike-helps"] == pytest.approx(0.8)


def test_frequencies_of_eigendirections_are_those_of_autograd_s_jacobian():
    problem = tanh_problem(3)
    values, shares = spectra(problem, problem.theta)
    flat, _, outputs = problem.tensors(problem.theta)
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    hessian = torch.autograd.functional.hessian(
        lambda vector: (problem.forward(vector, x) - y).square().mean(), flat.detach()
    )
    top = torch.linalg.eigh(hessian)
    assert values[0] == pytest.approx(float(top.eigenvalues[-1]))
    step = 1e-6 * top.eigenvectors[:, -1]
    with torch.no_grad():
        before = outputs().clone()
        flat += step
    powers = np.abs(np.fft.rfft((outputs() - before).detach().numpy())) ** 2
    np.testing.assert_allclose(shares[0], powers / powers.sum(), atol=1e-4)
    assert shares.sum(axis=1) == pytest.approx(1.0)


def test_where_lower_is_flatter_the_edge_corrects_itself():
    found = crossing(0, steps=1600)
    slope, rise = found.drawn["slope"], found.drawn["rise"]
    assert rise[slope > 5].max() < 1.02 < np.median(rise[slope < -5])
    assert found.numbers["flatter-rise"] == rise[slope > 5].max()


def test_controls_have_the_frequencies_they_are_said_to_have():
    found = directions(0, steps=200)
    assert found.numbers["direction-fast"] > 0.5 > found.numbers["target-u1"]
    assert 0 <= found.numbers["differ-train"] <= 1
    assert {len(each) for each in found.drawn["spectra"].values()} == {4, 12}


def test_readings_of_the_cnn_are_those_of_a_fresh_solver(small_images):
    problem = image_problem(0)
    assert sum(param.numel() for param in problem.params) == 1898
    assert problem.inputs.shape == (60, 1, 14, 14)
    assert problem.inputs.mean().abs() < 1e-5
    assert problem.inputs.std() == pytest.approx(1.0, abs=1e-5)
    trace = follow(problem, 0.05, 12)
    problem.stand_at(next(iter([row for step, row in zip(trace.path.steps, trace.path, strict=True) if step == 10])))
    fresh = edge(problem.loss, torch.optim.SGD(problem.params, lr=0.05), tol=1e-3)
    assert trace.sharpness[10] == pytest.approx(fresh.sharpness, rel=0.03)
    assert trace.chi_gradient[10] == pytest.approx(fresh.chi_gradient, rel=0.03)
    assert trace.losses[10] == pytest.approx(fresh.loss, rel=1e-5)
    assert np.isfinite(trace.sharpness).sum() == 7  # every other step at first
    again = plainly(image_problem(0), 0.05, 12)
    np.testing.assert_allclose(again, trace.losses, rtol=1e-5)


def test_labels_can_be_random_or_partly_wrong(small_images):
    true, noisy, random = (image_problem(0, labels=labels).labels for labels in ("true", "noisy", "random"))
    assert 0 < (true != noisy).sum() < 25 < (true != random).sum()
    before = torch.random.get_rng_state()
    weights = [torch.cat([param.flatten() for param in image_problem(seed).params]) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_spike_of_the_cnn_is_dissected_and_its_arms_compared(small_images, monkeypatch):
    from foreshock.papers import landscape_image_studies as studies

    monkeypatch.setattr(studies, "LR", 0.4)  # the loss rises eightfold between updates 4 and 8
    monkeypatch.setattr(studies, "FINE", 7)
    monkeypatch.setattr(studies, "COARSE", 2)
    shelf: dict[str, object] = {}
    found = image_run(0, steps=60, shelf=shelf)
    spike = found.drawn["spike"]
    assert spike.height > 1.5
    assert found.numbers["cnn-sharp-at-minimum"] > 1
    assert 0 < found.numbers["cnn-low-chance"] < found.numbers["cnn-low-u1"] <= 1
    assert found.drawn["surface"].values.shape == (7, 7)
    monkeypatch.setattr(studies, "LONGER", 20)
    compared = image_arms(0, steps=60, shelf=shelf)
    names = [arm.name for arm in compared.drawn["arms"]]
    assert names == ["checkpoint", "natural", "quiet", "merged"]
    natural, quiet = compared.drawn["arms"][1:3]
    if quiet.updates is not None:
        assert quiet.loss == pytest.approx(natural.loss, rel=0.05)


def test_filters_are_weights_and_biases_of_both_layers(small_images):
    shapes = [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in filters(image_problem(0))]
    assert shapes == [((8, 1, 3, 3), (8,)), ((16, 8, 3, 3), (16,))]


def test_without_the_images_their_trainings_are_left_out_with_a_remark(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "DEBIAN", tmp_path)
    outcome = reproduce(Request(seeds=(0, 1), steps=60, only=("cnn", "cnn-labels", "crossing")))
    assert outcome.runs == {}
    (said,) = [remark for remark in outcome.remarks if "want of their data" in remark]
    assert "cnn, cnn-labels" in said
    assert "apt install dataset-fashion-mnist" in said


def test_shortened_trainings_decide_nothing_about_whole_ones():
    outcome = reproduce(Request(seeds=(0,), steps=500, only=("crossing", "tl-gd-rates")))
    assert outcome.claims == []
    assert [row[2] for row in outcome.rows] == ["500", "500"]
    assert any("500 updates in place of each training's own" in remark for remark in outcome.remarks)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only=("cn",)), "did you mean 'cnn'"), (Request(seeds=()), "at least one seed"),
        (Request(steps=1), "2 steps"),
    ],
)
def test_a_request_without_sense_is_refused(request_, said):
    with pytest.raises(UsageError, match=said):
        reproduce(request_)


def test_statements_are_judged_by_the_seeds_that_have_their_numbers():
    statements = [Statement("a", "a is", 1.0, 2.0), Statement("b", "b is", high=0.5), Statement("c", "c is")]
    claims = judge(statements, {0: [Found({"a": 1.5}), Found({"b": 0.7})], 3: [Found({"a": 1.9})]})
    assert [(claim.name, dict(claim.measured), claim.reproduced) for claim in claims] == [
        ("a", {0: 1.5, 3: 1.9}, True), ("b", {0: 0.7}, False),
    ]
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)
    assert all(each.low <= each.high for each in STATEMENTS)
    assert set(QUICK) <= set(STUDIES)


@pytest.mark.slow
def test_the_command_draws_and_writes_runs_that_a_report_can_be_made_of(tmp_path, monkeypatch, early):
    monkeypatch.chdir(tmp_path)
    known = Study("done before", lambda *_: early, 1)
    monkeypatch.setitem(landscape_spikes.STUDIES, "tl-gd", known)
    result = CliRunner().invoke(
        main, ["reproduce", "landscape-spikes", "--only", "tl-gd", "--steps", "600", "--seed", str(EARLY)]
    )
    assert result.exit_code in (0, 1), result.output
    assert "those of seed 0, which was not asked for" in result.stdout
    out = tmp_path / "runs" / "landscape-spikes"
    for name in ("spike", "valley", "frequencies", "condensation"):
        assert (out / f"{name}.png").stat().st_size > 5000
    facts = json.loads((out / "claims.json").read_text())
    assert {claim["name"] for claim in facts["claims"]} >= {"order", "low-u1", "L3-llas"}
    run = Run.load(out / f"tl-gd-seed-{EARLY}")
    assert len(run) == 601
    assert {"loss", "lr", "chi", "sharpness", "chi_gradient", "chi_alignment"} <= set(run.columns)
    told = CliRunner().invoke(main, ["report", str(out / f"tl-gd-seed-{EARLY}"), "-o", "page.html"])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_the_paper_is_listed_with_its_trainings():
    assert paper("landscape-spikes") is landscape_spikes.EXPERIMENT
    listed = CliRunner().invoke(main, ["reproduce", "landscape-spikes", "--list"])
    assert all(name in listed.output for name in STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_reference_run_keeps_what_is_known_of_it(seed):
    outcome = reproduce(Request(seeds=(seed,), only=("tl-gd", "tl-gd-rates")))
    verdicts = {claim.name: claim.verdict for claim in outcome.claims}
    assert all(verdict == "reproduced" for verdict in verdicts.values()), verdicts
    known = {each.name for each in (*ANATOMY, *(REFERENCE if seed == 0 else ()))}
    assert known <= set(verdicts)
    assert not any(name.startswith("cnn") for name in verdicts)
    assert len(CNN) > 10
    assert all(math.isfinite(value) for claim in outcome.claims for value in claim.measured.values())


def test_a_quick_reproduction_says_what_it_trained() -> None:
    outcome = reproduce(Request(seeds=(0,), steps=60, quick=True, only=("condensation",)))
    assert any(remark.startswith("quick: condensation only, seed 0") for remark in outcome.remarks)
