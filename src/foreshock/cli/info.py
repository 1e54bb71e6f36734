"""`foreshock info`: what a run holds, or which versions are installed."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from foreshock.cli.reading import open_run

if TYPE_CHECKING:
    from foreshock.run import Run

__all__ = ["info", "versions"]

# Distributions foreshock uses, and the extra that brings the optional ones.
PACKAGES = {
    "torch": "", "numpy": "", "click": "", "rich": "", "jinja2": "",
    "scikit-learn": "demo", "matplotlib": "figures", "tensorboard": "tensorboard",
}


@click.command(short_help="Show a run's metadata and columns, or the versions installed here.")
@click.argument("path", metavar="[RUN]", required=False, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def info(path: str | None, as_json: bool) -> None:
    """Shows what a run holds: settings, columns, length, damage. Without RUN: the versions to put into a bug report.

    \b
    foreshock info
    foreshock info runs/train
    """
    import json

    from foreshock.cli import console

    facts = describe(open_run(path)) if path is not None else versions()
    if as_json:
        click.echo(json.dumps(console.plain_json(facts), indent=2, allow_nan=False, default=str))
        return
    rows = console.table("what", "value")
    rows.show_header = False
    settings = facts.pop("meta", {})
    for name, value in (facts | settings).items():
        rows.add_row(f"[bold]{name}[/]", _shown(value))
    console.print_table(rows)


def versions() -> dict[str, Any]:
    """Returns the versions of everything that matters, without importing any of it."""
    from foreshock import __version__

    facts: dict[str, Any] = {"foreshock": __version__, "python": sys.version.split()[0]}
    facts["platform"] = platform.platform()
    for package, extra in PACKAGES.items():
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = f"not installed (pip install 'foreshock[{extra}]')" if extra else "not installed"
    return facts


def describe(run: Run) -> dict[str, Any]:
    """Returns what the files of a run hold, and under "meta" what its metadata say."""
    from foreshock.report.interventions import totals

    acted = totals(run.actions)
    findings = dict(Counter(finding["kind"] for finding in run.findings))
    return {
        "path": None if run.path is None else str(run.path),
        "steps": len(run),
        "first and last step": [int(run.steps[0]), int(run.steps[-1])] if len(run) else [],
        "ranks": list(run.ranks),
        "stored events": len(run.events),
        **({"interventions": acted, "steps taken": int(run.taken.sum())} if acted else {}),
        **({"findings": findings} if findings else {}),
        "columns": [column for column in run.columns if "/" not in column],
        "per tensor": sorted({column.partition("/")[0] for column in run.columns if "/" in column}),
        "problems": [str(problem) for problem in run.problems],
        "meta": run.meta,
    }


def _shown(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, dict):
        return escape("  ".join(f"{key}={inner}" for key, inner in value.items()))
    if isinstance(value, list | tuple):
        if all(isinstance(inner, dict) for inner in value):
            return "\n".join(_shown(inner) for inner in value) or "-"
        more = f" and {len(value) - 40} more" if len(value) > 40 else ""
        return escape(", ".join(str(inner) for inner in value[:40]) + more) or "-"
    return escape(str(value))
