"""`foreshock batch-size`: what a run's gradient noise and step times say about its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from foreshock.cli.reading import open_run, reading_options

if TYPE_CHECKING:
    from rich.table import Table

    from foreshock.batch_size.recorded import FromRun

__all__ = ["batch_size"]


@click.command("batch-size", short_help="Say whether a run's batch should grow, from its noise and step times.")
@click.argument("path", metavar="RUN", type=click.Path())
@click.option("--fixed", type=float, metavar="SECONDS", help="a of step seconds a + b B, where the run does not tell.")
@click.option("--per-sample", type=float, metavar="SECONDS", help="b of it.")
@click.option("--batch", "batches", type=int, multiple=True, help="A size to choose from. Repeatable.")
@click.option("--threshold", type=float, default=0.10, show_default=True, help="Least gain of a switch, as a share.")
@click.option("--switch-time", type=float, default=0.0, metavar="SECONDS", help="What a switch costs.")
@click.option("--remaining", type=float, metavar="SECONDS", help="How long the training would go on as it is.")
@click.option("--lr-aware", is_flag=True, help="Goodput times the root of the batch.")
@click.option("-c", "c", type=float, default=2.0, show_default=True, help="Critical batch size over noise scale.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reading_options
def batch_size(
    path: str, fixed: float | None, per_sample: float | None, batches: tuple[int, ...], threshold: float,
    switch_time: float, remaining: float | None, lr_aware: bool, c: float, as_json: bool, form: str | None,
    columns: dict[str, str],
) -> None:  # fmt: skip
    """Reads a run's noise scale (probes.NoiseScale) and step times, and says what batch size they speak for.

    RUN is a run directory. Step times are those it recorded, where it had several batch sizes; else give the line
    a + b B with --fixed and --per-sample.

    \b
    foreshock batch-size runs/train
    foreshock batch-size runs/train --fixed 0.08 --per-sample 0.0004 --switch-time 40 --remaining 7200
    foreshock batch-size runs/train --batch 256 --batch 512 --lr-aware --json
    """
    import json
    import math

    from foreshock.batch_size.recorded import recorded_advice
    from foreshock.cli import console

    if (fixed is None) != (per_sample is None):
        raise click.UsageError("--fixed and --per-sample belong together: step seconds are a + b B")
    line = None if fixed is None or per_sample is None else (fixed, per_sample)
    found = recorded_advice(
        open_run(path, form=form, columns=columns), line=line, batches=batches, lr_aware=lr_aware, c=c,
        threshold=threshold, switch_time=switch_time, remaining_time=math.inf if remaining is None else remaining,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(console.plain_json(found.to_dict()), indent=2, allow_nan=False))
        return
    scale = f"{found.noise_scale:.4g} ({found.low:.4g} to {found.high:.4g})" if found.status == "ok" else found.status
    click.echo(f"noise scale {scale}, batch {found.current:,}" + (f", chi {found.chi:.3g}" if found.chi else ""))
    if found.advice.goodput is not None:
        console.print_table(_curve(found))
    click.echo(f"\n{found.advice.text}")
    if found.schedule is not None and len(found.schedule.phases) > 1:
        click.echo(f"\nA training like this one, from its start:\n{found.schedule.text}")


def _curve(found: FromRun) -> Table:
    from foreshock.cli import console

    rows = console.table("batch", "goodput", "over now", "seconds a step", numbers=("batch", "goodput", "over now"))
    goodput = found.advice.goodput
    assert goodput is not None
    now = goodput.at(found.current)
    for candidate, value in sorted(goodput.curve.items(), key=lambda item: str(item[0]).zfill(12)):
        size = candidate[-1] if isinstance(candidate, tuple) else candidate
        known = found.times is not None and size in found.times.seconds
        seconds = f"{found.times.seconds[size]:.4g}" if found.times is not None and known else "-"
        mark = " *" if candidate == goodput.best else ""
        rows.add_row(f"{size:,}{mark}", f"{value:.4g}", f"{value / now - 1:+.1%}", seconds)
    return rows
