"""The settings in which classes are added, and what each study of them shows: numbers, runs, rows, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from foreshock.papers.heads_data import Pool, convolutions, digit_features, encoded, garments
from foreshock.papers.heads_measures import Reading, readings, row, summary
from foreshock.papers.heads_rows import ARMS
from foreshock.papers.heads_training import TAIL, Classes, Loss, Trace, begin, learn
from foreshock.papers.studies import Found, Live, Shelf

__all__ = ["ABOVE_GRID", "FIVE", "PAIRS", "SIX", "buffers", "digits", "five", "moving", "pairs", "six"]

FIVE = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
SIX = ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9))
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
PRETRAINED, PRETRAIN_LR = 600, 2e-3
MOVING_LR = 1e-3
MOVED = ("random", "unit-mean", "ls", "ls-grid", "calibrated", "foreshock")  # what is tried where a step is dear
BUFFERS = (50, 200)  # rehearsed examples a class, beside the usual 20
BUFFERED = ("random", "ls", "ls-grid", "foreshock")

ABOVE_GRID = "digits: calibrated old@0 less grid's"

_DIGITS = Classes("digits", "digits", FIVE, fresh=True)
_FIVE = Classes("five", "garments 5+5", FIVE)
_SIX = Classes("six", "garments 6+4", SIX)
_PAIRS = Classes("pairs", "garments 5x2", PAIRS)
LOSSES: tuple[Loss, ...] = ("ce", "mse")
MOVING: tuple[tuple[Classes, Loss], ...] = ((_FIVE, "ce"), (_FIVE, "mse"), (_SIX, "ce"), (_PAIRS, "ce"))


def digits(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the prototype's set-up: five digits, then five more, behind random features (H6 to H9)."""
    found = _study([_with(_DIGITS, loss) for loss in LOSSES], tuple(ARMS), seed, live, steps, shelf)
    above = found.numbers["digits, calibrated: old@0"] - found.numbers["digits, ls-grid: old@0"]
    return replace(found, numbers={**found.numbers, ABOVE_GRID: above})


def five(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns five classes of garments and then the other five, behind features that stay as they are."""
    return _study([_with(_FIVE, loss) for loss in LOSSES], tuple(ARMS), seed, live, steps, shelf)


def six(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns six classes and then four."""
    return _study([_with(_SIX, loss) for loss in LOSSES], tuple(ARMS), seed, live, steps, shelf)


def pairs(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns five tasks of two classes each."""
    return _study([_with(_PAIRS, loss) for loss in LOSSES], tuple(ARMS), seed, live, steps, shelf)


def buffers(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns five classes and then five with more rehearsed examples."""
    settings = [
        replace(_FIVE, name=f"five-{keep}", title=f"{_FIVE.title}, {keep} kept", keep=keep) for keep in BUFFERS
    ]
    return _study(settings, BUFFERED, seed, live, steps, shelf)


def moving(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the same with the backbone training on."""
    settings = [
        replace(_with(each, loss), name=f"{_with(each, loss).name}-moving",
                title=f"{_with(each, loss).title}, backbone moving", moving=True, lr=MOVING_LR)
        for each, loss in MOVING
    ]  # fmt: skip
    return _study(settings, MOVED, seed, live, steps, shelf)


def _with(setting: Classes, loss: Loss) -> Classes:
    if loss == "ce":
        return setting
    return replace(setting, name=f"{setting.name}-{loss}", title=f"{setting.title}, MSE", loss=loss)


def _study(
    settings: Sequence[Classes], arms: Sequence[str], seed: int, live: Live, steps: int, shelf: Shelf
) -> Found:  # fmt: skip
    plan = [(setting, [name for name in arms if setting.loss in ARMS[name].losses]) for setting in settings]
    weights = [len(names) * len(setting.tasks) for setting, names in plan]
    numbers: dict[str, float] = {}
    runs, rows, drawn = {}, [], {}
    for place, (setting, names) in enumerate(plan):
        setting = replace(setting, steps=steps) if steps else setting
        traces: dict[str, Trace] = {}
        read: dict[str, list[Reading]] = {}
        pool, body = _examples(setting, seed, shelf)
        start = begin(setting, pool, body, seed)
        for at, name in enumerate(names):
            done = (sum(weights[:place]) + weights[place] * at / len(names)) / sum(weights)
            live(done, f"seed {seed}, {setting.title}, {ARMS[name].title}")
            traces[name] = learn(setting, name, ARMS[name].fill, start, pool, seed)
            read[name] = readings(traces[name], traces[names[0]])
            found = summary(read[name], read[names[0]])
            numbers |= {f"{setting.name}, {name}: {what}": value for what, value in found.items()}
            runs[f"{setting.name}-{name}-seed-{seed}"] = traces[name].run
            rows.append(row(traces[name], read[name], ARMS[name].title))
        drawn[setting.name] = (traces, read)
    return Found(numbers, runs, rows, drawn)


def _examples(setting: Classes, seed: int, shelf: Shelf) -> tuple[Pool, nn.Module]:
    """Returns examples and backbone: features and nothing where it stands still, images and itself where it moves."""
    if setting.name.startswith("digits"):
        return digit_features(seed), nn.Identity()
    if "garments" not in shelf:
        shelf["garments"] = garments(seed)
    pool: Pool = shelf["garments"]
    base = setting.tasks[0]
    network, features = f"network of {base}", f"features of {base}"
    if network not in shelf:
        first = replace(setting, base=PRETRAINED + TAIL, lr=PRETRAIN_LR, loss="ce")
        shelf[network] = begin(first, pool, convolutions(seed), seed).model.body
    body: nn.Module = shelf[network]
    if setting.moving:
        return pool, body
    if features not in shelf:
        shelf[features] = encoded(pool, body)
    return shelf[features], nn.Identity()
