"""What the documentation shows is what happens: its blocks and the examples run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from torch import nn

from foreshock.cli import main
from foreshock.run import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks(README, "bash") for line in block.splitlines()]
    return [line for line in lines if line.split()[:1] == [program]]


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """The names that the README's loop takes for granted."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(4, 2)
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "loss_fn": nn.CrossEntropyLoss(),
        "loss_each": nn.CrossEntropyLoss(reduction="none"),
        "head": nn.Linear(6, 2),
        "features": lambda x: nn.functional.pad(x, (0, 2)).relu(),
        "new_loader": [(torch.randn(16, 4), torch.randint(4, (16,))) for _ in range(4)],
        "loader": [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(30)],
    }


def test_the_readme_runs_from_top_to_bottom(loop):
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), loop)
    assert len(Run.load("runs/a")) == 30
    assert Path("a.html").stat().st_size > 10_000


def test_the_guide_to_curvature_runs_from_top_to_bottom():
    guide = (ROOT / "docs" / "curvature.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks(guide, "python"):
            exec(compile(block, "curvature.md", "exec"), names)
    assert "exact" in names


def test_the_page_on_absorption_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Run.from_arrays({"loss": [1.0, 1.1] * 40 + [9.0] + [1.0, 1.1] * 40}).save("runs/a")
    names: dict[str, object] = {}
    for block in blocks((ROOT / "docs" / "absorption.md").read_text(encoding="utf-8"), "python"):
        exec(compile(block, "absorption.md", "exec"), names)
    assert "softmax_absorbed" in capsys.readouterr().out
    assert 0 < float(names["loss"]) < 1e-7


def test_the_guide_to_the_guard_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks((ROOT / "docs" / "guard.md").read_text(encoding="utf-8"), "python"):
            exec(compile(block, "guard.md", "exec"), names)
    assert [note["kind"] for note in Run.load("runs/guarded").notes if note["kind"] == "action"] == []
    assert {action.kind for action in Run.load("runs/with").actions} == {"skip", "rollback"}
    assert Run.load("runs/with")["loss"][-20:].mean() < 1 < Run.load("runs/with")["loss"][0]
    assert np.isnan(Run.load("runs/without")["loss"][-1])
    assert Path("guarded.html").stat().st_size > 10_000


def test_the_guide_to_explaining_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks((ROOT / "docs" / "explain.md").read_text(encoding="utf-8"), "python"):
            exec(compile(block, "explain.md", "exec"), names)
    assert names["proof"].reproducible
    assert set(names["proof"].cures) == {"skip", "other_batches"}
    assert set(names["blame"].blamed(3)) == {(120, 3), (120, 14), (120, 25)}
    assert names["found"].best.name == "outlier_batch"
    assert {finding["kind"] for finding in Run.load("runs/a").findings} == {"replay", "attribution"}
    assert "less_momentum" in capsys.readouterr().out


def test_the_run_format_reads_with_numpy_alone(loop):
    exec(compile(blocks(README, "python")[0], "README.md", "exec"), loop)
    (reader,) = blocks((ROOT / "docs" / "run-format.md").read_text(encoding="utf-8"), "python")
    names: dict[str, object] = {}
    exec(compile(reader, "run-format.md", "exec"), names)
    assert np.array_equal(names["loss"], Run.load("runs/a")["loss"])
    assert len(names["loss"]) == 30


def test_the_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [line.split()[1] for line in commands("make")]
    assert shown == ["demo", "test"]
    assert set(shown) <= set(targets)


@pytest.mark.parametrize("line", commands("foreshock"))
def test_the_commands_parse(line):
    name, *arguments = line.split()[1:]
    command = main.get_command(None, name)
    assert command is not None
    command.make_context(name, arguments, parent=click.Context(main, **main.context_settings))


def test_the_picture_is_there_and_small():
    picture = (ROOT / "docs" / "images" / "report.png").read_bytes()
    assert picture[:4] == b"\x89PNG"
    assert len(picture) < 400_000


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(ROOT / "examples" / name), run_name="example")["main"]


def test_the_watched_loop_finds_its_lr_mistake(example):
    example("watch_a_loop.py")("a", 400)
    run = Run.load("a")
    assert len(run) == 400
    assert any(event.kind == "spike" and 300 <= event.onset <= 303 for event in run.events)


def test_the_guarded_digits_survive_their_faults(example):
    loss = example("guard_a_loop.py")("a", 450)
    run = Run.load("a")
    assert loss < 1.0  # unguarded it is NaN: a weight is flipped at step 360
    assert {action.kind for action in run.actions} >= {"skip", "cut_lr", "rollback"}
    assert np.isfinite(run.accepted("loss")[run.taken]).all()


def test_the_broken_scanner_is_found_out(example, capsys):
    proof, blame = example("explain_a_spike.py")("a", 160)
    assert proof.reproducible
    assert {"skip", "other_batches"} <= set(proof.cures)
    assert not {"cut_lr", "float64"} & set(proof.cures)
    assert set(blame.suspects.topk(2).indices.tolist()) <= {5, 23, 41}
    assert "The spike at step 120 was made by" in capsys.readouterr().out
    assert main(["explain", "a"], standalone_mode=False) is None
    assert "proved by the replay" in capsys.readouterr().out


def test_the_detector_of_ones_own_finds_what_it_was_told_to(example, capsys):
    (event,) = example("own_detector.py")()
    assert (event.onset, event.end) == (2, 3)
    assert "steps" not in capsys.readouterr().err


@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_the_training_that_is_told_its_learning_rate_takes_it(example, lr, capsys):
    (_, first, _), *later = example("track_the_edge.py")(lr, 60)
    assert (first > 2) if lr == 1.0 else (first < 0.1)
    assert all(0.5 < chi < 1 for _, chi, _ in later)
    assert "stable up to lr" in capsys.readouterr().out


def test_new_classes_are_learnt_without_a_jump(example, capsys):
    rows, first, last = example("learn_new_classes.py")("a", 200)
    assert first < rows.random_loss / 3
    assert last < first
    assert "old ones" in capsys.readouterr().out
