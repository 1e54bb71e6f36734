"""What the page shows of the experiments about an event: losses and verdicts of the replay, tensors and examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from foreshock.diagnose.wording import percent
from foreshock.report import encode
from foreshock.report.columns import wants_log
from foreshock.report.decimate import Floats, Ints, keep
from foreshock.report.experiments import Attributed, Example, Replayed
from foreshock.report.remedy import Remedy
from foreshock.report.wording import count, listing, number

BUCKETS = 300  # two points each, in every curve
ARMS = 24  # most arms shown
TENSORS = 12  # most tensors with a bar
LEAST = 0.005  # share from which a part of the step is worth a line
EXAMPLES = 6  # most examples of either kind
TEXT = 600  # most characters of an example
IMAGES = 250_000  # most bytes of pictures of one event


def replay_json(found: Replayed) -> dict[str, object]:
    """Returns what the page draws a replay from."""
    curves = [found.original, *(arm.losses for arm in found.arms)]
    known = [curve[np.isfinite(curve)] for curve in curves]
    return {
        "head": head(found),
        "base": encode.plain(found.base),
        "peak": encode.plain(found.peak),
        "original": _curve(found.steps, found.original),
        "log": wants_log(np.concatenate(known)),
        "arms": [
            {
                "name": arm.name, "what": arm.what, "peak": encode.plain(arm.peak), "share": encode.plain(arm.share),
                "verdict": arm.verdict, "why": arm.why, "curve": _curve(arm.steps, arm.losses),
            }
            for arm in found.arms[:ARMS]
        ],
        "more": max(0, len(found.arms) - ARMS),
    }  # fmt: skip


def blame_json(found: Attributed, images: int = IMAGES) -> dict[str, object]:
    """Returns what the page draws an attribution from.

    Args:
        found: the attribution.
        images: most bytes of pictures.
    """
    lists, room = [], images
    for title, some in examples(found):
        shown, room = _examples(some, room)
        lists.append({"title": title, "one": one_step(some) is not None, "rows": shown})
    tensors, rest = largest(found, TENSORS)
    return {
        "step": found.step,
        "tensors": [{"name": name, "share": share} for name, share in tensors],
        "rest": rest,
        "parts": [{"name": name, "share": share} for name, share in parts(found)],
        "examples": lists,
        "head": change(found),
        "foot": sums(found),
    }


def remedy_json(found: Remedy | None) -> dict[str, object] | None:
    """Returns what the page shows of what to change."""
    return None if found is None else asdict(found)


def head(found: Replayed) -> str:
    """Returns what was run again, whether nothing changed gave the same, and what removed the event."""
    n = len(found.original)
    since = "" if found.start is None else f" from the snapshot at step {found.start:,}"
    steps = f"{count(n, 'step')} again{since}" if n else f"Replayed{since}"
    if found.reproducible is False:
        at = "" if found.differs_at is None else f" from step {found.differs_at:,} on"
        drawn = ", for want of the random numbers that were drawn between them" if found.drawn else ""
        steps += f"; with nothing changed they differ from the training's own{at}{drawn}"
        if not found.returns:
            return found.summary or f"{steps}."
        steps += ", yet the event comes again"
    same = "; with nothing changed, bit for bit the training's own" if found.reproducible else ""
    if not found.arms:
        return f"{steps}{same}."
    gone = listing([f"`{name}`" for name in found.cures])
    return f"{steps}{same}. {f'It does not come with {gone}.' if gone else 'It comes whatever is changed.'}"


def change(found: Attributed) -> str:
    """Returns what is split, in a sentence or two."""
    known = math.isfinite(found.from_step) and math.isfinite(found.from_batch)
    step = "a step" if found.step is None else f"step {found.step:,}"
    measured = found.measured if math.isfinite(found.measured) else found.total
    verb = "raised" if not measured < 0 else "lowered"
    by = f" by {number(abs(measured))}" if math.isfinite(measured) else ""
    if known and found.odd:
        calm = "another batch" if found.seen is None else f"the batch of step {found.seen:,}"
        odd = f"The batch of {step} is odd: at the same weights its loss is {number(found.from_batch)} above that of "
        did = f"Its update and those after it {verb} the loss of {calm}{by}"
        rest = ": it did no harm." if found.slight else ", which is split exactly."
        return f"{odd}the batch before. {did}{rest}"
    of = "its own batch" if found.seen is None else f"the batch of step {found.seen:,}"
    said = f"The updates up to {step} {verb} the loss of {of}{by}, which is split exactly."
    if not known:
        return said
    rise = f"{number(found.from_step)} is the update's and {number(found.from_batch)} the next batch's own"
    return f"{said} Of the largest rise from a batch to the next, {rise}."


def parts(found: Attributed) -> list[tuple[str, float]]:
    """Returns the step's parts with their shares, those that are worth a line."""
    if found.slight:
        return []
    return [(name, share) for name, share in found.parts.items() if abs(share) >= LEAST or name == "the examples"]


