"""What experiments found out about an event, read from the findings of a run: a replay, and who is to blame.

Findings are plain values that another version may have written, so whatever is missing or odd is read as not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from foreshock.report.decimate import Floats, Ints
from foreshock.run import Run
from foreshock.run.event import Event

UNCHANGED = "unchanged"  # the arm in which nothing is changed
VERDICTS = ("removed", "weakened", "stays", "worse", "not applicable", "failed")
SLIGHT = 0.02  # share of an odd batch's excess below which what its updates did to others is slight
PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True, slots=True)
class Arm:
    """The same steps once more, with one thing changed.

    Attributes:
        name: of what was changed, e.g. "cut_lr".
        what: that in words.
        peak: the largest loss; NaN where there was none.
        share: of the original's rise, what is left; NaN where it was not run.
        verdict: one of `VERDICTS`.
        why: what the verdict rests on; may be empty.
        steps: of the losses.
        losses: one a step, as observed.
    """

    name: str
    what: str
    peak: float
    share: float
    verdict: str
    why: str
    steps: Ints
    losses: Floats


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay of the steps around an event.

    Attributes:
        start: step of the snapshot that it began from.
        steps: of the original's losses.
        original: the losses that the training had.
        base: its level before the rise.
        peak: its largest loss.
        reproducible: whether nothing changed gave the same bits; None where that is not known.
        differs_at: the first step that did not.
        returns: whether the event came again with nothing changed; else the arms prove nothing.
        drawn: whether it differs for want of the random numbers that the loop drew between steps.
        summary: what came of it, in a sentence or two.
        cures: arms that removed the event.
        arms: all of them, without the unchanged one, the best first.
        unchanged: the unchanged one; None where it was not kept.
    """

    start: int | None
    steps: Ints
    original: Floats
    base: float
    peak: float
    reproducible: bool | None
    differs_at: int | None
    returns: bool
    drawn: bool
    summary: str
    cures: tuple[str, ...]
    arms: tuple[Arm, ...]
    unchanged: Arm | None

    def arm(self, name: str) -> Arm | None:
        """Returns the arm of that name; None where there is none."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a batch, and its share of the change of the loss.

    Attributes:
        step: at which it was in the batch; None where that is not known.
        index: its place in the batch.
        share: of the change of the loss; negative where it held against it.
        text: what it says; empty where nobody decoded it, or it is a picture.
        image: a picture as a data address; empty where there is none.
    """

    step: int | None
    index: int | None
    share: float
    text: str = ""
    image: str = ""


@dataclass(frozen=True, slots=True)
class Attributed:
    """The rise of the loss in an event, split among tensors and examples.

    Attributes:
        step: the guilty step: whose update raised the loss, or whose batch is odd.
        seen: the step of whose batch the loss is split.
        columns: (tensor, share of the change), the largest first; what raised the loss is positive.
        batch: share of the step's own batch; NaN where it is not known, as for the following.
        history: share of what earlier steps left in the momentum.
        decay: share of the decoupled weight decay.
        l2: share of weight decay that is added to the gradient.
        rest: share that nobody accounts for.
        total: change of the loss, as the split adds up.
        measured: the same, measured.
        completeness: relative difference of the two.
        coverage: share of the parameters' part that the examples' split knows of.
        culprits: examples that pushed, the guiltiest first.
        victims: examples that suffered, likewise.
        suspects: where the batch is odd, its examples, with shares of what its loss has more than that of another.
        from_step: of the largest rise from a batch to the next, what the update did; in units of the loss.
        from_batch: what the next batch has more by itself; likewise.
        concentration: fewest examples that carry 90 % of what pushed; None where that is not known.
        examples: in all.
        notes: what else is to be known, in sentences.
    """

    step: int | None
    seen: int | None
    columns: tuple[tuple[str, float], ...]
    batch: float
    history: float
    decay: float
    l2: float
    rest: float
    total: float
    measured: float
    completeness: float
    coverage: float
    culprits: tuple[Example, ...]
    victims: tuple[Example, ...]
    suspects: tuple[Example, ...]
    from_step: float
    from_batch: float
    concentration: int | None
    examples: int | None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, float]:
        """What the step was made of: name -> share, those that are known."""
        known = {"momentum from before": self.history, "weight decay": self.decay, "L2 term": self.l2,
                 "not accounted for": self.rest}  # fmt: skip
        others = {name: share for name, share in known.items() if math.isfinite(share)}
        whole = -1.0 if self.total < 0 else 1.0
        batch = self.batch if math.isfinite(self.batch) else whole - math.fsum(others.values())
        return {"the examples": batch} | others if others else {}

    @property
    def odd(self) -> bool:
        """Whether it was the batch by itself, rather than an update, that had a higher loss."""
        return self.from_batch > self.from_step

    @property
    def slight(self) -> bool:
        """Whether the batch was odd and its updates did next to nothing, so that there is nothing to split."""
        changed = self.measured if math.isfinite(self.measured) else self.total
        return self.odd and abs(changed) < SLIGHT * self.from_batch


def replayed(run: Run, event: Event) -> Replayed | None:
    """Returns the newest replay of an event, with the arms that were tried in those before it; None without any.

    An arm counts as it was tried last; replays that began elsewhere, or did not repeat, are left out.
    """
    every = [_replayed(found) for found in run.findings_of(event, "replay")]
    if not every:
        return None
    newest = every[-1]
    like = [each for each in every if each.start == newest.start and each.reproducible == newest.reproducible]
    arms = {arm.name: arm for each in like for arm in each.arms}
    cures = [name for each in reversed(like) for name in each.cures]
    removed = {name for name, arm in arms.items() if arm.verdict == "removed"}
    kept = dict.fromkeys(name for name in cures if name in removed or name not in arms)
    return replace(newest, arms=tuple(sorted(arms.values(), key=_rank)), cures=tuple(kept))


