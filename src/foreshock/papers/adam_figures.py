"""Figures of the Adam-spikes reproduction: parabola, stages, spikes against crossings, cures, rescues, Transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foreshock.papers.adam_cures import CURES, Cure
from foreshock.papers.adam_exact import Hyper
from foreshock.papers.adam_sines import RESCUES
from foreshock.papers.adam_study import Found, settled_runs
from foreshock.papers.adam_text import LR
from foreshock.papers.calm_spikes import match, spikes
from foreshock.papers.drawing import EDGE, GREY, WIDTH, blank, edge_line, heading, spread
from foreshock.papers.stage_figure import CHI, LOSS, RAW, caption, passing, staged
from foreshock.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]

Studies = Mapping[int, Mapping[str, Found]]  # seed -> training -> what it found

SPIKE = "#b3261e"
BETAS = (0.9, 0.99, 0.999)


def figures(found: Studies) -> dict[str, Figure]:
    """Returns the figures that the trainings at hand allow, by file name."""
    makers: dict[str, Callable[[Studies], Figure | None]] = {
        "parabola": parabola, "wide-stages": wide_stages, "sines": sines, "sines-stages": sines_stages,
        "cures": cures, "rescues": rescues, "transformer": transformer,
        "transformer-stages": transformer_stages,
    }
    made = {name: make(found) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def parabola(found: Studies) -> Figure | None:
    """Returns loss and chi on the parabola for three beta2, beside gradient descent and the closed form."""
    study = _first(found, "parabola")
    if study is None:
        return None
    with blank(WIDTH, 2.9) as figure:
        grid = figure.subplots(2, len(BETAS), sharex="col")
        for place, (column, beta2) in enumerate(zip(grid.T, BETAS, strict=True)):
            run = study.runs[f"parabola-beta2-{beta2:g}"]
            loss, chi = run["loss"], run["chi"]
            steps = np.arange(min(len(loss), 1200 if beta2 < 0.999 else len(loss)))
            heading(column[0], f"\u03b2\u2082 {beta2:g}", "no spike" if beta2 == 0.9 else "")
            column[0].plot(steps, np.maximum(loss[steps], 1e-300), color=LOSS, linewidth=0.6)
            column[0].set_yscale("log")
            descent = 0.5 * 0.9 ** (2.0 * steps)
            column[0].plot(steps[descent > 1e-120], descent[descent > 1e-120], color=GREY, linewidth=0.8)
            lowest = {0.9: 1e-14, 0.99: 1e-24}.get(beta2, 1e-160)
            column[0].set_ylim(lowest, 10)
            edge_line(column[1])
            column[1].plot(steps, chi[steps], color=CHI)
            column[1].set(ylim=(0, 1.5), xlim=(0, len(steps)), xlabel="step")
            up = study.numbers.get(f"up at {beta2:g}")
            if up is not None:
                column[1].axvline(up - 1, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
                column[1].text(up - 1, 0.1, f" {up - 1:.0f}", fontsize=7, color=GREY, ha="left")
            if place == 0:
                column[0].set_ylabel("loss")
                column[1].set_ylabel(r"$\chi$")
                column[0].text(170, 1e-12, "gradient descent", fontsize=7, color=GREY, va="top")
    return figure


def wide_stages(found: Studies) -> Figure | None:
    """Returns the spike of the wide network through its stages."""
    study = _first(found, "wide")
    if study is None or "passage" not in study.drawn:
        return None
    run, passage = study.runs["wide"], study.drawn["passage"]
    event = passing(run, passage.up, passage.down - 1)
    window = max(passage.up - 40, 0), min(passage.peak + 25, len(run) - 1)
    return staged(run, event, window, limit=100, title="52,001 parameters, full batch, Adam at lr 0.02")


def sines(found: Studies) -> Figure | None:
    """Returns loss, chi and raw curvature of the whole training on two sines, spikes and crossings marked."""
    study = _first(found, "sines")
    if study is None:
        return None
    run = study.runs["sines"]
    with blank(WIDTH, 3.5) as figure:
        grid = figure.subplots(3, 1, sharex=True, height_ratios=(1.2, 1, 0.8))
        losses, steps = run["loss"], run.steps
        for first, last in settled_runs(run, "chi"):
            for axes in grid:
                axes.axvspan(first, last, color="#f6e3b4", linewidth=0, zorder=0)
        grid[0].plot(steps, losses, color=LOSS, linewidth=0.7)
        peaks = [spike.peak for spike in spikes(losses)]
        grid[0].plot(peaks, losses[peaks], linestyle="", marker="v", markersize=3, color=SPIKE)
        grid[0].set(yscale="log")
        grid[0].minorticks_off()
        caption(grid[0], ("loss", LOSS), (f"{len(peaks)} spikes", SPIKE))
        edge_line(grid[1])
        grid[1].plot(steps[50:], run["chi"][50:], color=CHI, linewidth=0.7)
        grid[1].set_ylim(0, 1.2)
        caption(grid[1], (r"$\chi$", CHI), ("above 1 for three steps or more (shaded)", "#96700a"))
        edge_line(grid[2])
        grid[2].plot(steps, run["hessian_top"] * Hyper().lr / 2, color=RAW, linewidth=0.8)
        grid[2].set(ylim=(0, None), xlim=(0, len(run)), xlabel="step")
        caption(grid[2], (r"$\lambda_{\max}(H)$ without preconditioner, in units of 2/lr", RAW))
    return figure


def sines_stages(found: Studies) -> Figure | None:
    """Returns one spike of the training on two sines through its stages: the seventh, or the last."""
    study = _first(found, "sines")
    if study is None or not study.drawn["passages"]:
        return None
    passages, run = study.drawn["passages"], study.runs["sines"]
    passage = passages[min(6, len(passages) - 1)]
    window = max(passage.up - 90, 0), min(passage.peak + 60, len(run) - 1)
    return staged(
        run, passing(run, passage.up, passage.down - 1), window, limit=100,
        title="61 parameters, full batch, Adam at lr 0.02, one spike of many",
    )


def cures(found: Studies) -> Figure | None:
    """Returns how many spikes are left for each setting, and over the bars what the loss at the end is times larger."""
    tables = [runs["sines-cures"].drawn["cures"] for runs in found.values() if "sines-cures" in runs]
    if not tables:
        return None
    usual = Hyper()
    names = {"eps": "eps", "beta2": "\u03b2\u2082", "lr": "lr", "beta1": "\u03b2\u2081"}
    with blank(WIDTH, 2.3) as figure:
        widths = [len(values) for values in CURES.values()]
        grid = figure.subplots(1, len(CURES), sharey=True, width_ratios=widths)
        for axes, (name, values) in zip(grid, CURES.items(), strict=True):
            heading(axes, names[name])
            for place, table in enumerate(tables):
                base: Cure = table["eps", usual.eps]
                for at, value in enumerate(values):
                    cure: Cure = table[name, value]
                    wide = 0.8 / len(tables)
                    x = at - 0.4 + wide * (place + 0.5)
                    own = getattr(usual, name) == value
                    axes.bar(x, cure.spikes, wide * 0.92, color=GREY if own else CHI, alpha=1 if place == 0 else 0.5)
                    if place == 0:
                        axes.text(
                            at, max(each[name, value].spikes for each in tables) + 1.5,
                            "" if own else f"\u00d7{cure.final / base.final:.2g}", fontsize=6, ha="center", color=EDGE,
                        )
            axes.set_xticks(range(len(values)), [_short(value) for value in values])
            axes.tick_params(axis="x", labelsize=6.5, length=0)
        most = max(cure.spikes for table in tables for cure in table.values())
        grid[0].set(ylabel="spikes, twofold or more", ylim=(0, 1.1 * most + 4))
        first, *others = [seed for seed, runs in found.items() if "sines-cures" in runs]
        pale = f"; pale: seed{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}" if others else ""
        figure.supxlabel(
            f"over the bars: final loss in units of the usual one, seed {first} (strong{pale}); grey: as usual",
            fontsize=7,
        )
    return figure


def rescues(found: Studies) -> Figure | None:
    """Returns what settings changed at the alarm do: to the spike of the wide network, to those on two sines."""
    wide, several = _first(found, "wide"), [runs["sines"] for runs in found.values() if "sines" in runs]
    if wide is None or "alarm" not in wide.drawn or not several:
        return None
    with blank(WIDTH, 2.3) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        alarm, losses = wide.drawn["alarm"], wide.drawn["losses"]
        shown = {"as it is": LOSS} | {f"eps {eps} at the alarm": colour for eps, colour in (
            ("0.1", "#4d7a1c"), ("0.01", "#2358a8"), ("0.001", "#c2410c")
        )}  # fmt: skip
        ends = spread([math.log10(losses[name][-1]) for name in shown], 1.0)
        for (name, colour), end in zip(shown.items(), ends, strict=True):
            steps = np.arange(max(alarm - 30, 0), len(losses[name]))
            left.plot(steps, losses[name][steps], color=colour, linewidth=0.9)
            spot = len(losses[name]) + 1, 10**end
            left.text(*spot, name.split(" at")[0], fontsize=7, color=colour, va="center")
        left.axvline(alarm, color=GREY, linewidth=0.7)
        left.text(alarm, left.get_ylim()[1], " alarm", fontsize=7, color=GREY, va="top")
        left.set(yscale="log", xlabel="step", ylabel="loss", xlim=(max(alarm - 30, 0), len(losses["as it is"])))
        heading(left, "Wide network", "one spike")
        heading(right, "Two sines", "share of spikes prevented")
        names = [name for name, *_ in RESCUES]
        for place, study in enumerate(several):
            values = [study.numbers.get(f"rescued by {name}", float("nan")) for name in names]
            height = 0.8 / len(several)
            right.barh(
                np.arange(len(names)) - 0.4 + height * (place + 0.5), values, height * 0.9, color=CHI,
                alpha=1 if place == 0 else 0.5,
            )
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.set(xlim=(0, 1.02), xticks=[0, 0.5, 1])
    return figure


def transformer(found: Studies) -> Figure | None:
    """Returns the loss of the Transformer for each beta2, and chi where it was read."""
    study = _first(found, "transformer")
    if study is None:
        return None
    names = list(study.runs)
    with blank(WIDTH, 3.0) as figure:
        grid = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
        for place, (column, name) in enumerate(zip(grid.T, names, strict=True)):
            run = study.runs[name]
            _training(column, run)
            heading(column[0], study.drawn["titles"][name], f"{len(spikes(run['loss']))} spikes out of calm")
            if place == 0:
                column[0].set_ylabel("loss above its floor")
                column[1].set_ylabel(r"$\chi$")
    return figure


def transformer_stages(found: Studies) -> Figure | None:
    """Returns the highest announced spike of the Transformer at the slowest beta2 through its stages."""
    study = _first(found, "transformer")
    if study is None:
        return None
    run = next(iter(study.runs.values()))
    if "chi" not in run:
        return None
    losses = run["loss"]
    pairs = match(spikes(losses), settled_runs(run, "chi")).pairs
    if not pairs:
        return None
    spike, (up, last) = max(pairs, key=lambda pair: losses[pair[0].peak] / losses[pair[0].baseline])
    window = max(up - 40, 1), min(spike.peak + 40, len(run) - 1)
    title = "A Transformer of 112,512 parameters on novels, Adam at lr 0.01"
    return staged(run, passing(run, up, last), window, limit=2 / LR, title=title)


def _training(column: Any, run: Run) -> None:
    losses = run["loss"]
    column[0].plot(run.steps, np.maximum(losses, 1e-7), color=LOSS, linewidth=0.7)
    peaks = [spike.peak for spike in spikes(losses)]
    column[0].plot(peaks, losses[peaks], linestyle="", marker="v", markersize=3, color=SPIKE)
    column[0].set_yscale("log")
    column[0].minorticks_off()
    edge_line(column[1])
    column[1].set(xlabel="step", ylim=(0, 2), xlim=(0, len(run)))
    if "chi" not in run:
        column[1].text(0.5, 0.25, "not read", transform=column[1].transAxes, fontsize=7, color=GREY, ha="center")
        return
    for first, last in settled_runs(run, "chi"):
        for axes in column:
            axes.axvspan(first - 1, last + 1, color="#f6e3b4", linewidth=0, zorder=0)
    steps, chi = run.measured("chi")
    column[1].plot(steps[steps >= 50], chi[steps >= 50], color=CHI, linewidth=0.9)


def _short(value: float) -> str:
    """Returns a setting for a narrow axis.

    >>> _short(0.9999), _short(1e-8), _short(0.0)
    ('.9999', '1e-8', '0')
    """
    return f"{value:g}".replace("e-0", "e-").removeprefix("0") or "0"


def _first(found: Studies, name: str) -> Found | None:
    """Returns what the first seed that has this training found."""
    return next((runs[name] for runs in found.values() if name in runs), None)