def examples(found: Attributed) -> list[tuple[str, list[Example]]]:
    """Returns the lists of examples with their titles, in the order in which they tell; no empty ones.

    Where all of a list are of one step, the title names it.
    """
    lists = (
        ("Odd examples of the batch", " of", found.suspects),
        ("Examples that pushed", ", at", found.culprits),
        ("Examples that suffered", ", at", found.victims),
    )
    told = []
    for title, joint, rows in lists[: 1 if found.slight else None]:
        some = [each for each in rows if not each.share < LEAST]
        decoded = [each for each in some if each.text or each.image]
        step = one_step(some)
        if some:
            told.append((f"{title}{joint} step {step:,}" if step is not None else title, decoded or some))
    return told


def one_step(some: Sequence[Example]) -> int | None:
    """Returns the step that all examples are of; None where they are of several, or it is not known."""
    steps = {each.step for each in some}
    return steps.pop() if len(steps) == 1 else None


def sums(found: Attributed) -> str:
    """Returns how complete the split is, in a sentence; empty where that is not known, or nothing is split."""
    said: list[str] = []
    if found.slight:
        return " ".join(found.notes)
    if math.isfinite(found.completeness):
        off = abs(found.completeness)
        said.append(f"The split adds up to the measured change within {number(100 * off, 2)}\N{NO-BREAK SPACE}%")
    if math.isfinite(found.coverage):
        said.append(f"examples account for {percent(found.coverage)} of the parameters' part")
    if found.concentration is not None:
        of = "" if found.examples is None else f" of {found.examples:,}"
        said.append(f"{count(found.concentration, 'example')}{of} carry 90\N{NO-BREAK SPACE}% of what pushed")
    text = "; ".join(said)
    return " ".join([*([f"{text[0].upper()}{text[1:]}."] if text else []), *found.notes])


def largest(found: Attributed, most: int) -> tuple[list[tuple[str, float]], float]:
    """Returns the tensors with the largest shares, of either sign, the largest first, and what the others sum to."""
    worth = [] if found.slight else [pair for pair in found.columns if abs(pair[1]) >= LEAST]
    kept = sorted(worth, key=lambda pair: -abs(pair[1]))[:most]
    whole = -1.0 if found.total < 0 else 1.0
    return sorted(kept, key=lambda pair: -pair[1]), whole - math.fsum(share for _, share in kept) if kept else 0.0


def short(text: str, most: int = TEXT) -> str:
    """Returns text cut at so many characters, where it is longer.

    >>> short("a long example", 7)
    'a long…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def _examples(found: Sequence[Example], room: int) -> tuple[list[dict[str, object]], int]:
    """Returns examples for the page, pictures as long as there is room, and the room that is left."""
    result: list[dict[str, object]] = []
    for each in found[:EXAMPLES]:
        row: dict[str, object] = {"step": each.step, "index": each.index, "share": encode.plain(each.share)}
        if each.text:
            row["text"] = short(each.text)
        if each.image and len(each.image) <= room:
            row["image"] = each.image
            room -= len(each.image)
        elif each.image:
            row["text"] = "a picture too large for this page"
        result.append(row)
    return result, room


def _curve(steps: Ints, losses: Floats) -> dict[str, object] | None:
    if not len(losses):
        return None
    kept = keep(losses, BUCKETS)
    return {"x": encode.steps(steps[kept]), "y": encode.floats(losses[kept])}
