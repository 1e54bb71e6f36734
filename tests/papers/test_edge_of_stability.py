"""The edge-of-stability reproduction: shortened here, whole under the `slow` mark."""

from __future__ import annotations

import builtins
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from foreshock.cli import main
from foreshock.errors import MissingExtraError, UsageError
from foreshock.papers import edge_of_stability
from foreshock.papers.digits import digits
from foreshock.papers.edge_figures import chi
from foreshock.papers.edge_of_stability import BATCHES, BETAS, CONFIGURATIONS, QUICK, STATEMENTS, judge, reproduce
from foreshock.papers.edge_training import Reading, Trace, _batches, train
from foreshock.papers.experiment import Request
from foreshock.run import Run
from foreshock.threads import one_thread

COMMAND = ("reproduce", "edge-of-stability")


def trace(name: str, chi: list[float], steps: int | None = None, diverged: int | None = None) -> Trace:
    """A made-up training whose readings are spread over its steps."""
    steps = CONFIGURATIONS[name].steps if steps is None else steps
    readings = [
        Reading(i * steps // len(chi), value, 4.0, 2 * value, 5, True) for i, value in enumerate(chi)
    ]
    return Trace(CONFIGURATIONS[name], 0, [1.0] * steps, readings, diverged)


def test_the_network_is_the_published_one_and_leaves_the_random_stream_alone():
    before = torch.random.get_rng_state()
    problem = digits(0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sum(param.numel() for param in problem.model.parameters()) == 3466
    assert problem.inputs.shape == (500, 64)
    assert problem.inputs.mean(dim=0).abs().max() < 1e-6
    out = problem.model(problem.inputs).detach()
    by_hand = sum(0.5 * float(((out[i] - problem.targets[i]) ** 2).sum()) for i in range(500)) / 500
    assert problem.loss().item() == pytest.approx(by_hand, rel=1e-5)
    assert problem.loss(torch.tensor([3])).item() == pytest.approx(
        0.5 * float(((out[3] - problem.targets[3]) ** 2).sum()), rel=1e-5
    )


@pytest.mark.parametrize("size", [250, 32, 8])
def test_batches_take_every_sample_at_most_once_an_epoch(size):
    rows = _batches(size, 0)
    epoch = torch.cat([next(rows) for _ in range(500 // size)])
    assert len(epoch) == 500 // size * size
    assert len(epoch.unique()) == len(epoch)


def test_a_reading_is_the_top_eigenvalue_of_the_dense_conditioned_hessian():
    """Against autograd's dense Hessian in float64, with W written out by hand for Adam's next step."""
    found = train(CONFIGURATIONS["adam"], 0, steps=6, every=5).readings[1]
    problem = digits(0)
    optimizer = CONFIGURATIONS["adam"].build(problem.model.parameters())
    with one_thread():
        for _ in range(5):
            optimizer.zero_grad()
            problem.loss().backward()
            optimizer.step()
    params = dict(problem.model.named_parameters())
    flat = torch.cat([param.detach().flatten() for param in params.values()]).double()
    shapes = [(name, param.shape, param.numel()) for name, param in params.items()]

    def loss(vector):
        pieces = vector.split([count for *_, count in shapes])
        named = {name: piece.view(shape) for (name, shape, _), piece in zip(shapes, pieces, strict=True)}
        out = torch.func.functional_call(problem.model.double(), named, problem.inputs.double())
        return 0.5 * (out - problem.targets.double()).square().sum(dim=1).mean()

    gradient = torch.autograd.functional.jacobian(loss, flat)
    v = torch.cat([optimizer.state[param]["exp_avg_sq"].flatten() for param in params.values()]).double()
    v = 0.999 * v + 0.001 * gradient**2
    root = ((1 - 0.9**6) * ((v / (1 - 0.999**6)).sqrt() + 1e-8)).rsqrt()
    variable = flat.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(variable), variable, create_graph=True)

    def product(vector):
        direction = root * torch.from_numpy(vector)
        (result,) = torch.autograd.grad(slope, variable, direction, retain_graph=True)
        return (root * result).numpy()

    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator((3466, 3466), matvec=product)
    sharpness = eigsh(operator, k=1, which="LA", tol=1e-5, return_eigenvectors=False)[0]
    assert found.threshold == pytest.approx(38 / 5e-3)
    assert found.sharpness == pytest.approx(sharpness, rel=3e-3)


def test_gradient_descent_arrives_at_the_edge():
    found = train(CONFIGURATIONS["gd"], 0, steps=450)
    assert found.readings[0].chi < 0.8
    assert found.settled() == pytest.approx(1.06, abs=0.07)
    assert 150 <= found.arrival <= 300
    assert all(each.converged for each in found.readings)


def test_the_dampening_trap_springs_and_is_avoided():
    assert train(CONFIGURATIONS["dampening-raw"], 0).diverged < 100
    sound = train(CONFIGURATIONS["dampening"], 0, steps=40)
    assert sound.diverged is None
    assert math.isnan(trace("gd", [1.0], diverged=3).settled())


def test_what_settles_is_the_median_of_the_second_half():
    assert trace("gd", [9.0, 9.0, 9.0, 1.0, 1.2, 1.1]).settled() == 1.1
    assert trace("gd", [9.0, 1.0]).settled(lambda reading: reading.raw) == 2.0
    assert trace("gd", [9.0, 0.5, 0.97, 1.0]).arrival == 750
    assert trace("gd", [9.0, 0.5]).arrival is None


def test_claims_are_judged_only_by_trainings_that_are_there_and_long_enough():
    whole, short = {"gd": trace("gd", [1.0, 1.05])}, {"gd": trace("gd", [1.0, 1.05], steps=300)}
    assert {claim.name for claim in judge(STATEMENTS, {0: whole})} == {"gd", "gd-raw"}
    assert judge(STATEMENTS, {0: whole, 1: short}) == []
    long_enough = {"gd": trace("gd", [1.0, 1.05], steps=600)}
    assert [claim.name for claim in judge(STATEMENTS, {0: long_enough})] == ["gd"]


def test_orders_are_claims_about_neighbours():
    falling = {name: trace(name, [0.0, value]) for name, value in zip(BATCHES, [1.0, 0.4, 0.2, 0.1, 0.05], strict=True)}
    claim = {each.name: each for each in judge(STATEMENTS, {0: falling})}["batches"]
    assert claim.reproduced
    assert claim.measured[0] == pytest.approx(2.0)
    swapped = falling | {"batch-8": trace("batch-8", [0.0, 0.3])}
    assert not {each.name: each for each in judge(STATEMENTS, {0: swapped})}["batches"].reproduced
    faster = {name: trace(name, [0.0, value]) for name, value in zip(BETAS, [1.16, 1.06, 0.99], strict=True)}
    assert {each.name: each for each in judge(STATEMENTS, {0: faster})}["beta2"].reproduced


def test_every_statement_can_be_decided_and_every_training_is_used():
    used = {name for statement in STATEMENTS for name in statement.needs}
    assert used == set(CONFIGURATIONS)
    assert set(QUICK) <= set(CONFIGURATIONS)
    assert all(statement.low < statement.high for statement in STATEMENTS)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only=("adm",)), "did you mean 'adam'"), (Request(seeds=()), "at least one seed"),
        (Request(steps=1, only=("gd",)), "two steps"),
    ],
)
def test_a_request_without_sense_is_refused(request_, said):
    with pytest.raises(UsageError, match=said):
        reproduce(request_)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'foreshock\[demo\]'"):
        digits(0)


