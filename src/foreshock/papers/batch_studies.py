"""The studies of the batch-size reproduction: each trains, and hands back numbers for claims, rows and drawings."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from foreshock.batch_size import goodput
from foreshock.batch_size.throughput import measure_step_times, training_step
from foreshock.papers.batch_policy import FIXED_COSTS, Followed, fixed_times, follow
from foreshock.papers.batch_steps import Sweep, critical, lr_slope, sweep, trade_off, turning
from foreshock.papers.batch_switches import AFTER, MOMENTS, After, after_switches, false_spikes
from foreshock.papers.batch_tasks import TASKS, loss_of
from foreshock.papers.batch_training import optimizer_of
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["COLUMNS", "clock", "descent", "policy", "steps", "switches"]

COLUMNS = ("training", "batch sizes", "S_min", "E_min", "B_crit", "noise scale", "preconditioned", "misfit")
DESCENT_RATE = 0.05  # of plain gradient descent on digits, at the smallest batch
START = 32  # batch size at which the policy begins
SCALES = (2.0, 4.0)  # critical batch size over noise scale: COPUS' own, and one nearer to what is measured


def steps(name: str, seed: int, live: Live, _: int, shelf: Shelf, optimizer: str = "adam") -> Found:
    """Steps to a loss at every batch size, each at its best learning rate, and the noise on the way."""
    task = TASKS[name]
    rate = None if optimizer == "adam" else DESCENT_RATE
    begun = time.process_time()
    found = sweep(task, seed, task.batches, optimizer=optimizer, rate=rate,
                  told=lambda share: live(share, f"{task.title}: steps by batch size"))  # fmt: skip
    law, rates = trade_off(found.steps), found.rates
    simple, pre = critical(found.noise), critical(found.noise, preconditioned=True)
    third = max(1, len(found.noise) // 3)
    early, late = critical(found.noise[:third]), critical(found.noise[-third:])
    label = name if optimizer == "adam" else f"{name}-{optimizer}"
    numbers = {
        "misfit": law.misfit, "critical": law.critical, "critical over simple": law.critical / simple,
        "critical over preconditioned": law.critical / pre, "noise grows": late / early,
        "lr slope": lr_slope(rates, 2.0 * law.critical),
    }  # fmt: skip
    top, noise, off = turning(rates)
    if optimizer == "sgd":
        numbers = {"lr slope": lr_slope(rates, 0.5 * law.critical), "lr turns over simple": noise / simple,
                   "lr misfit": off, "critical over simple": law.critical / simple, "misfit": law.misfit}  # fmt: skip
    shelf[f"sweep {label}"] = found
    row = (label, f"{min(found.steps)} to {max(found.steps)}", f"{law.steps:.1f}", f"{law.examples:.0f}",
           f"{law.critical:.0f}", f"{simple:.0f}", f"{pre:.0f}", f"{law.misfit:.0%}")  # fmt: skip
    return Found(
        {f"{label}: {key}": value for key, value in numbers.items()}, rows=[row],
        drawn={f"sweep {label}": (found, law), f"turning {label}": (top, noise)},
        remarks=[f"{label}: {time.process_time() - begun:.0f} s of processor time"],
    )


def descent(seed: int, live: Live, number: int, shelf: Shelf) -> Found:
    """The same by plain gradient descent: how its best learning rate follows the batch."""
    return steps("digits", seed, live, number, shelf, "sgd")


def policy(seed: int, live: Live, _: int, shelf: Shelf, names: tuple[str, ...] = ("digits", "fashion")) -> Found:
    """The batch follows the advice, in modelled time a + B, against every fixed size at its best learning rate."""
    numbers: dict[str, float] = {}
    drawn: dict[str, tuple[dict[int, float], Followed]] = {}
    known = [name for name in names if f"sweep {name}" in shelf]
    for place, name in enumerate(known):
        found: Sweep = shelf[f"sweep {name}"]
        counted, simple = found.steps, critical(found.noise)
        for i, cost in enumerate(FIXED_COSTS):
            live((place + i / len(FIXED_COSTS)) / len(known), f"{TASKS[name].title}: goodput policy")
            fixed = fixed_times(counted, cost)
            fastest = min(fixed.values())
            picked = goodput((cost, 1.0), 2.0 * simple, candidates=list(counted)).batch
            key = f"{name}, a={cost:g}"
            numbers[f"{key}: regret"] = fixed[picked] / fastest
            for c in SCALES:
                way = follow(TASKS[name], seed, cost, start=START, lr=found.rates[START], batches=list(counted), c=c)
                numbers[f"{key}: policy c={c:g}"] = way.time / fastest
                numbers[f"{key}: policy c={c:g} over start"] = way.time / fixed[START]
                drawn[f"policy {key} c={c:g}"] = (fixed, way)
    return Found(numbers, drawn=drawn)


def switches(name: str, seed: int, live: Live, length: int, shelf: Shelf) -> Found:
    """Switches of the batch by 16, up and down: chi and spikes after moments were kept, rescaled or reset."""
    task = TASKS[name]
    small, large = task.switched
    numbers: dict[str, float] = {}
    drawn: dict[str, Mapping[str, After]] = {}
    runs = {}
    false, untold = 0, 0
    for place, (way, old, new) in enumerate((("up", small, large), ("down", large, small))):
        live(place / 2, f"{task.title}: batch {old} to {new}")
        rate = task.rate / 2.0 * math.sqrt(old / small)
        found = after_switches(task, seed, old, new, rate, length=length or AFTER)
        for moments in MOMENTS:
            numbers[f"{name} {way}, {moments}: highest chi"] = found[moments].highest
            numbers[f"{name} {way}, {moments}: rise"] = found[moments].rise
            false += len(false_spikes(found[moments], declared=True))
            untold += len(false_spikes(found[moments], declared=False))
            runs[f"{name}-{way}-{moments}-{seed}"] = found[moments].run
        numbers[f"{name} {way}: rescale over keep"] = found["rescale"].highest / found["keep"].highest
        numbers[f"{name} {way}: first chi, rescale over keep"] = found["rescale"].chi[0] / found["keep"].chi[0]
        numbers[f"{name} {way}: predicted"] = (found["rescale"].chi[0] / found["keep"].chi[0]) * math.sqrt(
            found["rescale"].ratio
        )
        drawn[f"switch {name} {way}"] = found
    numbers[f"{name}: false spikes"] = float(false)
    numbers[f"{name}: unmarked spikes"] = float(untold)
    return Found(numbers, runs=runs, drawn=drawn)


def clock(seed: int, live: Live, _: int, shelf: Shelf, name: str = "fashion") -> Found:
    """Measured step times on this machine: what goodput picks with them, and the fixed size that is the fastest."""
    if f"sweep {name}" not in shelf:
        return Found({})
    task, found = TASKS[name], shelf[f"sweep {name}"]
    live(0.5, f"{task.title}: seconds of a step")
    model, counted = task.network(seed), found.steps
    owner = optimizer_of("adam", model, task.rate)
    inputs, labels = task.data()
    times = measure_step_times(
        training_step(model, loss_of, owner), {size: (inputs[:size], labels[:size]) for size in counted},
        models=model, optimizers=owner, rounds=15,
    )  # fmt: skip
    seconds = {size: counted[size] * times.seconds[size] for size in counted}
    picked = goodput(times, 2.0 * critical(found.noise))
    fastest = min(seconds, key=lambda size: seconds[size])
    numbers = {
        f"{name}: clock regret": seconds[picked.batch] / seconds[fastest],
        f"{name}: clock best": float(fastest), f"{name}: clock picked": float(picked.batch),
        f"{name}: clock misfit": times.misfit,
    }  # fmt: skip
    return Found(numbers, drawn={"clock": (times, seconds, picked)})
