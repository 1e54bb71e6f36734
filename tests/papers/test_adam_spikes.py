"""The adam-spikes reproduction: shortened here, whole under the `slow` mark."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from foreshock.cli import main
from foreshock.cli.reproduce import _value
from foreshock.detect.stages import stages
from foreshock.errors import UsageError
from foreshock.papers import adam_text, text
from foreshock.papers.adam_claims import STATEMENTS, Statement, judge
from foreshock.papers.adam_figures import transformer
from foreshock.papers.adam_sines import RESCUES, batches, sine_spikes
from foreshock.papers.adam_spikes import QUICK, TRAININGS, reproduce
from foreshock.papers.adam_study import Found, Passage
from foreshock.papers.adam_text import text_spikes
from foreshock.papers.adam_wide import descend, watch, wide
from foreshock.papers.claims import Claim
from foreshock.papers.experiment import Request
from foreshock.papers.stage_figure import passing, staged
from foreshock.papers.transformer import reading
from foreshock.run import Run

COMMAND = ("reproduce", "adam-spikes")
WORDS = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 4


@pytest.fixture
def novel(tmp_path, monkeypatch):
    """A database of R with one short book, in the place where novels are looked for."""
    record = b"X\n" + struct.pack(">iii", 2, 0, 0) + struct.pack(">ii", 16, 1)
    record += struct.pack(">ii", 9, len(WORDS)) + WORDS.encode()
    file = tmp_path / "Rdata.rdb"
    file.write_bytes(struct.pack(">I", len(record)) + zlib.compress(record))
    monkeypatch.setattr(text, "AUSTEN", file)
    return file


@pytest.fixture(scope="module")
def short() -> Found:
    """The first 2,000 steps on two sines, with the first spikes."""
    return sine_spikes(0, steps=2000)


def test_the_first_spikes_on_two_sines_pass_through_the_stages(short):
    numbers = short.numbers
    assert 1 <= numbers["spikes"] <= 4
    assert numbers["chi recall"] == 1
    assert numbers["chi lead"] > numbers["chi_gradient lead"] > 0
    assert numbers["hessian_top recall"] == 0
    assert 0.3 < numbers["preconditioner share"] < 1.1
    assert numbers["v ratio at crossing"] == pytest.approx(0.999, abs=2e-4)
    assert numbers["blamed on the preconditioner"] > 0
    assert numbers["rescued by eps 0.1"] == 1
    assert numbers["rescued by beta2 0.99"] < 1
    assert all(f"rescued by {name}" in numbers for name, *_ in RESCUES)
    passage = short.drawn["passages"][0]
    assert sum(passage.in_order) >= 4
    assert passage.up < passage.baseline < passage.peak


def test_stages_of_a_recorded_spike_come_in_their_order_and_are_drawn(short):
    passage, run = short.drawn["passages"][0], short.runs["sines"]
    event = passing(run, passage.up, passage.down - 1)
    found = stages(run, event)
    assert [stage.name for stage in found.bounds if stage.name != "stable"] == [
        "decoupled", "silent", "onset", "refill", "decay",
    ]
    assert found["silent"].first == passage.up
    figure = staged(run, event, (passage.up - 50, passage.peak + 30), limit=100, title="A spike")
    assert len(figure.axes) == 5
    assert {"onset", "refill"} <= {each.get_text() for each in figure.axes[0].texts}


def test_order_is_judged_relation_by_relation():
    assert all(Passage(10, 12, 13, 20, 25, 26).in_order)
    assert Passage(14, 12, 13, 20, 25, 26).in_order == (False, True, True, True, True)
    assert Passage(10, 12, 13, 30, 28, 26).in_order == (True, True, True, False, False)


def test_noise_of_small_batches_keeps_chi_away_from_its_edge():
    found = batches(0, steps=600).numbers
    assert found["max chi in 100"] < 0.9
    assert found["alarms in 100"] == 0


def test_the_wide_network_is_drawn_in_the_order_described():
    problem = wide(0, 30)
    x = np.random.default_rng(0).standard_normal((200, 50))
    np.testing.assert_array_equal(problem.inputs.numpy(), x)
    assert sum(param.numel() for param in wide(0).model.parameters()) == 52_001
    assert wide(0).loss().item() == pytest.approx(190.32, abs=0.01)


def test_the_watched_network_trains_as_the_unwatched_one_and_chi_is_read_beside_it():
    run = watch(0, steps=14, width=12)
    np.testing.assert_array_equal(run["loss"], descend(0, 14, width=12))
    steps, chi = run.measured("chi")
    assert 1 <= len(steps) <= 13
    assert np.isfinite(chi).all()
    assert run.meta["paper"] == "adam-spikes"  # so that a later reproduction may replace it
    assert {"chi_share/w", "hessian_top", "chi_overlap", "v_ratio/a"} <= set(run.columns)
    late = descend(0, 14, width=12, change=(10, {"eps": 0.1}))
    np.testing.assert_array_equal(late[:11], run["loss"][:11])
    assert not np.array_equal(late[11:], run["loss"][11:])


def test_the_transformer_looks_back_only_and_leaves_the_random_stream_alone():
    before = torch.random.get_rng_state()
    problem = reading(WORDS, 0, excerpts=3, length=12)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 2 < problem.loss().item() < 5
    characters = problem.characters[:, :-1]
    changed = characters.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 3
    plain, other = problem.model(characters), problem.model(changed)
    torch.testing.assert_close(plain[:, :7], other[:, :7])
    assert not torch.allclose(plain[:, 7:], other[:, 7:])


@pytest.mark.slow
def test_the_transformer_is_watched_where_it_is_read(novel, monkeypatch):
    monkeypatch.setattr(adam_text, "BETAS", (0.999, 0.95))
    monkeypatch.setattr(adam_text, "NEAR", {0.95: 0.0})
    found = text_spikes(0, steps=6)
    assert found.runs["transformer-beta2-0.95"].measured("chi")[0].tolist() == [1, 2, 3, 4, 5]
    assert "chi" not in found.runs["transformer-beta2-0.999"]
    np.testing.assert_allclose(
        found.runs["transformer-beta2-0.95"]["loss"][0], found.runs["transformer-beta2-0.999"]["loss"][0]
    )
    assert len(transformer({0: {"transformer": found}}).axes) == 4


def test_what_remains_when_all_is_learned_is_taken_off_the_loss():
    problem = reading("ab" * 30 + "ac", 0, excerpts=40, length=2)
    contexts = [tuple(row[:place]) for row in problem.characters.tolist() for place in (1, 2)]
    follow = [row[place] for row in problem.characters.tolist() for place in (1, 2)]
    by_hand = 0.0
    for context, after in zip(contexts, follow, strict=True):
        alike = [b for a, b in zip(contexts, follow, strict=True) if a == context]
        by_hand -= np.log(alike.count(after) / len(alike)) / len(follow)
    assert problem.floor == pytest.approx(by_hand, rel=1e-12)
    assert problem.loss().item() > 0


def test_claims_are_about_their_seeds_and_about_whole_trainings():
    statements = [Statement("wide", "peak", "peak at", 1, 2), Statement("wide", "peak", "peak at", 1, 1.5, (0,))]
    found = {0: {"wide": Found({"peak": 1.2})}, 7: {"wide": Found({})}}
    first, second = judge(statements, found, {"wide"})
    assert not first.reproduced
    assert first.verdict == "not: no value"
    assert second.reproduced
    assert list(second.measured) == [0]
    assert judge(statements, found, set()) == []
    assert Claim("a", "all", 888, 888, {0: 888.0}).expected == "888"
    assert [_value(second, seed) for seed in (0, 7)] == ["1.2", "-"]


def test_every_statement_has_a_training_and_an_interval():
    assert {each.training for each in STATEMENTS} == set(TRAININGS)
    assert all(each.low <= each.high for each in STATEMENTS)
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)
    assert set(QUICK) <= set(TRAININGS)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(only=("sine",)), "did you mean 'sines'"), (Request(seeds=()), "at least one seed"),
        (Request(steps=50), "100 steps"),
    ],
)
def test_a_request_without_sense_is_refused(request_, said):
    with pytest.raises(UsageError, match=said):
        reproduce(request_)


@pytest.mark.slow
def test_the_command_trains_judges_draws_and_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "AUSTEN", tmp_path / "nowhere")
    asked = ["--only", "parabola", "--only", "sines-cures", "--only", "transformer", "--steps", "120"]
    result = CliRunner().invoke(main, [*COMMAND, *asked, "--seed", "4"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "18 of 18 claims reproduced" in said
    assert "which leaves claims undecided: sines-cures" in said
    assert "apt install r-cran-janeaustenr" in said
    out = tmp_path / "runs" / "adam-spikes"
    for name in ("parabola.png", "parabola.pdf", "cures.png"):
        assert (out / name).stat().st_size > 5000
    facts = json.loads((out / "claims.json").read_text())
    assert facts["claims"][0]["measured"] == {"4": 888.0}
    run = Run.load(out / "parabola-beta2-0.99")
    assert run["chi"].argmax() > 0
    assert run.meta["paper"] == "adam-spikes"
    assert len(Run.load(out / "sines-beta2-0.99-seed-4")) == 120


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_claim_is_reproduced(seed):
    outcome = reproduce(Request(seeds=(seed,)))
    missed = {claim.name: claim.verdict for claim in outcome.claims if not claim.reproduced}
    assert missed == {}
