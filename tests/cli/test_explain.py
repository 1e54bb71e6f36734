"""`foreshock explain`: one event, told from what is known; the exit codes; JSON; the page."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

from foreshock.cli import main
from foreshock.cli.explaining import show
from foreshock.detect import scan
from foreshock.report.detail import harmful
from foreshock.report.explanation import explanation
from foreshock.run import Run

from ..report.findings import attribution, replay
from ..report.runs import NASTY, spiky

ADAM = {"class": "AdamW", "groups": [{"lr": 0.02, "betas": [0.9, 0.999], "eps": 1e-8}]}


@pytest.fixture
def proved(foreshock, tmp_path):
    """A run with two spikes, at 200 and 420, of which the first was replayed and attributed."""
    spiky(optimizers=[ADAM]).save(tmp_path / "run")
    run = Run.load(tmp_path / "run")
    first, _ = harmful(scan(run))
    run.add_finding(replay(first))
    run.add_finding(attribution(first, images=True))
    return run


def test_it_tells_mechanism_proof_guilt_and_what_to_change(foreshock, proved):
    text = " ".join(foreshock("explain", "run", "--event", "1").output.split())
    for part in (
        "harmful event 1 of 2: spike at step 200", "loss 1.99 → 7.99; steps 200 to 219", "Mechanism", "Evidence",
        "It does not come with floor and beta2.", "as it was over a level of 2 8 100",
        "floor denominator of at least 0.0038 2.06 1 % ✓ removed",
        "clip_grad gradient norm at most twice the usual 9.86",
        "not applicable: exact_softmax (no softmax in the loss)", "failed: float64", "2.weight 56 % ████",
        "momentum from before 36 %", "Examples that pushed, at step 200 example 3 52 % a picture, shown on the page",
        "3 examples of 64 carry 90 % of what pushed", "What to change (proved by the replay)",
        "In the replay from step 170 floor alone removed the spike: 1 % of the rise is left; so did beta2.",
    ):  # fmt: skip
        assert part in text.replace("\N{NO-BREAK SPACE}", " "), part


def test_the_most_severe_event_is_the_default_and_others_are_named_by_number_or_step(foreshock, proved):
    assert "spike at step 420" in foreshock("explain", "run").output  # the higher one, in robust sigmas
    assert "spike at step 200" in foreshock("explain", "run", "--step", "150").output
    assert "spike at step 200" in foreshock("explain", "run", "--step", "205").output  # a warning lasts until then too
    assert "spike at step 420" in foreshock("explain", "run", "--step", "599").output
    warning = foreshock("explain", "run", "--step", "196").output
    assert "precursor at step" in warning
    assert "harmful event" not in warning


def test_an_event_that_is_not_there_is_answered_with_those_that_are(foreshock, proved):
    for number in ("0", "3", "-1"):
        text = foreshock("explain", "run", "--event", number, code=2).output
        assert f"error: --event {number}: there is no such event" in text
        assert "1 spike at step 200; 2 spike at step 420" in text
    assert "give one of them" in foreshock("explain", "run", "--event", "1", "--step", "2", code=2).output
    assert "runs/absent" in foreshock("explain", "runs/absent", code=2).output


def test_the_numbers_are_those_that_scan_shows(foreshock, proved):
    rows = [line.split() for line in foreshock("scan", "run", code=1).output.splitlines() if line.startswith("spike")]
    assert [row[1] for row in rows] == ["1", "2"]
    found = json.loads(foreshock("scan", "run", "--json", code=1).output)["events"]
    assert [event.get("number") for event in found if event["kind"] == "spike"] == [1, 2]
    assert all("number" not in event for event in found if event["kind"] == "precursor")


def test_a_run_without_harm_has_nothing_to_explain(foreshock, runs, tmp_path):
    text = foreshock("explain", "runs/calm", "-o", "calm.html").output
    assert "runs/calm: no harmful event in 500 steps, nothing to explain" in text
    assert (tmp_path / "calm.html").exists()
    found = json.loads(foreshock("explain", "runs/calm", "--json").output)
    assert found["event"] is None
    assert "no harmful event" in foreshock("explain", "runs/calm", "--event", "1").output


def test_warnings_alone_are_named(foreshock, tmp_path):
    run = spiky(at=())
    norm = run["grad_norm"].copy()
    norm[300:320] *= 9
    Run.from_arrays({"loss": run["loss"], "grad_norm": norm}).save(tmp_path / "warned")
    text = foreshock("explain", "warned").output
    assert "1 warning, the first a precursor at step 300 (--step 300 explains it)" in text
    assert "precursor at step" in foreshock("explain", "warned", "--step", "300").output


def test_json_holds_all_of_it_and_no_bare_nan(foreshock, proved):
    found = json.loads(foreshock("explain", "run", "--event", "1", "--json").output, parse_constant=pytest.fail)
    assert found["event"]["number"] == 1
    assert found["event"]["peak"] == 200
    assert found["replay"]["cures"] == ["floor", "beta2"]
    assert next(arm for arm in found["replay"]["arms"] if arm["name"] == "exact_softmax")["share"] == "nan"
    assert found["attribution"]["columns"]["2.weight"] == 0.56
    assert found["remedy"]["change"] in ("floor", "beta2")
    assert found["remedy"]["proved"]
    assert {"causes", "ruled_out", "unjudged", "mechanism", "story", "said"} <= set(found)
    other = json.loads(foreshock("explain", "run", "--event", "2", "--json").output)
    assert other["replay"] is None
    assert other["attribution"] is None
    assert json.loads(foreshock("info", "run", "--json").output)["findings"] == {"replay": 1, "attribution": 1}


def test_the_page_leads_to_the_event(foreshock, proved, tmp_path):
    text = foreshock("explain", "run", "--event", "1", "-o", "out/page.html").output
    assert "at the event: out/page.html#run-1/event-2" in text  # the first on the page is its early warning
    assert "denominator of at least 0.0038" in (tmp_path / "out" / "page.html").read_text()
    result = foreshock("explain", "run", "--json", "-o", "page.html")
    json.loads(result.stdout)  # the remark about the page goes elsewhere
    assert "page: page.html" in result.stderr
    (tmp_path / "file").touch()
    assert "cannot be written" in foreshock("explain", "run", "-o", "file/page.html", code=2).output


def test_a_file_of_another_tool_is_explained_as_far_as_it_tells(foreshock, tmp_path, spiked):
    rows = "\n".join(f"{step},{loss}" for step, loss in enumerate(spiked))
    (tmp_path / "history.csv").write_text(f"iteration,train/ce\n{rows}\n")
    text = foreshock("explain", "history.csv", "--column", "loss=train/ce", "--column", "step=iteration").output
    assert "spike at step 300" in text
    assert "Not judged" in text
    assert "not recorded: " in text
    assert "None yet: nobody has replayed it." in text


def test_a_damaged_run_is_explained_from_what_is_left(foreshock, proved, tmp_path):
    stored = tmp_path / "run" / "rank-0" / "step.bin"
    stored.write_bytes(stored.read_bytes()[:-7])
    finding = next((tmp_path / "run" / "findings").glob("*-replay.json"))
    finding.write_text(finding.read_text().replace('"base": 2.0', '"base": 2.5'))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = foreshock("explain", "run", "--event", "1")
    assert re.search(r"warning: .*-replay.json does not match its checksum", result.stderr)
    text = result.stdout
    assert "spike at step 200" in text
    assert "None yet: nobody has replayed it." in text
    assert "2.weight" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal_and_nothing_is_coloured_where_nobody_looks(proved, width):
    from io import StringIO

    from rich.console import Console

    events = scan(proved)
    first = harmful(events)[0]
    found = explanation(proved, first, events)
    for terminal in (False, True):
        out = StringIO()
        colours = "standard" if terminal else None
        show("run", found, Console(file=out, width=width, force_terminal=terminal, color_system=colours))
        text = out.getvalue()
        assert ("\x1b[" in text) == terminal
        if not terminal:
            assert max(map(len, text.splitlines())) <= width
            assert "removed" in text
            assert "floor" in text


def test_names_with_markup_are_printed_as_they_are(foreshock, tmp_path):
    spiky(at=(200,)).save(tmp_path / "run")
    run = Run.load(tmp_path / "run")
    (event,) = harmful(scan(run))
    names = ["[red]a[/red]", "[/]", *NASTY]
    arms = [dict(replay(event)["arms"][0], name=name, what=name) for name in names]
    run.add_finding(replay(event, arms=arms, cures=names[:1]))
    run.add_finding(attribution(event, columns=dict.fromkeys(names, 0.1)))
    text = foreshock("explain", "run").output
    assert "[red]a[/red]" in text


def test_it_needs_neither_torch_nor_a_finite_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run.from_arrays({"loss": np.where(np.arange(400) < 300, 2.0, np.nan)}).save(tmp_path / "broken")
    result = CliRunner().invoke(main, ["explain", "broken"])
    assert result.exit_code == 0, result.output
    assert "nonfinite at step 300" in result.output


def test_texts_of_examples_do_not_steer_the_terminal() -> None:
    from foreshock.cli.explaining import _printable

    assert _printable("a\x1b[31m\x00b\u202e \nü") == "a\ufffd[31m\ufffdb\ufffd \nü"
