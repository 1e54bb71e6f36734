"""The S3 reproduction: its pieces on a task of nine numbers; the command as a whole under the `slow` mark."""

from __future__ import annotations

import doctest
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from foreshock.cli import main
from foreshock.detect import Spike, scan
from foreshock.errors import MissingExtraError, UsageError
from foreshock.optim import S3
from foreshock.papers import s3, s3_figures, s3_studies, s3_training
from foreshock.papers.experiment import Request
from foreshock.papers.s3_arms import ABLATIONS, ADAMW, ARMS, MOVED, RIVALS, S3_ARM, Arm, library
from foreshock.papers.s3_statements import STATEMENTS
from foreshock.papers.s3_streams import STREAMS, largest
from foreshock.papers.s3_studies import FACTORS, ablations, halves, raised
from foreshock.papers.s3_table import COLUMNS, rows
from foreshock.papers.s3_tasks import TASKS, Task, excerpts, table
from foreshock.papers.s3_training import LAST, Trace, train
from foreshock.papers.studies import silent
from foreshock.run import Run

STEPS = 54
SIGN = Arm("sign", "", lambda params, lr, wd: torch.optim.AdamW(params, lr, betas=(0.0, 0.0), weight_decay=wd))


def tiny() -> Task:
    """Points in a plane, in two classes that a line parts."""
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 0).long()
    return Task("digits", "Tiny", lambda: nn.Linear(2, 2), table(x, y, 16), (x[:8], y[:8]), 60, 1e-2)


def trace(losses: list[float], whole: int | None = None) -> Trace:
    values = np.array(losses)
    run = Run.from_arrays({"loss": values})
    return Trace("digits", "s3", 1.0, 0.1, 0, values, whole or len(values), 0.0, 1.0, 0.5, run, 0.0)


def pretended(task: Task, arm: Arm, factor: float, seed: int, *, steps: int, cosine: bool = False) -> Trace:
    """Falls from 2 in a straight line, S3 to 0.5, others to 1, at 10x to half as much; AdamW has a spike at 30x."""
    end = (0.5 if arm.name == "s3" else 1.0) * (0.5 if factor == 10 else 1.0)
    losses = np.linspace(2.0, end, steps)
    if arm.name.startswith("adamw") and factor == 30:
        losses[30] = 9.0
    run = SimpleNamespace(events=scan(Run.from_arrays({"loss": losses}), [Spike()]))
    largest = 0.9 if arm.name in ("s3", "s3-p1", "s3-p2", "s3-plain") else 2.0
    return Trace(
        task.name, arm.name, factor, factor * arm.ratio * task.lr, seed, losses, steps, end, 0.5, largest, run, 0.0
    )


@pytest.fixture
def quick(monkeypatch):
    """A tiny task in the place of digits, trainings that are not run, and nothing from a library."""
    monkeypatch.setitem(TASKS, "digits", tiny)
    monkeypatch.setattr(s3_studies, "RIVALS", (ADAMW, S3_ARM))
    monkeypatch.setattr(s3_studies, "train", pretended)


@pytest.fixture
def studied(quick):
    """What the three studies of a task find, and what they leave for each other."""
    shelf: dict[str, object] = {}
    return [study("digits")(3, silent, 100, shelf) for study in (raised, ablations, halves)], shelf


def test_the_examples_are_true():
    assert doctest.testmod(s3_training, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_updates_are_measured_in_learning_rates_with_weight_decay_taken_off():
    found = train(tiny(), SIGN, 3.0, 0, steps=STEPS)
    assert found.largest == pytest.approx(1.0, abs=1e-3)
    assert found.lr == pytest.approx(3e-2)


def test_a_training_is_the_plain_loop_with_its_warm_up_and_its_decay():
    task = tiny()
    found = train(task, S3_ARM, 10.0, 4, steps=STEPS)
    model, batches = task.network(4), np.random.default_rng([4, 1])
    optimizer, losses = S3(model.parameters(), 0.1, weight_decay=0.01), []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.1 * min(1.0, (step + 1) / 20)
        inputs, targets = task.draw(batches)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_array_equal(found.losses, losses)
    assert (found.held, found.accuracy) == task.judged(model)
    assert found.run.meta["paper"] == "s3"


def test_decay_falls_as_the_learning_rate_rises_unless_it_is_to_be_kept():
    seen = {}

    def noting(params, lr, decay):
        seen[lr] = decay
        return torch.optim.SGD(params, lr)

    for kept in (False, True):
        train(tiny(), Arm("noting", "", noting, ratio=0.2, keeps_decay=kept), 10.0, 0, steps=2)
        assert seen[0.02] == pytest.approx(0.1 if kept else 0.05)


def test_from_adamw_moves_the_rate_and_keeps_its_product_with_decay():
    made = MOVED.make([nn.Parameter(torch.zeros(1))], 1e-2, 0.1)
    (group,) = made.param_groups
    assert isinstance(made, S3)
    assert group["lr"] > 1e-2
    assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3)
    assert train(tiny(), MOVED, 1.0, 0, steps=2).lr == group["lr"]