@pytest.mark.slow
def test_the_command_trains_judges_draws_and_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, [*COMMAND, "--only", "dampening-raw", "--only", "nadam", "--steps", "60", "--seed", "0", "--seed", "5"]
    )
    assert result.exit_code == 0, result.output
    assert "the loss overflows at step" in result.stdout
    assert "1 of 1 claims reproduced" in result.stdout
    assert "which leaves claims undecided: NAdam" in result.stdout
    out = tmp_path / "runs" / "edge-of-stability"
    for name in ("chi.png", "chi.pdf", "sharpness.png", "sharpness.pdf"):
        assert (out / name).stat().st_size > 5000
    facts = json.loads((out / "claims.json").read_text())
    assert facts["claims"][0]["measured"].keys() == {"0", "5"}
    run = Run.load(out / "nadam-seed-5")
    assert len(run) == 60
    steps, chi = run.measured("chi")
    assert steps.tolist() == [0, 25, 50]
    assert np.isfinite(chi).all()
    assert run.meta["paper"] == "edge-of-stability"


def test_figures_of_many_seeds_say_the_range_that_chi_settles_in():
    values = {0: [1.0, 1.02], 1: [1.0, 0.97], 2: [1.0, 1.0], 3: [1.0, 1.01]}
    few = chi({seed: {"gd": trace("gd", values[seed])} for seed in (0, 1)})
    many = chi({seed: {"gd": trace("gd", each)} for seed, each in values.items()})
    assert "settles at 1.02, 0.97" in [text.get_text() for text in few.axes[0].texts]
    assert "settles at 0.97 to 1.02" in [text.get_text() for text in many.axes[0].texts]
    assert "pale: seeds 1, 2, 3" in many.get_supxlabel()


