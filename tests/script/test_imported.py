"""Being told of an import changes nothing about it."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from foreshock.script.imported import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = "a_module_of_this_test"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield name
    sys.modules.pop(name, None)
    sys.meta_path[:] = finders


def test_the_call_comes_once_after_the_module_is_complete(module):
    seen = []
    when_imported(module, lambda: seen.append(sys.modules[module].value))
    assert seen == []
    assert importlib.util.find_spec(module) is not None  # asking whether it exists imports nothing
    assert seen == []
    imported = importlib.import_module(module)
    assert seen == [1]
    assert "exec_module" not in vars(imported.__spec__.loader)
    importlib.reload(imported)
    assert seen == [1]


def test_a_module_that_is_there_already_calls_at_once():
    seen = []
    before = list(sys.meta_path)
    when_imported("sys", lambda: seen.append(True))
    assert seen == [True]
    assert sys.meta_path == before


def test_other_imports_pass_by(module):
    seen = []
    when_imported("a_module_that_nobody_imports", lambda: seen.append(True))
    assert importlib.import_module(module).value == 1
    assert seen == []
