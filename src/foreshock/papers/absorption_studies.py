"""What each group of arms shows: numbers for claims, runs to open, rows of a table, lines for figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from foreshock.papers.absorption_arms import ARMS, DESCENT, HALF, STEPS
from foreshock.papers.absorption_spikes import relapses
from foreshock.papers.absorption_timeline import BEGIN, DRIFT_STEPS, PRINTED, at, calm_run, drifts, raised, stages
from foreshock.papers.absorption_training import Trace, train
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["COLUMNS", "causes", "cures", "descent", "formats", "settings", "timeline", "trained"]

COLUMNS = ("training", "seed", "steps", "spikes", "first", "final loss", "|W_G|", "|mu_G|", "cosine", "seconds")
WATCHED = ("stock", "float64", "exact")
SAME = ("exact", "float64-logits", "margin", "repaired")  # arms that are to be float64 in all but name
PRINTED_SIGNALS = {
    "absorbed": "softmax_absorbed", "w": "softmax_wrong", "W_G": "softmax_head_mean", "W*": "softmax_head_centred",
    "mu_G": "softmax_feature_mean", "mean logit": "softmax_logit",
}  # fmt: skip


def trained(name: str, seed: int, steps: int, shelf: Shelf, live: Live) -> Trace:
    """Returns the training of an arm, from the shelf if it is there; shortened to `steps` if that is not 0."""
    if name not in shelf:
        arm = ARMS[name]
        shelf[name] = train(
            arm, seed, min(arm.steps, steps or arm.steps), monitored=name in WATCHED,
            keep=DRIFT_STEPS if name == "stock" else (), live=live,
        )  # fmt: skip
    found: Trace = shelf[name]
    return found


def timeline(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the reference run, watched, beside the same in float64 and with the exact loss (X3, X4, X6, X7)."""
    traces = _all(WATCHED, seed, steps, shelf, live)
    stock, double, exact = (traces[name] for name in WATCHED)
    numbers = _ends(traces) | stages(stock) | _alike({"exact": exact}, double)
    until = min(len(exact.losses), HALF)
    if until > BEGIN:
        numbers |= calm_run(exact, until) | calm_run(double, until)
    moved = drifts(stock)
    if moved:
        numbers |= {
            "drift: identity": max(each.identity for each in moved.values()),
            "drift: cosine of theory": min(each.theory_cosine for each in moved.values()),
            "drift: theory too long by": max(each.theory_ratio for each in moved.values()),
        }
    if seed == 0:  # the paper's table is of one start
        numbers |= {
            f"{name} at {step}": at(stock.run, signal, step)
            for step in PRINTED if step < len(stock.losses) for name, signal in PRINTED_SIGNALS.items()
        }  # fmt: skip
    return _found(traces, numbers, {"levels": raised(stock.run), "drifts": moved})


