"""The reference run of the landscape-spike paper, dissected: anatomy, floor, growth, frequencies, split, cosines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from foreshock.curvature.edge import edge
from foreshock.curvature.split import split
from foreshock.landscape import (
    Trajectory,
    condensation,
    drift_plane,
    floor_index,
    llas_index,
    sharpness,
    spectrum_1d,
    surface,
)  # fmt: skip
from foreshock.papers.landscape_anatomy import NEAR, Spike, filled
from foreshock.papers.landscape_net import tanh_problem
from foreshock.papers.landscape_training import REFERENCE_LR, Trace, descend
from foreshock.papers.studies import Found, Live, Shelf, silent

__all__ = ["LEAST", "dissect", "reference", "reference_run", "row"]

Floats = npt.NDArray[np.float64]
LEAST, MOST = 7000, 20_000  # updates: seeds 0 to 7 meet their first spike between 4,500 and 15,500
APPROACH = 1600  # updates before the minimum over which loss and sharpness are compared
BACK = 125  # updates before the end of the approach, at which the floor's base point lies
OFFSETS = (-0.833, -0.5, 0.0, 0.167, 0.334, 1.0)  # of the drift's length: where the floor is measured
SHORTEST = 5  # updates of an ascent that a slope can be fitted to
WIDTH_AT = 0.1  # of loss above the floor
PARITY = 2  # steps by which lambda_max may come down after the peak and count as with it: it flickers with the parity
LONG = 266  # updates after the minimum that the longest window of principal components takes in
FINE, COARSE = 41, 9  # points of the surface of the loss, and of the sharpness, along each axis


def reference_run(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Trace:
    """Returns the run TL-GD of a seed, from the shelf where it was done before; seed 0 is the published one.

    Args:
        seed: of `numpy.random.default_rng`, which draws the start.
        live: told how far it is.
        steps: updates, in place of 7,000 (seed 0) or as many as it takes to see two spikes over.
        shelf: of the seed.
    """
    kept = shelf if shelf is not None else {}
    if "tl-gd" not in kept:
        most = steps or (MOST if seed else LEAST)
        kept["tl-gd"] = descend(tanh_problem(seed), REFERENCE_LR, least=steps or LEAST, most=most, live=live)
    trace: Trace = kept["tl-gd"]
    return trace


def reference(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns what the run TL-GD of a seed says on each claim, see `reference_run`."""
    trace = reference_run(seed, live, steps, shelf)
    numbers = dissect(trace)
    if seed == 0 and trace.spikes:
        numbers |= _published(trace, numbers)
    drawn: dict[str, Any] = {"trace": trace}
    remarks = []
    if trace.spikes:
        drawn |= picture(trace)
        if "L6-growth" not in numbers:
            remarks.append(f"TL-GD, seed {seed}: the first ascent is too short to fit its growth, L6")
    else:
        remarks.append(f"TL-GD, seed {seed}: no spike in {len(trace.losses) - 1:,} updates, so nothing to dissect")
    return Found(
        numbers, {f"tl-gd-seed-{seed}": trace.to_run(f"TL-GD, seed {seed}", training="tl-gd", seed=seed)},
        [row("TL-GD, lr 0.05", seed, trace)], drawn, remarks,
    )