def test_a_training_that_is_no_longer_finite_ends_and_has_diverged():
    blown = Arm("blown", "", lambda params, lr, decay: torch.optim.SGD(params, 1e38, momentum=0.9))
    found = train(tiny(), blown, 1.0, 0, steps=STEPS)
    assert len(found.losses) < STEPS
    assert found.diverged
    assert found.final == found.held == math.inf


def test_a_loss_is_reached_where_its_mean_is_there():
    falling = trace([1.0] * LAST + [0.0] * LAST)
    assert falling.reaches(0.5) == LAST + LAST / 2
    assert falling.reaches(1.0) == LAST
    assert falling.reaches(-1.0) == math.inf
    assert falling.final == 0.0
    noisy = trace(np.random.default_rng(0).random(3 * LAST).cumsum()[::-1].tolist())
    assert noisy.reaches(noisy.final) == 3 * LAST
    assert not falling.diverged
    assert trace([1.0] + [2.0] * LAST).diverged
    assert trace([1.0] * LAST, whole=LAST + 1).diverged


def test_largest_updates_on_streams_are_those_of_the_closed_forms():
    constant = np.ones((60, 2)) * [1.0, 1e-6]
    for p in (1.0, 2.0, 3.0):
        found = largest(lambda params, p=p: S3(params, 0.5, p=p), constant)
        np.testing.assert_allclose(found, (1 - 0.95**61) ** (1 - 1 / p), rtol=1e-5)
    growing = STREAMS["growing by .999/.9"][-120:, None]
    assert largest(lambda params: S3(params, 1.0, beta=0.9, beta2=0.999), growing)[0] > 2
    assert largest(lambda params: S3(params, 1.0), growing)[0] <= 1


def test_studies_find_the_numbers_that_claims_are_about(studied):
    found, _ = studied
    names = {name for each in found for name in each.numbers}
    assert names == {each.name for each in STATEMENTS if each.name.startswith("digits:")} - {"digits: best lr over 1x"}
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)
    assert all(each.low <= each.high for each in STATEMENTS)
    numbers = {name: value for each in found for name, value in each.numbers.items()}
    final = float(np.linspace(2.0, 0.5, 100)[-LAST:].mean())  # of AdamW at 10x
    assert numbers["digits: largest |u|"] == 0.9
    assert numbers["digits: largest |u|, different betas"] == 2.0
    assert numbers["digits: diverged at 10x"] == numbers["digits: spikes spared at 10x"] == 0
    assert numbers["digits: spikes spared at 30x"] == 1
    assert numbers["digits: equal betas spare spikes"] == 0
    assert numbers["digits: loss at 10x over AdamW at 1x"] < numbers["digits: loss at 10x over AdamW at 10x"] < 1
    assert numbers["digits: half the steps, held-out loss"] == pytest.approx(0.25)
    theirs = pretended(tiny(), ADAMW, 10.0, 3, steps=100)
    assert theirs.final == pytest.approx(final)
    ours = pretended(tiny(), S3_ARM, 10.0, 3, steps=100)
    assert numbers["digits: share of the steps"] == ours.reaches(final) / theirs.reaches(final)


def test_trainings_that_studies_share_are_done_once_and_are_runs(studied):
    found, shelf = studied
    rates = 3 * sum(not arm.keeps_decay for arm in ABLATIONS) + sum(arm.keeps_decay for arm in ABLATIONS)
    equal, moved, halved = 3, 1, 5
    assert len(shelf) == 2 * len(FACTORS) + equal + rates + moved + halved
    places = [place for each in found for place in each.runs]
    assert len(places) == len(set(places))
    assert "digits-s3-10x-seed-3" in places


def test_the_table_has_a_row_for_each_optimizer_and_rate(studied):
    found, _ = studied
    told = rows(found)
    assert all(len(row) == len(COLUMNS) for row in told)
    assert len(told) == len({row[:3] for row in told})
    first = dict(zip(COLUMNS, told[0], strict=True))
    assert (first["optimizer"], first["lr"], first["seeds"]) == ("AdamW .9/.999", "0.01 (1x)", "1")
    assert any(row[COLUMNS.index("to AdamW's loss")] != "never" for row in told if row[1] == ADAMW.title)


