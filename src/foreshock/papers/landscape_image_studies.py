"""The claims of the landscape-spike paper on the small CNN: anatomy, frequencies, condensation, projections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foreshock.curvature import Hessian, eigsh
from foreshock.landscape import (
    condensation,
    drift_plane,
    eigen_projections,
    output_changes,
    real_change,
    share_low,
    sharpness,
    surface,
    widths,
)  # fmt: skip
from foreshock.papers.landscape_anatomy import Spike
from foreshock.papers.landscape_arms import Arm, closest_pairs, compare, unreached
from foreshock.papers.landscape_images import ImageProblem, ImageTrace, filters, follow, image_problem, plainly
from foreshock.papers.studies import Found, Live, Shelf, silent
from foreshock.threads import one_thread

__all__ = ["image_arms", "image_labels", "image_rates", "image_run"]

LR = 0.1  # the paper's
LENGTH = 1300  # updates by which seeds 0 to 2 have had a spike that doubles the loss
TOP = 8  # eigenvectors whose outputs are looked at
WINDOW = 20  # updates over which ordinary change is taken: even, since the mode at the edge alternates
FINE, COARSE = 21, 6  # points of the surface, and of its sharpness, along each axis
LONGER, LOWER, PAIRS, PATIENCE = 100, 0.5, 4, 800  # of the arms: see `image_arms`
LABELS = 400  # updates with other labels

Floats = npt.NDArray[np.float64]


def image_run(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns the training at the paper's learning rate until a spike that doubles the loss is over, dissected."""
    problem, trace = _run(seed, live, steps, shelf)
    run = {f"cnn-seed-{seed}": trace.to_run(f"CNN, lr {LR}, seed {seed}", training="cnn", seed=seed)}
    spike = trace.highest
    rows = [_row(f"CNN, lr {LR:g}", seed, trace)]
    if spike is None:
        said = f"CNN, seed {seed}: no spike in {len(trace.losses) - 1:,} updates, so nothing to dissect"
        return Found({}, run, rows, {"trace": trace}, [said])
    with one_thread():
        shares = frequencies(problem, trace, spike)
        numbers = anatomy_numbers(trace, spike) | {f"cnn-{name}": value for name, value in shares.items()}
        drawn = {"trace": trace, "spike": spike, "shares": shares, **picture(problem, trace, spike)}
    return Found(numbers, run, rows, drawn)


