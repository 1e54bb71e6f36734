"""The new-heads reproduction: its pieces on six heaps of points; the command as a whole under the `slow` mark."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from foreshock.cli import main
from foreshock.errors import UsageError
from foreshock.papers import heads_measures
from foreshock.papers.experiment import Request
from foreshock.papers.heads_data import Pool
from foreshock.papers.heads_figures import figures
from foreshock.papers.heads_measures import COLUMNS, readings, row, summary
from foreshock.papers.heads_rows import ARMS
from foreshock.papers.heads_statements import STATEMENTS
from foreshock.papers.heads_studies import ABOVE_GRID
from foreshock.papers.heads_text import METHODS, corpus
from foreshock.papers.heads_training import (
    Boundary,
    Classes,
    Learner,
    Trace,
    begin,
    grow,
    learn,
    loss_of,
    loss_peaks,
)
from foreshock.papers.new_heads import STUDIES, reproduce
from foreshock.papers.studies import Found
from foreshock.run import Event, Run
from foreshock.threads import one_thread

HEAPS = Classes("five", "Heaps 4+2", ((0, 1, 2, 3), (4, 5)), base=80, steps=30, lr=5e-2)
SHOWN = ("random", "class-mean", "foreshock")


def heaps(seed: int = 0) -> Pool:
    """Returns six heaps of points in 12 dimensions, 40 to learn and 20 to be tested on in each."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 12, generator=draw) + 1
    labels = torch.arange(6).repeat(60)
    points = centres[labels] + 0.35 * torch.randn(360, 12, generator=draw)
    return Pool(points[:240], labels[:240], points[240:], labels[240:])


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace]:
    """Trainings with four choices of rows, from the same start."""
    pool = heaps()
    with one_thread():
        start = begin(HEAPS, pool, nn.Identity(), 0)
        return {name: learn(HEAPS, name, ARMS[name].fill, start, pool, 0) for name in SHOWN}


@pytest.fixture(scope="module")
def found(traces: dict[str, Trace]) -> Found:
    read = {name: readings(each, traces["random"]) for name, each in traces.items()}
    numbers = {
        f"five, {name}: {what}": value for name, each in read.items()
        for what, value in summary(each, read["random"]).items()
    }  # fmt: skip
    rows = [row(traces[name], each, ARMS[name].title) for name, each in read.items()]
    return Found(numbers, {name: each.run for name, each in traces.items()}, rows, {"five": (traces, read)})


def boundary(losses: list[float], old: list[float], new: list[float], **other: float) -> Boundary:
    values = {"before": 0.5, "first": losses[0], "random": 2.0, "old_before": 0.9, "share": 0.5, **other}
    return Boundary(
        at=10, new=(2,), losses=np.array(losses), steps=np.arange(len(old)), old=np.array(old),
        new_accuracy=np.array(new), seconds=0.0, **values,
    )  # fmt: skip


def test_the_examples_are_true() -> None:
    assert doctest.testmod(heads_measures).failed == 0


def test_a_boundary_is_read_beside_that_of_random_rows() -> None:
    def of(each: Boundary) -> Trace:
        return Trace(HEAPS, "", 0, [each], Run.from_arrays({"loss": each.losses}), 0.0)

    random = of(boundary([2.0, 1.6, 1.2, 0.8] + [0.4] * 16, [0.9, 0.6, 0.6, 0.6], [0.0, 0.4, 0.8, 0.8]))
    chosen = of(boundary([0.5] + [0.4] * 19, [0.8] * 4, [0.6, 0.8, 0.9, 0.9]))
    (one,), (other,) = readings(chosen, random), readings(random, random)
    assert (one.ratio, one.kept) == pytest.approx((0.25, 0.8 / 0.9))
    assert (one.known, other.known) == (1.0, 2.0)
    assert (one.recovered, other.recovered) == (5.0, 8.0)  # below 0.5: the mean of the first five, or of the fourth on
    numbers = summary([one], [other])
    assert numbers["first over before"] == pytest.approx(1.0)
    assert numbers["recovered: fewer steps"] == pytest.approx(9 / 6)
    assert numbers["final old over random"] == pytest.approx(0.2)
    lost = of(boundary([0.5] + [9.0] * 19, [0.8] * 4, [0.6] * 4))
    assert summary(readings(lost, random), [other])["recovered: fewer steps"] == 0.0
    assert row(lost, readings(lost, random), "x")[COLUMNS.index("recovered")] == "never"


def test_all_choices_of_rows_go_on_from_the_same_start_on_the_same_batches(traces: dict[str, Trace]) -> None:
    random = traces["random"]
    at = random.boundaries[0].at
    for name, each in traces.items():
        np.testing.assert_array_equal(each.run["loss"][:at], random.run["loss"][:at])
        assert each.boundaries[0].random == pytest.approx(random.boundaries[0].first, rel=1e-6), name
        assert each.boundaries[0].old_before == random.boundaries[0].old_before > 0.9


