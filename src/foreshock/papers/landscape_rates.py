"""The reference network at other learning rates: where the edge lies, and whether a spike comes with it."""

from __future__ import annotations

import numpy as np

from foreshock.papers.landscape_net import tanh_problem
from foreshock.papers.landscape_reference import row
from foreshock.papers.landscape_training import Trace, descend
from foreshock.papers.studies import Found, Live, Shelf, silent

__all__ = ["rates"]

SLOW, FAST = 0.02, 0.1
LENGTH = 3000  # updates: a spike of the fast one comes within 800 for seeds 0 to 5
FIRST = 20  # updates that are left out: a start that is too sharp for the rate is no spike of a landscape


def rates(seed: int, live: Live = silent, steps: int = 0, shelf: Shelf | None = None) -> Found:
    """Returns the network of a seed trained at lr .02 and .1.

    Claimed: what counts is 2/lr. The slow one, whose edge is at 100, never reaches it and never spikes; the fast one,
    whose edge is at 20, spikes long before the 4,500 updates of lr .05.
    """
    runs, rows = {}, []
    traces: dict[float, Trace] = {}
    for place, lr in enumerate((SLOW, FAST)):
        trace = descend(
            tanh_problem(seed), lr, least=steps or LENGTH,
            live=lambda share, text, place=place: live((place + share) / 2, text),  # type: ignore[misc]
        )
        trace.spikes = [spike for spike in trace.spikes if spike.minimum > FIRST]
        traces[lr] = trace
        name = f"tl-gd-lr-{lr:g}"
        runs[f"{name}-seed-{seed}"] = trace.to_run(f"TL-GD, lr {lr:g}, seed {seed}", training=name, seed=seed)
        rows.append(row(f"TL-GD, lr {lr:g}", seed, trace))
    slow, fast = traces[SLOW], traces[FAST]
    late = slow.losses[FIRST:]
    numbers = {}
    if len(late):
        numbers = {
            "slow-chi": float(np.nanmax(slow.sharpness[FIRST:])) / slow.edge,
            "slow-rise": float((late / np.minimum.accumulate(late)).max()),
        }
    if fast.spikes:
        numbers |= {"fast-first": float(fast.spikes[0].minimum), "fast-height": max(s.height for s in fast.spikes)}
    return Found(numbers, runs, rows, {"traces": traces})
