"""Writes the generated pages of the documentation: `make docs`. A test fails when one is out of date."""

from __future__ import annotations

import inspect
from pathlib import Path

import foreshock
from foreshock.signals import markdown_table

SIGNALS = """\
# Signals

Every number foreshock measures, defined once, in `foreshock/signals.py`, from which this page is generated
(`make docs`). A run-wide signal is a column of its own name; per tensor it is `name/parameter.name`, or
`name/module.name` where the tensors of a large model are grouped. "Over ranks" says how the ranks' values, and inside
a group the tensors' values, become one. The unit "1" marks ratios and counts.

"""

NAMES = """\
# Public names

What `import foreshock` offers; generated from the docstrings (`make docs`), which say more: `help(foreshock.Run)`.

| name | what it is |
|---|---|
"""


def names() -> str:
    """Returns a row for each public name: its call and the first sentence of its docstring."""
    rows = []
    for name in foreshock.__all__:
        value = getattr(foreshock, name)
        called = callable(value) and not (inspect.isclass(value) and issubclass(value, BaseException))
        described = "the installed version" if isinstance(value, str) else inspect.getdoc(value) or ""
        first = described.partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip(".")
        cell = first.replace("|", "\\|")
        rows.append(f"| `{name}{'()' if called else ''}` | {cell} |\n")
    return "".join(rows)


def pages() -> dict[str, str]:
    """Returns {file name in docs/: its text}."""
    return {"signals.md": SIGNALS + markdown_table(), "names.md": NAMES + names()}


if __name__ == "__main__":
    for name, text in pages().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