@pytest.mark.slow
def test_what_is_not_reproduced_is_said_and_sets_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    impossible = edge_of_stability.Statement(
        "gd", "GD: chi settles at", 7.0, 8.0, ("gd",), lambda runs: runs["gd"].settled(), least=2
    )
    monkeypatch.setattr(edge_of_stability, "STATEMENTS", (impossible,))
    result = CliRunner().invoke(main, [*COMMAND, "--only", "gd", "--steps", "30", "--seed", "0"])
    assert result.exit_code == 1
    assert "0 of 1 claims reproduced" in result.stdout
    assert "below" in result.stdout
    as_json = CliRunner().invoke(
        main, [*COMMAND, "--only", "gd", "--steps", "30", "--seed", "0", "--json"]
    )
    assert json.loads(as_json.stdout)["claims"][0]["reproduced"] is False


def test_a_folder_with_something_else_in_it_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_of_stability, "train", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "chi.png").write_bytes(b"a picture of mine")
    result = CliRunner().invoke(main, [*COMMAND, "--only", "gd", "--out", str(tmp_path / "mine")])
    assert result.exit_code == 2
    assert "holds no earlier reproduction of edge-of-stability; name another folder with --out" in result.output
    assert (tmp_path / "mine" / "chi.png").read_bytes() == b"a picture of mine"


def test_without_matplotlib_everything_but_the_figures_is_there(tmp_path, monkeypatch):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest))
    for _ in range(2):  # the second replaces the first
        result = CliRunner().invoke(
            main, [*COMMAND, "--only", "gd", "--steps", "3", "--seed", "0", "--out", str(tmp_path / "here")]
        )
        assert result.exit_code == 0, result.output
    assert "pip install 'foreshock[figures]'" in result.stderr
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["claims.json", "gd-seed-0"]


def test_papers_and_trainings_are_listed():
    listed = CliRunner().invoke(main, ["reproduce"])
    assert "edge-of-stability" in listed.output
    trainings = CliRunner().invoke(main, [*COMMAND, "--list"])
    assert all(name in trainings.output for name in CONFIGURATIONS)
    unknown = CliRunner().invoke(main, ["reproduce", "edge"])
    assert unknown.exit_code == 2
    assert "did you mean 'edge-of-stability'" in unknown.output


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_claim_is_reproduced(seed):
    outcome = reproduce(Request(seeds=(seed,)))
    assert len(outcome.claims) == len(STATEMENTS)
    assert {claim.name: claim.verdict for claim in outcome.claims} == {each.name: "reproduced" for each in STATEMENTS}
