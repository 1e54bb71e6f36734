"""The command line: thin, opens files, prints, sets exit codes. Imports torch only in the commands that train."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import IO, Any

import click

from foreshock.errors import ForeshockError, ForeshockWarning

__all__ = ["main"]

# command -> (module of foreshock.cli, attribute); a module is imported when its command is named or listed.
_COMMANDS = {
    "demo": ("demo", "demo"),
    "run": ("watch", "watch"),
    "report": ("report", "report"),
    "scan": ("scan", "scan"),
    "explain": ("explain", "explain"),
    "import": ("importing", "import_"),
    "info": ("info", "info"),
    "threshold": ("threshold", "threshold"),
    "batch-size": ("batch_size", "batch_size"),
    "bursts": ("bursts", "bursts"),
    "reproduce": ("reproduce", "reproduce"),
}
INTERRUPTED = 128 + 2  # what a shell shows for a program that SIGINT ended
PIPE_CLOSED = 128 + 13  # the same for SIGPIPE; never 1, which `scan` uses for "found something"


class _Failure(click.ClickException):
    """A foreseen error: its message is for people, its exit code is 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.format_message()}", file=file, err=True)


class _Commands(click.Group):
    """Loads subcommands lazily and is the one place where errors become messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"foreshock.cli.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], list(_COMMANDS), n=1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        # Not `warnings.catch_warnings`: the script that `run` watches changes the filters as it likes.
        shown, warnings.showwarning = warnings.showwarning, _show_warning(warnings.showwarning)
        try:
            return super().invoke(ctx)
        except ForeshockError as error:
            raise _Failure(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # Whatever Python still flushes at exit must not fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        finally:
            warnings.showwarning = shown


def _show_warning(default: Any) -> Any:
    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, ForeshockWarning):
            click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {message}", err=True)
        else:
            default(message, category, *rest, **named)

    return show


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from foreshock import __version__

        click.echo(f"foreshock {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Tab completion: put  eval \"$(_FORESHOCK_COMPLETE=bash_source foreshock)\"  into ~/.bashrc "
    "(zsh_source for zsh, fish_source for fish).",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Measures, predicts, explains and prevents loss spikes in neural-network training.

    \b
    See it work, on three small trainings (about a minute):
        foreshock demo
    Watch a script that nobody edits, then read what happened:
        foreshock run train.py --lr 3e-4
        foreshock report runs/train -o report.html
    Look at a training you already have (W&B, TensorBoard, Hugging Face, CSV, JSONL):
        foreshock report trainer_state.json -o report.html
    Fail a pipeline when a run spiked:
        foreshock scan runs/train --json
    Ask why it spiked, what proves it, and what to change:
        foreshock explain runs/train
    Know when an optimizer goes unstable:
        foreshock threshold adam --lr 3e-4
    ... and how far one bad gradient takes it:
        foreshock bursts adamw --beta2 0.95
    Check a paper's claims on this machine:
        foreshock reproduce edge-of-stability
    """