def attributed(run: Run, event: Event) -> Attributed | None:
    """Returns the newest attribution of an event; None where there was none."""
    found = run.findings_of(event, "attribution")
    return _attributed(found[-1]) if found else None


def _replayed(found: Mapping[str, Any]) -> Replayed:
    original = _floats(found.get("original"))
    arms = [_arm(each) for each in _list(found.get("arms")) if isinstance(each, Mapping)]
    order = sorted((arm for arm in arms if arm.name != UNCHANGED), key=_rank)
    cures = tuple(str(name) for name in _list(found.get("cures")))
    reproducible, returns = found.get("reproducible"), found.get("returns")
    return Replayed(
        start=_whole(found.get("start")),
        steps=_steps(found.get("steps"), len(original), _whole(found.get("start"))),
        original=original,
        base=_float(found.get("base")),
        peak=_float(found.get("peak")),
        reproducible=reproducible if isinstance(reproducible, bool) else None,
        differs_at=_whole(found.get("differs_at")),
        returns=returns if isinstance(returns, bool) else reproducible is not False,
        drawn=found.get("drawn") is True,
        summary=_text(found.get("summary")),
        cures=cures or tuple(arm.name for arm in order if arm.verdict == "removed"),
        arms=tuple(order),
        unchanged=next((arm for arm in arms if arm.name == UNCHANGED), None),
    )


def _arm(found: Mapping[str, Any]) -> Arm:
    losses = _floats(found.get("losses"))
    verdict = _text(found.get("verdict"))
    return Arm(
        name=_text(found.get("name")) or "?", what=_text(found.get("what")), peak=_float(found.get("peak")),
        share=_float(found.get("share")), verdict=verdict if verdict in VERDICTS else "not applicable",
        why=_text(found.get("why")), steps=_steps(found.get("steps"), len(losses), None), losses=losses,
    )  # fmt: skip


def _rank(arm: Arm) -> tuple[int, float]:
    return VERDICTS.index(arm.verdict), arm.share if math.isfinite(arm.share) else math.inf


def _attributed(found: Mapping[str, Any]) -> Attributed:
    total, measured = _float(found.get("total")), _float(found.get("measured"))
    pushed, suffered, suspected = (_rows(found.get(name)) for name in ("culprits", "victims", "suspects"))
    whole = abs(total if math.isfinite(total) else measured)
    in_loss = "batch" in found or any("value" in row for row in (*pushed, *suffered))
    unit = (whole or math.nan) if in_loss else 1.0

    def share(name: str) -> float:
        return _float(found.get(name)) / unit

    named = found.get("columns")
    columns = named.items() if isinstance(named, Mapping) else ()
    known = [(str(name), value / unit) for name, each in columns if math.isfinite(value := _float(each))]
    step = _whole(found.get("step"))
    return Attributed(
        step=step,
        seen=_whole(found.get("seen")),
        columns=tuple(sorted(known, key=lambda pair: -pair[1])),
        batch=share("batch"),
        history=share("history"),
        decay=share("decay"),
        l2=share("l2"),
        rest=share("rest"),
        total=total,
        measured=measured,
        completeness=_float(found.get("completeness")),
        coverage=_float(found.get("coverage")),
        culprits=tuple(_example(row, step, unit) for row in pushed),
        victims=tuple(_example(row, step, unit) for row in suffered),
        suspects=tuple(_example(row, step, abs(_float(found.get("from_batch"))) or math.nan) for row in suspected),
        from_step=_float(found.get("from_step")),
        from_batch=_float(found.get("from_batch")),
        concentration=_first(found, "culprit_concentration", "concentration"),
        examples=_first(found, "examples", "culprit_count", "victim_count"),
        notes=tuple(str(note) for note in _list(found.get("notes"))),
    )


def _rows(found: Any) -> list[Mapping[str, Any]]:
    return [each for each in _list(found) if isinstance(each, Mapping)]


def _example(found: Mapping[str, Any], step: int | None, unit: float) -> Example:
    """Returns one example; what is called a picture but is none in a known format is left out."""
    image, own = _text(found.get("image")), _whole(found.get("step"))
    share = _float(found["share"]) if "share" in found else _float(found.get("value")) / unit
    return Example(
        step if own is None else own, _whole(found.get("index")), share, _text(found.get("text")),
        image if PICTURE.fullmatch(image) else "",
    )  # fmt: skip


def _first(found: Mapping[str, Any], *names: str) -> int | None:
    """Returns the first of these numbers that is known."""
    return next((value for name in names if (value := _whole(found.get(name))) is not None), None)


def _steps(found: Any, n: int, start: int | None) -> Ints:
    """Returns the steps of n values: those that were kept, else consecutive ones."""
    known = [each for each in map(_whole, _list(found)) if each is not None]
    if len(known) == n and all(a < b for a, b in pairwise(known)):
        return np.array(known, np.int64)
    return np.arange(n, dtype=np.int64) + (start or 0)


def _floats(found: Any) -> Floats:
    return np.array([_float(each) for each in _list(found)], np.float64)


def _float(found: Any) -> float:
    """Returns a number; NaN for what is none, also for the words that JSON without NaN is given for them."""
    try:
        return float(found) if isinstance(found, int | float | str) and not isinstance(found, bool) else math.nan
    except ValueError:
        return math.nan


def _whole(found: Any) -> int | None:
    value = _float(found)
    return int(value) if abs(value) < 2**53 else None


def _text(found: Any) -> str:
    return "" if found is None else str(found)


def _list(found: Any) -> Sequence[Any]:
    return found if isinstance(found, list | tuple) else ()
