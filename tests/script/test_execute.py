"""A script run by foreshock sees what `python` would have shown it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from foreshock.errors import UsageError
from foreshock.script.execute import find_code, run_like_python, without_our_frames

SEES = """
import os, pickle, sys
class Thing:
    pass
print(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, os.path.realpath(sys.path[0]))
print(sys.modules["__main__"].Thing is Thing, type(pickle.loads(pickle.dumps(Thing()))) is Thing)
import neighbour
"""
RUN = "import sys; from foreshock.script import *; run_like_python(find_code(sys.argv[1], module={}), sys.argv[2:])"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    (tmp_path / "neighbour.py").write_text("print('neighbour')")
    for name in ("script.py", "package/__init__.py", "package/inner.py", "package/__main__.py"):
        (tmp_path / name).write_text("" if name.endswith("__init__.py") else SEES)
    return tmp_path


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["script.py", "./script.py"])
def test_a_script_sees_what_python_shows(project, target):
    ours = python("-c", RUN.format(False), target, "--lr", "3e-4", cwd=project)
    theirs = python(target, "--lr", "3e-4", cwd=project)
    assert ours.stdout == theirs.stdout
    assert "neighbour" in ours.stdout


@pytest.mark.parametrize("target", ["package", "package.inner", "script"])
def test_a_module_sees_what_python_shows(project, target):
    ours = python("-c", RUN.format(True), target, "-x", cwd=project)
    theirs = python("-m", target, "-x", cwd=project)
    assert ours.stdout == theirs.stdout
    assert "neighbour" in ours.stdout


@pytest.mark.parametrize(
    "body",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('no data')",
        "import sys; sys.exit()",
        "def f():\n    1/0\ntry:\n    f()\nexcept ZeroDivisionError as e:\n    raise KeyError('worse') from e",
        "x = (1,\n",
        "import atexit, pickle\nclass A: pass\natexit.register(lambda: print(len(pickle.dumps(A())) > 0))",
        "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1/0",
    ],
    ids=["exit-code", "exit-message", "exit", "chained-error", "syntax-error", "atexit-pickle", "own-excepthook"],
)
def test_a_script_ends_as_under_python(tmp_path, body):
    (tmp_path / "script.py").write_text(body)
    ours = python("-c", RUN.format(False), "script.py", cwd=tmp_path)
    theirs = python("script.py", cwd=tmp_path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Lets a test run scripts in this process: what `python` sets up is put back after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    return tmp_path


def test_ctrl_c_ends_with_130(here, capsys):
    (here / "script.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(SystemExit) as ending:
        run_like_python(find_code("script.py"), [])
    assert ending.value.code == 130
    assert capsys.readouterr().err.strip().endswith("KeyboardInterrupt")


def test_only_our_frames_leave_a_traceback(here):
    (here / "script.py").write_text("def f():\n    raise ValueError('bad')\nf()")
    from foreshock.script.execute import execute

    with pytest.raises(ValueError, match="bad") as caught:
        execute(find_code("script.py"), [])
    error = without_our_frames(caught.value)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-2:] == ["<module>", "f"]
    assert "execute" not in frames


@pytest.mark.parametrize(
    ("target", "module", "message"),
    [
        ("absent.py", False, "there is no script 'absent.py'; scripts there: train.py"),
        ("folder", False, r"'folder' is a folder, not a script; did you mean 'folder/__main__.py'\?"),
        ("no_such_module", True, "there is no module 'no_such_module'"),
        ("no_such.module", True, "there is no module 'no_such.module'"),
        ("time", True, "there is no module 'time' with Python code"),
    ],
)
def test_a_target_that_cannot_run_is_named(here, target, module, message):
    (here / "train.py").touch()
    (here / "folder").mkdir()
    (here / "folder" / "__main__.py").touch()
    with pytest.raises(UsageError, match=message):
        find_code(target, module=module)