def dissect(trace: Trace) -> dict[str, float]:
    """Returns what the run says on each claim, by the claim's name: nothing where it has no spike."""
    if not trace.spikes:
        return {}
    numbers = _counts(trace) | _anatomy(trace.spikes, trace.edge) | _first(trace, trace.spikes[0])
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def row(title: str, seed: int, trace: Trace) -> tuple[str, ...]:
    """Returns a training's row of the table."""
    spikes = trace.spikes
    lead = f"{spikes[0].minimum - spikes[0].up}" if spikes else "-"
    readings = trace.sharpness[np.isfinite(trace.sharpness)]
    highest = readings[len(readings) // 20 :].max() / trace.edge  # the start may be sharper than all the rest
    return (
        title, str(seed), f"{len(trace.losses) - 1:,}", str(len(spikes)),
        f"x{max(spike.height for spike in spikes):.1f}" if spikes else "-", lead, f"{highest:.3f}",
        f"{trace.losses[-1]:.2g}", f"{trace.seconds:.1f}",
    )


def _published(trace: Trace, numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers that are known of the first spike of seed 0 alone: its steps, shares and floor."""
    spike, floor = trace.spikes[0], floor_of_valley(trace, trace.spikes[0])
    again = {f"L4-{name}": numbers[f"low-{name}"] for name in ("ascent", "descent", "calm") if f"low-{name}" in numbers}
    return again | {
        "L1-crossing": spike.up, "L2-minimum": spike.minimum, "L2-peak": spike.peak,
        "L4-u1-least": numbers["low-u1"], "L4-u5-most": numbers["low-u5"],
        "L5-crossing": float(np.interp(trace.edge, floor.curvatures, floor.offsets)),
    }


def _counts(trace: Trace) -> dict[str, float]:
    """Returns how well chi_grad > 1 and chi > 1 tell the steps that raise the loss."""
    rises = np.diff(trace.losses) > 0
    numbers: dict[str, float] = {}
    for name, alarm in (("chi-grad", trace.chi_gradient > 1.0), ("chi", filled(trace.sharpness) > trace.edge)):
        hits = float((alarm[:-1] & rises).sum())
        numbers[f"{name}-recall"] = hits / max(float(rises.sum()), 1.0)
        numbers[f"{name}-precision"] = hits / max(float(alarm[:-1].sum()), 1.0)
    return numbers


def _anatomy(spikes: list[Spike], limit: float) -> dict[str, float]:
    """Returns the claims about the order of events, over all spikes that are complete."""
    whole = [spike for spike in spikes if spike.back is not None] or spikes
    numbers = {
        "order": float(np.mean([_ordered(spike) for spike in whole])),
        "sharp-at-minimum": min(spike.sharp for spike in whole) / limit,
        "flat-at-peak": max(spike.flat for spike in whole) / limit,
        "L2-confirmed": max(
            (abs(spike.confirmed - spike.minimum) for spike in whole[:1] if spike.confirmed is not None),
            default=math.inf,
        ),
        "L2-height": whole[0].height,
        "L2-flattening": float(whole[0].peak - whole[0].down) if whole[0].down is not None else -math.inf,
        "first-lead": float(whole[0].minimum - whole[0].up),
    }
    if len(whole) > 1:
        leads = [spike.minimum - spike.up for spike in whole]
        numbers["leads-shrink"] = max(after / before for before, after in pairwise(leads))
        numbers["heights-shrink"] = max(after.height / before.height for before, after in pairwise(whole))
    return numbers


def _ordered(spike: Spike) -> bool:
    confirmed = spike.confirmed is not None and abs(spike.confirmed - spike.minimum) <= NEAR
    down = spike.down is not None and spike.down <= spike.peak + PARITY
    return spike.up < spike.minimum < spike.trigger < spike.peak and confirmed and down


def _first(trace: Trace, spike: Spike) -> dict[str, float]:
    """Returns the claims about the first spike."""
    begin = max(spike.minimum - APPROACH, 0)
    index = llas_index(trace.losses[begin : spike.minimum], trace.sharpness[begin : spike.minimum])
    numbers = {"L3-llas": index.correlation, "L6-growth": growth(trace, spike)}
    numbers |= frequencies(trace, spike)
    numbers |= _split(trace, spike)
    floor = floor_of_valley(trace, spike)
    numbers |= {
        "L5-floor": float(np.diff(floor.losses).max()), "L5-curvature": float(np.diff(floor.curvatures).min()),
    }
    if spike.back is not None:
        before, after = (_condensed(trace, t).mean for t in (spike.minimum, min(spike.back, len(trace.losses) - 1)))
        numbers["L8-condensation"] = abs(after - before)
    return numbers


def growth(trace: Trace, spike: Spike) -> float:
    """Returns the measured growth of ln(L - L_floor) over the ascent, in units of 2 ln|1 - lr lambda_max|.

    From the step at which the excess is the loss at the minimum, to where lambda_max has fallen halfway to the edge.
    """
    floor = spike.low * 0.97  # the loss at the minimum holds some motion along u1 already
    sharp = trace.sharpness
    first = next((t for t in range(spike.minimum, spike.peak) if trace.losses[t] > 1.5 * spike.low), spike.peak)
    halfway = (sharp[first] + trace.edge) / 2
    last = next((t for t in range(first, spike.peak) if sharp[t] < halfway), spike.peak)
    window = np.arange(first, last)
    if len(window) < SHORTEST:
        return math.nan
    slope = np.polyfit(window, np.log(trace.losses[window] - floor), 1)[0]
    return float(slope / np.mean(2.0 * np.log(np.abs(1.0 - trace.lr * sharp[window]))))


def moments(spike: Spike) -> list[int]:
    """Returns the steps of a spike at which directions are looked at."""
    first = spike.up + min(75, (spike.minimum - spike.up) // 2)
    return [first, (first + spike.minimum) // 2, spike.minimum, (spike.minimum + spike.peak) // 2, spike.peak]


def windows(spike: Spike) -> dict[str, tuple[int, int]]:
    """Returns the windows over which the real change of the output is taken; ordinary descent ends long before."""
    calm = spike.up - 125
    found = {"calm": (max(calm - 400, 0), calm), "ascent": (spike.minimum, spike.peak)}
    if spike.back is not None:
        found["descent"] = (spike.peak, spike.back)
    return {name: pair for name, pair in found.items() if pair[1] > pair[0]}


def frequencies(trace: Trace, spike: Spike) -> dict[str, float]:
    """Returns shares of the lowest wave in J u_1, J u_5, and the real change, step by step."""
    first, fifth = [], []
    for t in moments(spike):
        vectors = trace.top(t, 5)[1]
        changes = trace.problem.jacobian(trace.thetas[t]) @ vectors
        first.append(spectrum_1d(changes[:, 0])[1])
        fifth.append(spectrum_1d(changes[:, 4])[1])
    numbers = {"low-u1": min(first), "low-u5": max(fifth)}
    numbers |= {f"low-{name}": _share(trace, pair) for name, pair in windows(spike).items()}
    return {name: float(value) for name, value in numbers.items()}


def steps_spectrum(trace: Trace, window: tuple[int, int]) -> Floats:
    """Returns the spectrum of the real change of the output over one step, mean over the steps of a window."""
    outputs = [trace.problem.outputs(trace.thetas[t]) for t in range(window[0], window[1] + 1)]
    return np.asarray(np.mean([spectrum_1d(after - before) for before, after in pairwise(outputs)], axis=0))


def _share(trace: Trace, window: tuple[int, int]) -> float:
    return float(steps_spectrum(trace, window)[1])


def _split(trace: Trace, spike: Spike) -> dict[str, float]:
    """Returns the shares of the growth of ln chi over the approach, which plain descent leaves to the landscape."""
    begin = max(spike.up - 400, 0)
    flat, closure, _ = trace.problem.tensors(trace.thetas[begin])
    optimizer = torch.optim.SGD([flat], lr=trace.lr)
    before = edge(closure, optimizer, tol=1e-3)
    with torch.no_grad():
        flat.copy_(torch.from_numpy(trace.thetas[spike.minimum]))
    found = split(before, edge(closure, optimizer, tol=1e-3))
    return {"L7-landscape": found.landscape / found.growth, "L7-preconditioner": found.preconditioner / found.growth}


def _valley(trace: Trace, spike: Spike) -> tuple[int, int, int]:
    """Returns begin and end of the drift, and the base point between, as updates done."""
    end = spike.minimum - 9
    return spike.up, max(end - BACK, (spike.up + end) // 2), end


def floor_of_valley(trace: Trace, spike: Spike) -> Any:
    """Returns the floor of the valley that the approach descends, along its drift and across u1."""
    begin, base, end = _valley(trace, spike)
    flat, closure, _ = trace.problem.tensors(trace.thetas[base])
    drift = torch.from_numpy(trace.thetas[end] - trace.thetas[begin])
    u = torch.from_numpy(trace.top(base)[1][:, 0].copy())
    length = float((drift - u * (u @ drift)).norm())
    return floor_index(closure, [flat], drift, u, [length * offset for offset in OFFSETS], rise=WIDTH_AT)


def _condensed(trace: Trace, t: int) -> Any:
    return condensation(torch.from_numpy(trace.problem.neurons_of(trace.thetas[t])))


def picture(trace: Trace) -> Mapping[str, Any]:
    """Returns what the figures of the first spike need: surface, sharpness, path, floor, spectra, maps, components."""
    spike = trace.spikes[0]
    begin, base, end = _valley(trace, spike)
    final = len(trace.losses) - 1
    last = final if spike.back is None else spike.back
    flat, closure, _ = trace.problem.tensors(trace.thetas[base])
    ends = (torch.from_numpy(trace.thetas[t]) for t in (begin, end))
    top = torch.from_numpy(trace.top(base)[1][:, 0].copy())
    plane = drift_plane([flat], next(ends), next(ends), top)
    path = Trajectory([flat])
    for t in range(begin, min(max(last, spike.minimum + LONG), final) + 1):
        path.add(torch.from_numpy(trace.thetas[t]), step=t)
    shown = range(begin, last + 1)
    projected = plane.project([torch.from_numpy(trace.thetas[t]) for t in shown], steps=shown)
    alphas, betas = projected.grid(FINE, margin=0.12)
    coarse = np.linspace(alphas[0], alphas[-1], COARSE), np.linspace(betas[0], betas[-1], COARSE)
    components = {
        name: path.pca(3, first=first, last=until, top=top)
        for name, first, until in (
            ("long", spike.minimum - 134, spike.minimum + LONG), ("spike", spike.minimum - 19, spike.minimum + 96),
            ("ascent", spike.minimum + 6, spike.peak + 20),
        )
    }
    changes = trace.problem.jacobian(trace.thetas[spike.minimum]) @ trace.top(spike.minimum, 5)[1]
    return {
        "surface": surface(closure, plane, alphas, betas), "sharp": sharpness(closure, plane, *coarse),
        "path": projected, "floor": floor_of_valley(trace, spike), "components": components,
        "directions": [spectrum_1d(changes[:, j]) for j in range(5)],
        "windows": {name: steps_spectrum(trace, pair) for name, pair in windows(spike).items()},
        "maps": {name: _condensed(trace, t) for name, t in (("before", spike.minimum), ("after", last))},
    }
