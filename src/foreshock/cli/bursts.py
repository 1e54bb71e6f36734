"""`foreshock bursts`: how far an optimizer goes after one burst of gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from foreshock.cli.threshold import named_settings

if TYPE_CHECKING:
    from rich.table import Table

    from foreshock.bursts import BurstResponse

__all__ = ["bursts"]

# Settings that have an option of their own; all others are given by --set. By name, so that --help needs nothing else.
OPTIONS = {
    "beta1": "Decay of the average of gradients.",
    "beta2": "Decay of the average of their squares.",
    "beta": "S3's one decay.",
    "p": "S3's order.",
    "momentum": "Momentum of SGD, RMSprop and their like.",
    "alpha": "Decay of RMSprop's squares.",
}
# What is compared: the usual optimizers, in the order of their names in the paper's table.
USUAL: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("AdamW", {"beta1": one, "beta2": two}) for one, two in ((0.9, 0.999), (0.9, 0.99), (0.9, 0.95), (0.95, 0.95))),
    *((name, {}) for name in ("NAdam", "RAdam", "AMSGrad", "Adamax", "AdaBelief", "Adan", "AdEMAMix")),
    *(("S3", {"p": p}) for p in (1, 2, 3, 6)), ("S3", {"nesterov": False}), ("S3", {"beta": 0.9, "beta2": 0.999}),
    *((name, {}) for name in ("RMSprop", "Adagrad", "Lion", "SignSGD")), ("SGD", {"momentum": 0.9}),
)  # fmt: skip


def _names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from foreshock.bursts import known

    return [name.lower() for name in known() if name.lower().startswith(incomplete.lower())]


def _options(command: Any) -> Any:
    for name, text in reversed(OPTIONS.items()):
        command = click.option(f"--{name}", name, type=float, help=text)(command)
    return command


@click.command(short_help="Show how far an optimizer goes after one burst of gradient.")
@click.argument("name", metavar="[OPTIMIZER]", required=False, shell_complete=_names)
@_options
@click.option(
    "--set", "more", multiple=True, callback=named_settings, metavar="NAME=VALUE",
    help="Any other setting, spelled as in torch: --set nesterov=false, --set betas=0.9,0.95. Repeatable.",
)
@click.option("--ratio", type=float, help="Size of the burst in usual gradients, |g|/sqrt(v); by default beyond all.")
@click.option("--step", type=float, help="Step that it comes at, from 1 on; by default one in the long run.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bursts(
    name: str | None, more: dict[str, object], ratio: float | None, step: float | None, as_json: bool,
    **options: float | None,
) -> None:
    """Shows how far an optimizer moves a coordinate after one gradient that dwarfs all others, in learning rates.

    An update is bounded by what numerator and denominator have seen; momentum then carries a burst on. The first and
    the largest update, the sum of all of them, D, and the most that any gradients can make of one, are in closed form.
    Without OPTIMIZER: those of the usual ones.

    \b
    foreshock bursts
    foreshock bursts adamw --beta2 0.95
    foreshock bursts s3 --p 2
    foreshock bursts adam --ratio 30 --step 100
    """
    import json
    import math

    from foreshock.bursts import burst_response
    from foreshock.cli import console

    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    twice = [key for key in more if key in given]
    if twice:
        raise click.UsageError(f"{twice[0]} is given twice, by --{twice[0]} and by --set")
    given |= more
    ratio, step = math.inf if ratio is None else ratio, math.inf if step is None else step
    if name is not None:
        found = burst_response(name, ratio=ratio, step=step, **given)
        if as_json:
            click.echo(json.dumps(console.plain_json(_facts(found)), indent=2, allow_nan=False))
            return
        console.print_table(_card(found))
        return
    if given:
        raise click.UsageError(f"{', '.join(given)} given, but no optimizer: foreshock bursts adamw --beta2 0.95")
    all_of_them = [burst_response(each, ratio=ratio, step=step, **settings) for each, settings in USUAL]
    if as_json:
        click.echo(json.dumps(console.plain_json([_facts(each) for each in all_of_them]), indent=2, allow_nan=False))
        return
    console.print_table(_list(all_of_them))
    click.echo(
        "\nIn learning rates, of one coordinate. D is the sum over the burst and all later steps; inf: until other "
        "gradients drown it.\nThe bound is the most that any gradients can make of one update."
    )


def _facts(found: BurstResponse) -> dict[str, Any]:
    return {
        "optimizer": found.optimizer, "settings": dict(found.settings), "first": found.first, "peak": found.peak,
        "displacement": found.displacement, "sup": found.sup, "course": list(found.course), "unit": found.unit,
        "ratio": found.ratio, "step": found.step, "formulas": dict(found.formulas), "reference": found.reference,
        "text": found.text,
    }  # fmt: skip


def _card(found: BurstResponse) -> Table:
    from rich.markup import escape

    from foreshock.cli import console

    rows = console.table("what", "value")
    rows.show_header = False
    texts = found.formulas
    facts = {
        found.label: f"[bold]{escape(found.text)}[/]",
        "first update": _number(found.first) + _formula(texts.get("first")),
        "largest": _number(found.peak),
        "D, their sum": _number(found.displacement) + _formula(texts.get("displacement")),
        "bound": (_number(found.sup) if found.sup == found.sup else "not known") + _formula(texts.get("sup")),
        "in": escape(found.unit),
        "half of it": _half(found),
        "settings": escape("  ".join(f"{key}={value:g}" if not isinstance(value, bool) else f"{key}={value}"
                                     for key, value in found.settings.items())),
        "source": escape(found.reference),
    }  # fmt: skip
    for what, text in facts.items():
        rows.add_row(f"[bold]{escape(what)}[/]", text)
    return rows


def _formula(text: str | None) -> str:
    from rich.markup import escape

    return f"  = {escape(text)}" if text else ""


def _half(found: BurstResponse) -> str:
    """Returns after how many steps half of D is behind."""
    from itertools import accumulate
    from math import isfinite

    if not isfinite(found.displacement):
        return "-"
    steps = next((k for k, sum_ in enumerate(accumulate(found.course), 1) if sum_ >= found.displacement / 2), 0)
    return f"after {steps} step{'s' if steps != 1 else ''}" if steps else "-"


def _list(found: list[BurstResponse]) -> Table:
    from rich.markup import escape

    from foreshock.cli import console

    rows = console.table("optimizer", "bound", "first", "largest", "D", numbers=("bound", "first", "largest", "D"))
    for each in found:
        numbers = (each.sup, each.first, each.peak, each.displacement)
        rows.add_row(f"[bold]{escape(each.label)}[/]", *("-" if one != one else _number(one) for one in numbers))
    return rows


def _number(value: float) -> str:
    return f"{value:.4g}"
