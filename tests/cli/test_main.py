"""The group: help, versions, errors, exit codes, and how little it imports."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

import foreshock as fs
from foreshock.cli import main

COMMANDS = ("demo", "run", "report", "scan", "explain", "import", "info", "threshold",
            "batch-size", "bursts", "reproduce")


def test_help_lists_every_command_with_a_sentence(foreshock):
    text = foreshock("--help").output
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "foreshock run train.py" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(foreshock, name):
    text = foreshock(name, "--help").output
    assert f"foreshock {name}" in text or name == "demo"
    assert "-h, --help" in text


def test_version(foreshock):
    assert foreshock("--version").output == f"foreshock {fs.__version__}\n"


def test_a_misspelt_command_is_answered_with_the_right_one(foreshock):
    assert "Did you mean 'scan'" in foreshock("scna", code=2).output


def test_expected_errors_are_one_line_without_a_traceback(foreshock):
    result = foreshock("info", "runs/absent", code=2)
    assert result.output.startswith("error: there is no 'runs/absent'")
    assert len(result.output.splitlines()) == 1


def test_a_closed_pipe_ends_quietly_and_not_with_the_code_of_a_find(runs):
    code = (
        "import sys; from foreshock.cli import main; import foreshock.cli.info as info\n"
        "def closed(*_): raise BrokenPipeError\n"
        "info.versions = closed; main(['info'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_ctrl_c_ends_quietly_with_130(foreshock, monkeypatch):
    from foreshock.cli import info

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "versions", interrupted)
    assert foreshock("info", code=130).output == ""


def test_foreshock_warnings_are_lines_on_standard_error(foreshock, monkeypatch):
    import warnings

    from foreshock.cli import info

    def warned():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("a file is damaged", fs.ForeshockWarning, "file", 1)
        return {}

    monkeypatch.setattr(info, "versions", warned)
    assert foreshock("info").stderr == "warning: a file is damaged\n"


def test_completion_knows_the_commands(foreshock):
    context = click.Context(main)
    assert main.list_commands(context) == list(COMMANDS)
    assert main.get_command(context, "absent") is None
