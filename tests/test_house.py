"""The house rules that a reader relies on: imports go one way, the record side has no torch, the docs are true."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foreshock

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "foreshock"

# room -> the rooms it may import, anywhere in its files; a room may always import itself and `errors`.
RECORD_SIDE: dict[str, set[str]] = {
    "errors": set(),
    "signals": set(),
    "stats": set(),
    "bursts": set(),
    "run": {"signals"},
    "detect": {"run", "stats", "signals"},
    "diagnose": {"bursts", "detect", "run", "signals", "stats"},
    "batch_size": {"run", "signals", "stats", "hooks"},  # hooks: where steps are timed
    "policies": {"run"},
    "testing": {"detect", "policies", "run"},
    "report": {"batch_size", "bursts", "detect", "diagnose", "run", "signals", "stats"},
}
TORCH_SIDE: dict[str, set[str]] = {
    "distributed": set(),
    "stability": {"hooks"},
    "curvature": {"stability", "distributed"},
    "numerics": {"distributed"},
    "landscape": {"curvature", "stability", "distributed", "report"},
    "optim": {"bursts", "distributed", "hooks"},
    "heads": {"distributed"},
    "noise": {"batch_size", "curvature", "distributed", "hooks"},
    "probes": {"run", "attempt", "batch_size", "curvature", "noise", "numerics", "stability", "distributed"},
    "hooks": set(),
    "mishaps": set(),
    "provenance": {"probes"},
    "attach": {"probes", "run"},
    "recorder": {"probes", "run"},
    "attempt": set(),
    "changes": {"probes", "provenance"},
    "monitor": {
        "attach", "attempt", "changes", "curvature", "mishaps", "provenance", "recorder", "probes", "detect", "run",
    },
    "guard": {
        "monitor", "policies", "curvature", "stability", "numerics", "probes", "detect", "run", "distributed",
        "attach", "mishaps",
    },
    "history": {"attach", "curvature", "guard", "mishaps", "monitor", "run"},
    "replay": {"diagnose", "probes", "attach", "distributed", "guard", "history", "hooks", "monitor", "run"},
    "attribution": {"curvature", "stability", "distributed", "monitor", "history", "hooks", "replay", "run"},
    "script": {"monitor"},
    "requeue": set(),
    "threads": set(),
    "demo": {"monitor", "run", "threads"},
    "papers": {
        "monitor", "probes", "numerics", "curvature", "landscape", "stability", "diagnose", "detect", "run", "report",
        "threads", "optim", "bursts", "heads", "noise", "batch_size",
    },
}
# Files of a room of the record side that need torch and are imported only by those who ask for them.
TORCH_FILES = {f"testing/{name}.py" for name in ("faults", "injector", "batches", "cells", "optimizers", "trials")} | {
    f"batch_size/{name}.py" for name in ("followers", "moments", "switch", "throughput", "unchanged")
}
# The command line opens everything, but its files import the torch side only inside the commands that train.
FRONT: dict[str, set[str]] = {
    "cli": {"script", "demo", "papers", "report", "diagnose", "detect", "run", "stability", "bursts", "batch_size"},
    "__main__": {"cli"},
}
ALLOWED = RECORD_SIDE | TORCH_SIDE | FRONT


def rooms() -> list[str]:
    found = [path.stem for path in PACKAGE.glob("*.py")] + [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    return sorted({*found} - {"__init__"})


def files(room: str) -> list[Path]:
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yields the dotted names a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            if node.module == "foreshock":
                yield from (f"foreshock.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", rooms())
def test_imports_go_one_way(room):
    assert room in ALLOWED, f"{room} is new: give it a row in the table above"
    allowed = ALLOWED[room] | {room, "errors"}
    for path in files(room):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("foreshock.")} & set(rooms())
        assert used <= allowed, f"{path.relative_to(ROOT)} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("room", sorted({*RECORD_SIDE, "cli"} & set(rooms())))
def test_the_record_side_names_no_torch(room):
    for path in files(room):
        if path.relative_to(PACKAGE).as_posix() not in TORCH_FILES:
            assert not any(name.split(".")[0] == "torch" for name in imports(path)), path.relative_to(ROOT)


def python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_record_side_works_with_torch_blocked(tmp_path):
    modules = [f"foreshock.{room}" for room in RECORD_SIDE if room in rooms()]
    python(
        f"""
import importlib, sys
sys.modules["torch"] = None
for name in {modules}:
    importlib.import_module(name)
import numpy as np
import foreshock as fs
loss = np.linspace(2, 1, 400) + 0.01 * np.random.default_rng(0).standard_normal(400)
loss[300] = 9
fs.Run.from_arrays({{"loss": loss}}).save("a")
run = fs.Run.load("a")
assert [event.peak for event in fs.scan(run) if event.kind == "spike"] == [300]
fs.report(run, "a.html")
from foreshock.cli import main
for arguments in (["--help"], ["info", "a"], ["report", "a"], ["scan", "a"], ["explain", "a"]):
    try:
        main(arguments)
    except SystemExit as ending:
        assert ending.code == (1 if arguments[0] == "scan" else 0), (arguments, ending.code)
""",
        tmp_path,
    )


def test_importing_foreshock_imports_neither_torch_nor_numpy(tmp_path):
    """So it costs next to nothing: the budget is 1.3 times the import of numpy."""
    loaded = python("import sys, foreshock; print(*sys.modules)", tmp_path).split()
    assert not {"torch", "numpy", "rich", "click", "jinja2"} & set(loaded)


def test_help_imports_neither_numpy_nor_rich(tmp_path):
    code = "import sys; from foreshock.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = python(code, tmp_path).split()
    assert not {"torch", "numpy", "rich", "jinja2"} & set(loaded)


def test_every_public_name_exists_and_is_documented():
    text = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)", text, flags=re.MULTILINE))
    for name in foreshock.__all__:
        assert getattr(foreshock, name) is not None
        assert name in dir(foreshock)
    assert documented == set(foreshock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quake'"):
        _ = foreshock.quake


def test_the_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"docs/{name} is old: make docs"


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