def test_losses_and_spikes_are_drawn_with_a_line_for_each_optimizer(studied):
    found, _ = studied
    drawn = s3_figures.figures({3: dict(zip("abc", found, strict=True))})
    assert set(drawn) == {"optimizers", "ablations"}
    upper, _ = drawn["optimizers"].axes
    assert {line.get_label() for line in upper.lines} >= {ADAMW.title, S3_ARM.title}
    assert s3_figures.figures({}) == {}


def test_without_the_library_its_optimizers_are_left_out_with_word_of_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingExtraError, match=r"foreshock\[optimizers\]"):
        library()
    present, (remark,) = s3_studies._present(RIVALS)
    assert [arm.name for arm in present] == ["adamw", "adamw-95", "adamw-equal", "s3"]
    assert "pip install" in remark


def test_studies_without_their_data_are_left_out_and_nothing_at_all_is_an_error(monkeypatch, quick):
    def absent() -> Task:
        raise MissingExtraError("no novels: apt install them")

    monkeypatch.setitem(TASKS, "text", absent)
    outcome = s3.reproduce(Request(seeds=(1,), steps=100, only=("digits-halves", "text-halves")))
    assert len(outcome.claims) == 2
    assert any("apt install them" in remark for remark in outcome.remarks)
    with pytest.raises(MissingExtraError, match="no novels"):
        s3.reproduce(Request(seeds=(1,), steps=100, only=("text-halves",)))


def test_batches_come_from_what_is_trained_on_and_excerpts_are_followed_by_what_follows():
    text = torch.arange(50)
    inputs, targets = excerpts(text, 7, 5)(np.random.default_rng(0))
    assert inputs.shape == targets.shape == (7, 5)
    assert torch.equal(targets, inputs + 1)
    assert targets.max() < 50
    again, _ = excerpts(text, 7, 5)(np.random.default_rng(0))
    assert torch.equal(inputs, again)


def test_the_sines_are_learned_by_numbers_and_the_network_of_a_seed_is_its_own():
    before = torch.random.get_rng_state()
    task = TASKS["sines"]()
    first, other = task.network(0), task.network(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first.w, other.w)
    inputs, targets = task.draw(np.random.default_rng(0))
    by_hand = (torch.tanh(torch.outer(inputs, first.w) + first.b) @ first.a + first.c - targets).square().mean()
    torch.testing.assert_close(task.loss(first, inputs, targets), by_hand)
    assert math.isnan(task.judged(first)[1])
    assert not set(inputs.tolist()) & set(task.held[0].tolist())


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only=("digit",)), "did you mean 'digits'"), (Request(seeds=()), "at least one seed"),
        (Request(steps=50), "100 steps"),
    ],
)
def test_a_request_without_sense_is_refused(request_, said):
    with pytest.raises(UsageError, match=said):
        s3.reproduce(request_)


def test_every_arm_has_a_colour_and_a_mark_and_quick_studies_exist():
    drawn = {arm.name for arm in (*RIVALS, *ABLATIONS) if not arm.keeps_decay}
    assert drawn <= set(s3_figures.COLOURS)
    assert drawn <= set(s3_figures.MARKS)
    assert set(s3.QUICK) <= set(s3.STUDIES)


@pytest.mark.slow
def test_the_rivals_of_the_library_take_the_decay_off_before_they_step():
    pytest.importorskip("pytorch_optimizer")
    for name in ("lion", "adabelief", "adan"):
        found = train(tiny(), ARMS[name], 1.0, 0, steps=STEPS)
        assert 0.5 < found.largest < 5
        assert not found.diverged


@pytest.mark.slow
def test_the_command_trains_judges_draws_and_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--only", "digits", "--only", "digits-ablations", "--only", "bounds", "--steps", "120", "--seed", "4"]
    result = CliRunner().invoke(main, ["reproduce", "s3", *asked])
    assert result.exit_code == 1, result.output
    out = tmp_path / "runs" / "s3"
    for name in ("optimizers.png", "ablations.pdf"):
        assert (out / name).stat().st_size > 5000
    facts = {claim["name"]: claim for claim in json.loads((out / "claims.json").read_text())["claims"]}
    assert facts["streams: S3 p 3"]["reproduced"]
    assert facts["digits: largest |u|"]["reproduced"]
    assert len(Run.load(out / "digits-s3-10x-seed-4")) == 120
