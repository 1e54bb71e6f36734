"""`foreshock run`: the script cannot tell, and afterwards there is a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foreshock.run import Run

SCRIPT = """
import argparse, hashlib, os, sys
os.environ["SEEN_BEFORE_TORCH"] = str("torch" in sys.modules)
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--end", default="")
options = parser.parse_args()
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(options.steps):
    optimizer.zero_grad()
    loss = model(torch.randn(16, 4)).square().mean()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
digest = hashlib.sha256()
for parameter in model.parameters():
    digest.update(parameter.detach().numpy().tobytes())
print(digest.hexdigest(), os.environ["SEEN_BEFORE_TORCH"], __name__, sys.argv)
if options.end == "error":
    raise ValueError("no more data")
if options.end == "exit":
    sys.exit(3)
if options.end == "interrupt":
    raise KeyboardInterrupt
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def shell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def test_the_script_cannot_tell(script):
    alone = shell("train.py", "--steps", "30", "--end", "error", cwd=script)
    watched = shell("-m", "foreshock", "run", "train.py", "--steps", "30", "--end", "error", cwd=script)
    assert (alone.returncode, watched.returncode) == (1, 1)
    assert watched.stdout == alone.stdout
    assert "False __main__" in watched.stdout
    remarks = [line for line in watched.stderr.splitlines() if line.startswith("foreshock: ")]
    rest = [line for line in watched.stderr.splitlines() if not line.startswith("foreshock: ")]
    assert "\n".join(rest) == alone.stderr.strip()
    assert remarks[0] == "foreshock: watching AdamW, run in runs/train"
    assert remarks[-1] == "foreshock: next: foreshock report runs/train"
    losses = [float(line.split()[1]) for line in watched.stdout.splitlines()[:30]]
    assert np.allclose(Run.load(script / "runs/train")["loss"], losses, rtol=1e-6)


@pytest.mark.parametrize(("end", "code"), [("", 0), ("exit", 3), ("interrupt", 130)])
def test_however_a_script_ends_there_is_a_run_and_its_exit_code(foreshock, script, end, code):
    before = (sys.modules["__main__"], list(sys.argv), list(sys.path))
    for run in ("runs/train", "runs/train-2"):
        result = foreshock("run", "train.py", "--steps", "5", "--end", end, code=code)
        assert f"foreshock: next: foreshock report {run}\n" in result.stderr
        assert len(Run.load(script / run)) == 5
    assert ("KeyboardInterrupt" in result.stderr) == (end == "interrupt")
    assert (sys.modules["__main__"], sys.argv, sys.path) == before  # foreshock was a guest here


def test_a_script_that_does_not_train_pays_for_nothing(tmp_path):
    (tmp_path / "hello.py").write_text("import sys\nprint('torch' in sys.modules, 'numpy' in sys.modules)")
    done = shell("-m", "foreshock", "run", "hello.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "False False\n")
    assert "nothing was recorded" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert shell("-m", "foreshock", "run", "-q", "hello.py", cwd=tmp_path).stderr == ""


def test_a_run_that_exists_is_not_overwritten(foreshock, runs, tmp_path):
    (tmp_path / "train.py").write_text("print('started')")
    result = foreshock("run", "-o", "runs/calm", "train.py", code=2)
    assert "holds a run already" in result.output
    assert "started" not in result.output


def test_options_after_the_script_are_the_scripts(foreshock, tmp_path):
    (tmp_path / "train.py").write_text("import sys; print(sys.argv[1:])")
    assert "['--help', '-o', 'x', '--', '-q']" in foreshock("run", "train.py", "--help", "-o", "x", "--", "-q").stdout
    assert "No such option" in foreshock("run", "--ouptut", "x", "train.py", code=2).output


def test_the_run_stays_where_the_command_was_typed(foreshock, tmp_path):
    (tmp_path / "train.py").write_text(
        "import os, torch\nos.mkdir('inner'); os.chdir('inner')\n"
        "p = torch.nn.Parameter(torch.ones(2)); o = torch.optim.SGD([p], lr=0.1)\n"
        "p.square().sum().backward(); o.step()"
    )
    result = foreshock("run", "train.py")
    assert "next: foreshock report runs/train\n" in result.stderr
    assert Run.load(tmp_path / "runs/train").tensors("grad_norm") == ("group0.0",)


def test_trouble_with_the_summary_leaves_the_exit_code(foreshock, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no words")

    monkeypatch.setattr("foreshock.cli.watch._finish", broken)
    (tmp_path / "train.py").write_text("raise SystemExit(7)")
    assert "RuntimeError('no words')" in foreshock("run", "train.py", code=7).stderr


def test_a_missing_script_is_an_error_with_those_there(foreshock, tmp_path):
    (tmp_path / "train.py").touch()
    assert "error: there is no script 'tain.py'; scripts there: train.py" in foreshock("run", "tain.py", code=2).output
