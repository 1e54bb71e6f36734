"""`foreshock run`: watches a script that nobody edits."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreshock.cli.reading import is_run

if TYPE_CHECKING:
    from foreshock.script.watcher import Watcher

__all__ = ["watch"]


@click.command(
    "run",
    short_help="Watch an unmodified training script.",
    context_settings={"allow_interspersed_args": False},
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
    directory = (output or _free(Path("runs") / (script if module else Path(script).stem))).absolute()
    if is_run(directory):
        from foreshock.errors import RunError

        raise RunError(f"{os.path.relpath(directory)!r} holds a run already; choose another --output, or move it away")
    remarks = _Remarks(quiet)
    watchers: list[Watcher] = []

    def install() -> None:
        try:
            from foreshock.script.watcher import Watcher

            watchers.append(Watcher(directory, remarks.say, remarks.warn))
            watchers[0].install()
        except Exception as error:  # the script was importing torch, and goes on with it
            remarks.warn(f"the script is not watched: {error!r}")

    if os.environ.get("RANK", "0") == "0":
        when_imported("torch", install)
    process = os.getpid()
    try:
        run_like_python(code, arguments)
    finally:
        if os.getpid() == process:  # a child that the script forked ends here too
            try:
                for watcher in watchers:
                    watcher.close()
                _finish(watchers, remarks)
            except Exception as error:  # how the script ended is what counts
                remarks.warn(f"the run could not be summed up: {error!r}")


class _Remarks:
    """Lines on standard error; one that cannot be written is nothing to a script."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.start = quiet, os.getcwd()

    def say(self, line: str) -> None:
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        # Paths are shown as they are typed where the command was; the script may have gone elsewhere since.
        with suppress(OSError, ValueError):
            click.echo(f"foreshock: {line.replace(self.start + os.sep, '')}", err=True)


def _free(path: Path) -> Path:
    count, result = 1, path
    while result.exists():
        count += 1
        result = path.with_name(f"{path.name}-{count}")
    return result


def _finish(watchers: list[Watcher], remarks: _Remarks) -> None:
    """Says in a few lines what was found and how to read more."""
    runs = [watched for watcher in watchers for watched in watcher.runs]
    if not runs:
        remarks.say("no optimizer made a step in this process, nothing was recorded")
        return
    from foreshock.cli.console import verdict_line
    from foreshock.run import Run

    for watched in runs:
        run = Run.load(watched.path)
        remarks.say(f"{watched.path}: {verdict_line(run, run.events)}")
    remarks.say(f"next: foreshock report {' '.join(str(watched.path) for watched in runs)}")
