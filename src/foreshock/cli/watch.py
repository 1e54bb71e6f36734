"""`foreshock run`: watches a script that nobody edits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreshock.cli.reading import is_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreshock.script.watcher import Watcher

__all__ = ["watch"]


@click.command(
    "run",
    short_help="Watch an unmodified training script.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    help="The run directory to make; runs/SCRIPT, or runs/SCRIPT-2, ... where that exists, when not given.",
)
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as after `python -m`.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def watch(output: Path | None, module: bool, quiet: bool, script: str, arguments: tuple[str, ...]) -> None:
    """Runs SCRIPT with its ARGUMENTS as `python SCRIPT ARGUMENTS` would, and records its training.

    The script is not changed and cannot tell: same arguments, same exit code, same tracebacks, bit for bit the same
    training. The loss is caught where `backward` is called on it, steps where an optimizer makes them, names from the
    modules that hold the parameters. A script with several optimizers gives one run for each: runs/SCRIPT,
    runs/SCRIPT.1, ... Optimizers whose step takes a closure (LBFGS) are left alone.

    What foreshock has to say goes to standard error. Options for foreshock come before SCRIPT.

    \b
    foreshock run train.py --lr 3e-4
    foreshock run -o runs/warm -m project.train --epochs 3
    torchrun --nproc-per-node 2 --no-python foreshock run train.py        (the first rank is watched)
    """
    from foreshock.script import embedded

    with embedded():
        _watch(output, module, quiet, script, arguments)


def _watch(output: Path | None, module: bool, quiet: bool, script: str, arguments: tuple[str, ...]) -> None:
    from foreshock.script import find_code, run_like_python, when_imported

    code = find_code(script, module=module)
    directory = output or _free(Path("runs") / (script if module else Path(script).stem))
    if is_run(directory):
        from foreshock.errors import RunError

        raise RunError(f"{str(directory)!r} holds a run already; choose another --output, or move it away")
    watchers: list[Watcher] = []

    def say(line: str) -> None:
        if not quiet or "stopped" in line or "not watched" in line:
            click.echo(f"foreshock: {line}", err=True)

    def install() -> None:
        from foreshock.script.watcher import Watcher

        watchers.append(Watcher(directory, say))
        watchers[0].install()

    if os.environ.get("RANK", "0") == "0":
        when_imported("torch", install)
    process = os.getpid()
    try:
        run_like_python(code, arguments)
    finally:
        if os.getpid() == process:  # a child that the script forked ends here too
            _finish(watchers, say)


def _free(path: Path) -> Path:
    count, result = 1, path
    while result.exists():
        count += 1
        result = path.with_name(f"{path.name}-{count}")
    return result


def _finish(watchers: list[Watcher], say: Callable[[str], None]) -> None:
    """Closes the runs and says in a few lines what was found and how to read more."""
    runs = []
    for watcher in watchers:
        watcher.close()
        runs += watcher.runs
    if not runs:
        say("no optimizer made a step in this process, nothing was recorded")
        return
    from foreshock.cli.console import verdict_line
    from foreshock.run import Run

    for watched in runs:
        run = Run.load(watched.path)
        say(f"{watched.path}: {verdict_line(run, run.events)}")
    say(f"next: foreshock report {' '.join(str(watched.path) for watched in runs)}")
