"""`foreshock threshold`: when an optimizer goes unstable, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from foreshock.stability import Threshold

__all__ = ["named_settings", "threshold"]

# Settings that have an option of their own; all others are given by --set. Here by name, so that --help needs no numpy.
OPTIONS = {
    "lr": "Learning rate.",
    "momentum": "Momentum of SGD, RMSprop, Muon and their like.",
    "dampening": "Dampening of SGD's momentum.",
    "beta1": "Decay of the average of gradients.",
    "beta2": "Decay of the average of their squares.",
    "beta3": "Decay of AdEMAMix's slow average.",
    "alpha": "Share of AdEMAMix's slow average; decay of RMSprop's squares.",
    "nu": "Share of the average in QHM and QHAdam.",
    "weight_decay": "Coupled or decoupled, as the optimizer has it.",
    "step": "Step about to be taken, from 1 on; inf for the limit of many.",
    "rho": "SAM's radius.",
    "grad_norm": "Gradient norm, for SAM.",
}


def named_settings(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    """Returns the settings that were given as name=value."""
    found: dict[str, object] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.strip() or not text.strip():
            raise click.BadParameter(f"{value!r} is not of the form name=value", ctx, parameter)
        found[name.strip().replace("-", "_")] = _value(text.strip())
    return found


def _value(text: str) -> object:
    if "," in text:
        return tuple(_value(part.strip()) for part in text.strip("()[] ").split(",") if part.strip())
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from foreshock.stability import optimizers

    return [name.lower() for name in optimizers() if name.lower().startswith(incomplete.lower())]


def _options(command: Any) -> Any:
    for name, text in reversed(OPTIONS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=float, help=text)(command)
    return command


@click.command(short_help="Show when an optimizer goes unstable: value, formula, source.")
@click.argument("name", metavar="[OPTIMIZER]", required=False, shell_complete=_names)
@_options
@click.option("--nesterov/--no-nesterov", default=None, help="Nesterov momentum.")
@click.option(
    "--set", "more", multiple=True, callback=named_settings, metavar="NAME=VALUE",
    help="Any other setting, spelled as in torch: --set momentum_decay=0.004, --set betas=0.9,0.95. Repeatable.",
)
@click.option("--list", "listed", is_flag=True, help="List the optimizers that are known, with their formulas.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def threshold(
    name: str | None, more: dict[str, object], listed: bool, as_json: bool, **options: float | None
) -> None:
    """Shows the sharpness above which an optimizer goes unstable, with its derivation in one line.

    The threshold is on S = lambda_max(P^-1 H), the top eigenvalue of the Hessian H divided by the optimizer's
    denominator P. What is not given has the optimizer's usual value. Without OPTIMIZER: the list of those known.

    \b
    foreshock threshold adam --lr 3e-4
    foreshock threshold sgd --lr 0.1 --momentum 0.9 --nesterov
    foreshock threshold nadam --lr 1e-3 --step 100 --json
    foreshock threshold muon --lr 0.02 --set shape=1024,256
    """
    import json

    from foreshock.cli import console

    given: dict[str, object] = {key: value for key, value in options.items() if value is not None}
    twice = [key for key in more if key in given]
    if twice:
        raise click.UsageError(f"{twice[0]} is given twice, by --{twice[0].replace('_', '-')} and by --set")
    given |= more
    if name is None or listed:
        if given:
            raise click.UsageError(f"{', '.join(given)} given, but no optimizer: foreshock threshold adam --lr 3e-4")
        if as_json:
            click.echo(json.dumps(console.plain_json([_facts(each) for each in _all()]), indent=2, allow_nan=False))
        else:
            console.print_table(_list(_all()))
            click.echo(
                "\nOn the top eigenvalue of the Hessian H, divided by the denominator P, at the usual settings.\n"
                "Formal: the step is bounded whatever the gradient, so the threshold is no alarm."
            )
        return
    from foreshock.stability import stability_threshold

    found = stability_threshold(name, **given)
    if as_json:
        click.echo(json.dumps(console.plain_json(_facts(found)), indent=2, allow_nan=False))
        return
    console.print_table(_card(found, given))


def _all() -> list[Threshold]:
    from foreshock.stability import optimizers, stability_threshold
    from foreshock.stability.table import RULES

    usual = {each: rule.settings["lr"] for each, rule in RULES.items()}
    # NaN, an lr nobody calls usual, is the one number that differs from itself
    return [stability_threshold(each, lr=usual[each] if usual[each] == usual[each] else 1e-3) for each in optimizers()]


def _facts(found: Threshold) -> dict[str, Any]:
    from dataclasses import fields

    return {
        field.name: dict(found.settings) if field.name == "settings" else getattr(found, field.name)
        for field in fields(found)
    }


def _card(found: Threshold, given: dict[str, Any]) -> Table:
    from rich.markup import escape

    from foreshock.cli import console
    from foreshock.stability.wording import plain

    rows = console.table("what", "value")
    rows.show_header = False
    usual = [f"{key}={_shown(value)}" for key, value in found.settings.items() if key not in given]
    set_here = [f"{key}={_shown(value)}" for key, value in found.settings.items() if key in given]
    facts = {
        found.name: f"[bold]{plain(found.value)}[/]" + ("  [yellow]formal, not an alarm[/]" if found.formal else ""),
        "threshold on": escape(found.quantity),
        "formula": escape(found.formula),
        "derivation": escape(found.derivation),
        "gain": f"q = Q(-1) = {plain(found.gain)}",
        "period": _period(found.period),
        "settings": escape("  ".join(set_here) + ("  usual: " if set_here and usual else "") + "  ".join(usual)),
        "assumes": escape("\n".join(found.assumptions)),
        "source": escape(found.reference),
    }
    for what, text in facts.items():
        rows.add_row(f"[bold]{what}[/]", text)
    return rows


def _period(steps: float) -> str:
    from foreshock.stability.wording import plain

    if steps == float("inf"):
        return "-"
    return f"{plain(steps)} steps, of the oscillation that grows"


def _list(found: list[Threshold]) -> Table:
    from rich.markup import escape

    from foreshock.cli import console
    from foreshock.stability.wording import plain

    rows = console.table("optimizer", "usually", "threshold", "on", numbers=("usually",))
    for each in found:
        scales = each.name != "SAM"  # whose threshold depends on lr and the gradient, not on their product alone
        usually = f"{each.value * each.settings['lr']:.4g}/lr" if scales else plain(each.value)
        rows.add_row(
            f"[bold]{each.name}[/]", usually, escape(each.formula),
            ("H" if each.quantity == "lambda_max(H)" else "P^-1 H") + (", formal" if each.formal else ""),
        )
    return rows


def _shown(value: float) -> str:
    from foreshock.stability.wording import plain

    return str(value) if isinstance(value, bool) else plain(value, thousands=False)