def image_rates(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns trainings at half and at twice the learning rate."""
    traces, rows, runs = {}, [], {}
    for place, lr in enumerate((LR / 2, 2 * LR)):
        problem = image_problem(seed)
        trace = follow(problem, lr, steps or LENGTH // 2, live=_part(live, place, 2), until_over=True)
        traces[lr] = trace
        rows.append(_row(f"CNN, lr {lr:g}", seed, trace))
        name = f"cnn-lr-{lr:g}"
        runs[f"{name}-seed-{seed}"] = trace.to_run(f"CNN, lr {lr:g}, seed {seed}", training=name, seed=seed)
    numbers = {}
    low, high = traces[LR / 2], traces[2 * LR]
    if high.highest is not None:
        numbers["cnn-fast-height"] = high.highest.height
        until = len(high.losses)
        slow = low.losses[:until]
        numbers["cnn-slow-height"] = float((slow / np.minimum.accumulate(slow)).max())
    return Found(numbers, runs, rows, {"traces": traces})


def image_labels(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns two controls from one start: random labels (a target of high frequency), and one label in five wrong.

    The first asks whether the sharpest direction is of low frequency because the target is. The second gives a solution
    that generalises worse; how little the two differ along the sharpest directions is claim 5.
    """
    numbers, found = {}, {}
    for place, labels in enumerate(("true", "noisy", "random")):
        problem = image_problem(seed, labels=labels)
        live(place / 3, f"images with {labels} labels")
        plainly(problem, LR, steps or LABELS)
        found[labels] = problem
    with one_thread():
        width = _width(found["true"])
        for labels in ("true", "random"):
            first = _changes(found[labels], 1)[0]
            numbers[f"cnn-{labels}-labels-u1"] = float(share_low(found[labels].inputs, first, width))
        good, bad = found["true"], found["noisy"]
        pairs = eigsh(Hessian(good.loss, good.params), k=TOP, tol=1e-2)
        flat = [_flat(each.params).detach() for each in (good, bad)]
        apart = eigen_projections(good.outputs, good.params, pairs, (flat[0], flat[1]), test=good.test_outputs)
    errors = good.test_error(), bad.test_error()
    assert apart.test is not None
    numbers |= {
        "cnn-noisy-error": errors[1] / errors[0],
        "cnn-differ-train": float((apart.train[:2] ** 2).sum() / apart.difference[0] ** 2),
        "cnn-differ-test": float((apart.test[:2] ** 2).sum() / apart.difference[1] ** 2),
    }
    return Found(numbers, drawn={"projections": apart, "errors": errors})


def image_arms(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns the three arms of the condensation experiment, from 40 updates before the spike, for the second layer.

    The natural arm goes on for 100 updates after its spike; the others, at half the rate, until they are as low.
    """
    problem, trace = _run(seed, _part(live, 0, 2), steps, shelf)
    spike = trace.highest
    if spike is None or spike.back is None:
        said = f"condensation, CNN, seed {seed}: no spike that is over in {len(trace.losses) - 1:,} updates, so no arms"
        return Found({}, remarks=[said])
    checkpoint = max(spike.minimum - 40, 0)
    start = trace.path.snapshot(checkpoint)
    problem.stand_at(_flat(trace.path.snapshot(len(trace.losses) - 1)))
    after = plainly(problem, LR, LONGER)
    goal = float(after.min()) * (1 + 1e-6)
    problem.stand_at(_flat(trace.path.snapshot(len(trace.losses) - 1)))
    steps_taken = len(plainly(problem, LR, LONGER, until=goal)) - 1
    height = trace.losses[checkpoint:].max() / trace.losses[checkpoint]
    found = [_arm(problem, "natural", len(trace.losses) - 1 - checkpoint + steps_taken, float(height))]
    for place, name in enumerate(("quiet", "merged")):
        live(0.6 + 0.2 * place, f"images, condensation: the {name} arm")
        problem.stand_at(_flat(start))
        if name == "merged":
            _merge(problem, PAIRS)
        losses = plainly(problem, LOWER * LR, PATIENCE, until=goal)
        reached = len(losses) - 1 if losses[-1] < goal else None
        found.append(_arm(problem, name, reached, float(losses.max() / trace.losses[checkpoint])))
    problem.stand_at(_flat(start))
    origin = _arm(problem, "checkpoint", 0, 1.0)
    return Found(compare("cnn", found), drawn={"arms": [origin, *found]}, remarks=unreached("CNN", seed, found))


def anatomy_numbers(trace: ImageTrace, spike: Spike) -> dict[str, float]:
    """Returns the claims on the order of events of the highest spike, and on the way to the edge."""
    sharp, until = trace.sharpness, len(trace.losses) if spike.back is None else spike.back
    first = next((t for t in range(len(sharp)) if sharp[t] > trace.edge), len(sharp) - 1)
    way = [t for t in range(first + 1) if np.isfinite(sharp[t])]
    after = sharp[spike.peak + 1 : min(until + 10, len(sharp))]
    ascent = trace.chi_gradient[spike.trigger : spike.peak]
    numbers = {
        "cnn-height": spike.height, "cnn-sharp-at-minimum": spike.sharp / trace.edge,
        "cnn-flat-at-peak": spike.flat / trace.edge,
        "cnn-flat-after": float(np.nanmin(after)) / trace.edge if np.isfinite(after).any() else math.nan,
        "cnn-along-ascent": float(np.nanmedian(ascent)) if np.isfinite(ascent).any() else math.nan,
        "cnn-llas": float(np.corrcoef(np.log(trace.losses[way]), sharp[way])[0, 1]) if len(way) > 2 else math.nan,
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def frequencies(problem: ImageProblem, trace: ImageTrace, spike: Spike) -> dict[str, float]:
    """Returns the share of low frequencies in output changes: along eigenvectors, by chance, and really."""
    width = _width(problem)
    problem.stand_at(_flat(trace.path.snapshot(spike.minimum)))
    changes = _changes(problem, TOP)
    draw = torch.Generator().manual_seed(0)
    chance = torch.randn(sum(param.numel() for param in problem.params), generator=draw)
    by_chance = output_changes(problem.outputs, problem.params, [chance])[0]

    def low(change: Tensor) -> float:
        return float(share_low(problem.inputs, change, width))

    def between(first: int, last: int) -> float:
        ends = (trace.path.snapshot(first), trace.path.snapshot(last))
        return low(real_change(problem.outputs, problem.params, *ends))

    last = max(spike.minimum - 2 * WINDOW, 0)
    starts = np.linspace(min(200, last // 2), last, 7).astype(int)
    found = {f"low-u{j + 1}": low(change) for j, change in enumerate(changes)}
    found |= {
        "low-chance": low(by_chance), "low-ascent": between(spike.minimum, spike.peak),
    }
    ordinary = [between(t, t + WINDOW) for t in starts if t + WINDOW < spike.minimum]
    if ordinary:
        found["low-calm"] = float(np.median(ordinary))
    if spike.back is not None:
        found["low-descent"] = between(spike.peak, spike.back)
    return found


def picture(problem: ImageProblem, trace: ImageTrace, spike: Spike) -> Mapping[str, Any]:
    """Returns the surface of the loss around the spike with its path and sharpness, and maps of cosines."""
    last = len(trace.losses) - 1 if spike.back is None else spike.back
    begin = max(spike.minimum - 60, 0)
    problem.stand_at(_flat(trace.path.snapshot(spike.minimum)))
    top = eigsh(Hessian(problem.loss, problem.params), tol=1e-2)
    ends = trace.path.snapshot(begin), trace.path.snapshot(last)
    plane = drift_plane(problem.params, *ends, top)
    shown = range(begin, last + 1)
    path = plane.project([_flat(trace.path.snapshot(t)) for t in shown], steps=shown)
    alphas, betas = path.grid(FINE, margin=0.12)
    coarse = np.linspace(alphas[0], alphas[-1], COARSE), np.linspace(betas[0], betas[-1], COARSE)
    maps = {}
    for name, t in (("before", spike.minimum), ("after", last)):
        problem.stand_at(_flat(trace.path.snapshot(t)))
        maps[name] = condensation(*filters(problem)[1])
    problem.stand_at(_flat(trace.path.snapshot(spike.minimum)))
    return {
        "surface": surface(problem.loss, plane, alphas, betas),
        "sharp": sharpness(problem.loss, plane, *coarse, tol=0.05), "path": path, "maps": maps,
    }


def _run(seed: int, live: Live, steps: int, shelf: Shelf | None) -> tuple[ImageProblem, ImageTrace]:
    """Returns the main training, from the shelf where it was done before."""
    kept = shelf if shelf is not None else {}
    name = f"cnn-{seed}-{steps}"
    if name not in kept:
        problem = image_problem(seed)
        kept[name] = (problem, follow(problem, LR, steps or LENGTH, live=live, until_over=True))
    found: tuple[ImageProblem, ImageTrace] = kept[name]
    return found


def _row(title: str, seed: int, trace: ImageTrace) -> tuple[str, ...]:
    spike = trace.highest
    return (
        title, str(seed), f"{len(trace.losses) - 1:,}", str(len(trace.spikes)),
        "-" if spike is None else f"x{spike.height:.1f}", "-" if spike is None else f"{spike.minimum - spike.up}",
        f"{np.nanmax(trace.sharpness) / trace.edge:.3f}", f"{trace.losses[-1]:.2g}", f"{trace.seconds:.1f}",
    )


def _width(problem: ImageProblem) -> float:
    """Returns the filter's width at which shares are compared: white noise passes to .002, the labels to a sixth."""
    return float(widths(problem.inputs, 10)[5])


def _changes(problem: ImageProblem, count: int) -> list[Tensor]:
    pairs = eigsh(Hessian(problem.loss, problem.params), k=count, tol=1e-2)
    return output_changes(problem.outputs, problem.params, pairs)


def _merge(problem: ImageProblem, pairs: int) -> None:
    """Gives pairs of filters of the second layer that point the same way their mean, weights and bias."""
    weight, bias = filters(problem)[1]
    rows = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
    for i, j in closest_pairs(rows.double().numpy(), pairs, signed=True):
        weight[[i, j]] = (weight[i] + weight[j]) / 2
        bias[[i, j]] = (bias[i] + bias[j]) / 2


def _arm(problem: ImageProblem, name: str, updates: int | None, height: float) -> Arm:
    found, loss = condensation(*filters(problem)[1]), float(problem.loss().detach())
    return Arm(name, updates, loss, problem.test_error(), found, height)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _part(live: Live, place: int, parts: int) -> Live:
    return lambda share, text: live((place + share) / parts, text)