def cures(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns what becomes of the spikes with the gradient mended in each of six ways (X4)."""
    names = ("float64-logits", "margin", "repaired", "row-centred", "re-centred")
    traces = _all(names, seed, steps, shelf, live)
    double = trained("float64", seed, steps, shelf, live)
    return _found(traces, _ends(traces) | _alike(traces, double))


def causes(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns spikes made without rounding, and spikes ended from a checkpoint with nothing but another loss (X5)."""
    traces = _all(("emulated", "exact-later"), seed, steps, shelf, live)
    return _found(traces, _ends(traces))


def settings(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns what eps, a clamp, weight decay, label smoothing and a shallower network do to the same training."""
    names = ("eps-1e-6", "eps-1e-5", "clamp", "decay-0.01", "decay-0.1", "smoothing", "one-layer")
    traces = _all(names, seed, steps, shelf, live)
    numbers = _ends(traces)
    peaks = {name: max((trace.truth[each.peak] for each in relapses(trace.losses)), default=math.nan)
             for name, trace in traces.items()}  # fmt: skip
    numbers |= {"decay-0.1: highest": float(peaks["decay-0.1"])}
    smooth = traces["smoothing"]
    if len(smooth.losses) > BEGIN:
        numbers["smoothing: W_G grows by"] = smooth.end.head_mean / float(smooth.common[BEGIN, 0])
    return _found(traces, numbers)


def formats(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the spikes of logits in 16 bits."""
    traces = _all(("bfloat16", "float16"), seed, steps, shelf, live)
    return _found(traces, _ends(traces))


def descent(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns what plain gradient descent at a learning rate of 100,000 does once the data are fitted (X8)."""
    traces = _all(("descent-stock", "descent-exact", "descent-margin"), seed, steps, shelf, live)
    numbers: dict[str, float] = {}
    for name, trace in traces.items():
        if len(trace.losses) == trace.arm.steps:
            later = np.nan_to_num(trace.truth[DESCENT[0] :], nan=np.inf)
            numbers |= {f"{name}: highest": float(later.max()), f"{name}: final loss": float(later[-1])}
    return _found(traces, numbers)


def _all(names: Sequence[str], seed: int, steps: int, shelf: Shelf, live: Live) -> dict[str, Trace]:
    return {
        name: trained(name, seed, steps, shelf, _part(live, place / len(names), 1 / len(names)))
        for place, name in enumerate(names)
    }


def _part(live: Live, begin: float, share: float) -> Live:
    tell: Callable[[float, str], None] = lambda done, text: live(begin + share * done, text)  # noqa: E731
    return tell


def _ends(traces: dict[str, Trace]) -> dict[str, float]:
    """Returns, arm by arm, spikes by step 2600 and by the end, and head and features there; of whole trainings only."""
    numbers: dict[str, float] = {}
    for name, trace in traces.items():
        spikes = relapses(trace.losses)
        if len(trace.losses) >= HALF:
            numbers[f"{name}: spikes by {HALF}"] = float(sum(each.first < HALF for each in spikes))
        if len(trace.losses) >= STEPS:
            numbers |= {
                f"{name}: spikes": float(len(spikes)), f"{name}: final loss": float(trace.truth[-1]),
                f"{name}: W_G": trace.end.head_mean, f"{name}: mu_G": trace.end.feature_mean,
                f"{name}: cosine": trace.end.cosine,
            }  # fmt: skip
    return numbers


def _alike(traces: dict[str, Trace], double: Trace) -> dict[str, float]:
    """Returns by how much losses differ from those in float64: at step 2600, at the end, and at the worst step."""
    numbers: dict[str, float] = {}
    for name, trace in traces.items():
        if len(trace.losses) != len(double.losses) or len(trace.losses) < HALF:
            continue
        ratio = trace.truth / double.truth
        whole = len(ratio) >= STEPS
        if name in SAME:
            numbers[f"{name}: off float64 at {HALF}"] = abs(float(ratio[HALF - 1]) - 1)
            numbers[f"{name}: off float64 at worst"] = float(np.abs(ratio - 1).max())
            numbers |= {f"{name}: off float64": abs(float(ratio[-1]) - 1)} if whole else {}
        elif whole:
            numbers[f"{name}: loss over float64's"] = float(ratio[-1])
    return numbers


def _found(traces: dict[str, Trace], numbers: dict[str, float], drawn: dict[str, object] | None = None) -> Found:
    runs = {f"{name}-seed-{trace.seed}": trace.run for name, trace in traces.items()}
    return Found(numbers, runs, [_row(trace) for trace in traces.values()], {"traces": traces, **(drawn or {})})


def _row(trace: Trace) -> tuple[str, ...]:
    spikes = relapses(trace.losses)
    return (
        trace.arm.title, str(trace.seed), f"{len(trace.losses):,}", str(len(spikes)),
        str(spikes[0].first) if spikes else "-", f"{trace.truth[-1]:.3g}", f"{trace.end.head_mean:.2g}",
        f"{trace.end.feature_mean:.3g}", f"{trace.end.cosine:.2f}", f"{trace.seconds:.1f}",
    )  # fmt: skip