def test_rows_that_are_chosen_well_begin_lower_and_know_old_and_new(traces: dict[str, Trace]) -> None:
    first = {name: each.boundaries[0] for name, each in traces.items()}
    assert first["foreshock"].first < 0.5 * first["random"].first < first["class-mean"].first
    assert first["foreshock"].new_accuracy[0] > 0.8
    assert first["foreshock"].old[0] > 0.9 * first["foreshock"].old_before
    assert any(note["kind"] == "rows_initialised" for note in traces["foreshock"].run.notes)


def test_a_head_grows_and_its_optimizer_forgets_nothing() -> None:
    torch.manual_seed(0)
    model = Learner(nn.Identity(), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model(torch.ones(4, 3)), torch.tensor([0, 1, 0, 1]), "mse").backward()
    optimizer.step()
    before, state = model.head.weight.detach().clone(), optimizer.state[model.head.weight]["exp_avg_sq"].clone()
    grow(model, optimizer, 2)
    after = model.head.weight
    assert torch.equal(after[:2], before)
    assert after[2:].abs().sum() == 0
    assert torch.equal(optimizer.state[after]["exp_avg_sq"][:2], state)
    assert any(each is after for each in optimizer.param_groups[0]["params"])
    assert len(optimizer.state) == 2


@pytest.mark.parametrize(("kind", "value"), [("ce", math.log(4)), ("mse", 0.5)])
def test_both_losses_are_those_that_are_meant(kind: str, value: float) -> None:
    assert loss_of(torch.zeros(3, 4), torch.tensor([0, 1, 3]), kind).item() == pytest.approx(value)  # type: ignore[arg-type]


def test_a_text_says_the_same_in_words_as_in_letters() -> None:
    text = "so the cat and the dog, then and there; the end and a theme"
    spelled = corpus(text, 2)
    names = sorted(set(text))
    pieces = {spelled.kinds + at: letters for at, letters in enumerate(spelled.pieces)}
    assert {"".join(names[each] for each in letters) for letters in spelled.pieces} == {" the", " and"}
    back = "".join("".join(names[each] for each in pieces.get(token, (token,))) for token in spelled.tokens.tolist())
    assert back == text
    assert [text[start] for start in spelled.starts.tolist()] == [
        names[pieces.get(token, (token,))[0]] for token in spelled.tokens.tolist()
    ]
    assert int((spelled.tokens >= spelled.kinds).sum()) == 6


def test_every_claim_names_a_number_that_trainings_give(found: Found) -> None:
    given = {name.split(": ", 1)[1] for name in found.numbers}
    for each in STATEMENTS:
        if each.name != ABOVE_GRID:
            place, _, what = each.name.partition(": ")
            assert what in given, each.name
            assert place.split(", ")[1] in {*ARMS, *METHODS}, each.name
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)


def test_trainings_are_judged_and_drawn(monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    study = STUDIES["five"].__class__("", lambda seed, live, steps, shelf: found, 1.0)
    monkeypatch.setitem(STUDIES, "five", study)
    outcome = reproduce(Request(seeds=(0,), only=("five",)))
    claims = {claim.name: claim for claim in outcome.claims}
    assert claims["five, foreshock: first over random"].measured[0] < 0.5
    assert not claims["five, class-mean: raised"].reproduced
    assert len(outcome.rows) == len(SHOWN)
    assert "not trained" in outcome.remarks[0]
    drawn = figures({0: {"five": found}})
    assert set(drawn) == {"boundary", "accuracies"}
    with pytest.raises(UsageError, match="at least one seed and 30 steps"):
        reproduce(Request(seeds=(0,), steps=3))


def test_a_peak_is_an_event_of_the_loss_near_the_boundary() -> None:
    def event(onset: int, signal: str = "loss") -> Event:
        return Event("spike", onset, onset, onset, None, 1.0, 9.0, signal)

    kept = [event(98), event(125), event(97), event(126), event(110, "grad_norm")]
    assert loss_peaks(kept, 100) == ("spike", "spike")


@pytest.mark.slow
def test_the_command_reproduces_the_digits(tmp_path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["reproduce", "new-heads", "--only", "digits", "--seeds", "0", "--out", str(out), "--format", "png"]
    )
    assert result.exit_code in (0, 1), result.output
    claims = {claim["name"]: claim for claim in json.loads((out / "claims.json").read_text())["claims"]}
    for name in ("digits-mse, ls: first over random", "digits, class-mean: old@0", ABOVE_GRID):
        assert claims[name]["reproduced"], claims[name]
    assert (out / "boundary.png").stat().st_size > 10_000
