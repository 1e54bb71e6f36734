"""What a guard did, put together for people: like actions that lie close to each other are one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.report.wording import count, listing, number
from foreshock.run import Run
from foreshock.run.action import (
    Action,
    ClipUpdate,
    CutLr,
    Floor,
    Proceed,
    Refill,
    RepairMoments,
    Rollback,
    Scale,
    Skip,
)
from foreshock.run.actions import Unknown

TIMES, AT_MOST, DASH = "\N{MULTIPLICATION SIGN}", "\N{LESS-THAN OR EQUAL TO}", "\N{EN DASH}"
MOST = 80  # lines; a run with more is put together more coarsely
NEAR = 20  # attempts between like actions that are one line at first
LEVEL = 20  # taken steps whose median is the level of the loss before an action, and after it

TITLES: Mapping[str, tuple[str, str, str]] = {
    "skip": ("refused", "step refused", "steps refused"),
    "scale_update": ("update scaled", "update scaled", "updates scaled"),
    "clip_update": ("update clipped", "update clipped", "updates clipped"),
    "floor": ("denominator floored", "denominator floored", "denominators floored"),
    "refill": ("second moment refilled", "second moment refilled", "second moments refilled"),
    "cut_lr": ("lr cut", "learning-rate cut", "learning-rate cuts"),
    "repair_moments": ("moments repaired", "repair of the moments", "repairs of the moments"),
    "rollback": ("rolled back", "rollback", "rollbacks"),
    "exact_softmax": ("softmax made exact", "repair of the softmax", "repairs of the softmax"),
    "stop": ("stopped", "stop", "stops"),
    "proceed": ("accepted", "doubtful step accepted", "doubtful steps accepted"),
}
"""kind -> what it is called in a table, and what one and several of it are called in a sentence."""

MEANING: Mapping[str, str] = {
    "skip": "the step was not taken: parameters, moments and schedule stayed as they were",
    "scale_update": "the step was taken, a part of the way",
    "clip_update": "the step was taken, with the update of each tensor held below a limit",
    "floor": "the step was taken with denominators raised, so that chi stayed below the edge",
    "refill": "the step was taken with second moments refilled along the unstable direction",
    "cut_lr": "steps were taken with a smaller learning rate, for a while",
    "repair_moments": "the optimizer's state was put right before the step",
    "rollback": "the training went back to a snapshot from before the cause; hatched: what was undone",
    "exact_softmax": "from here on the gradient of the softmax is exact",
    "stop": "the guard ended the training",
    "proceed": "the step was looked at closely, and taken as it was",
}
"""kind -> what it does, in one line."""

BATCHES = {
    "requeue": "batch comes again later", "retry": "batch tried again", "quarantine": "batch put aside for good",
    "drop": "batch dropped",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Like actions, close to each other.

    Attributes:
        actions: in order of their attempts.
        before: level of the loss before the first, after what was undone was left out; NaN where there is none.
        after: level of the loss over the first steps that were taken from then on.
        on: the first step that was taken after the last of them, where that itself was not; None where none was.
    """

    actions: tuple[Action, ...]
    before: float
    after: float
    on: int | None

    @property
    def kind(self) -> str:
        """Name of what was done."""
        return kind_of(self.actions[0])

    @property
    def first(self) -> int:
        """The first attempt that was answered so."""
        return self.actions[0].step

    @property
    def last(self) -> int:
        """The last attempt that was answered so."""
        return self.actions[-1].step

    @property
    def begin(self) -> int:
        """The first step that it changed: where a rollback led to, else `first`."""
        return min([self.first, *(each.before for each in self.actions if isinstance(each, Rollback))])

    @property
    def end(self) -> int:
        """The last step that it changed: the last one with a cut learning rate, else `last`."""
        return max([self.last, *(each.step + each.steps - 1 for each in self.actions if isinstance(each, CutLr))])


def interventions(run: Run, most: int = MOST) -> list[Group]:
    """Returns what a guard did in a run, in at most about `most` groups, by the first attempt of each.

    Actions of one kind, about one kind of event, are put together where at most `NEAR` attempts lie between
    neighbours; where that is not enough, twice, four times, ... as many. Rollbacks stay single as long as that goes.
    """
    done = run.actions
    near = NEAR
    parts = _together(done, near)
    while len(parts) > most and near < NEAR << 40:
        near *= 2
        parts = _together(done, near)
    if not parts:
        return []
    steps = run.steps
    taken = run.taken
    loss = run.accepted("loss") if "loss" in run else np.full(len(steps), np.nan)
    return [_seen(part, steps, taken, loss) for part in parts]


def totals(done: Sequence[Action]) -> dict[str, int]:
    """Returns how often each was done, in the order of `TITLES`, others behind."""
    names = [kind_of(action) for action in done]
    ordered = [*TITLES, *dict.fromkeys(name for name in names if name not in TITLES)]
    return {name: names.count(name) for name in ordered if name in names}


def counted(kind: str, n: int) -> str:
    """Returns "3 steps refused".

    >>> counted("skip", 1), counted("rollback", 2), counted("teleport", 2)
    ('1 step refused', '2 rollbacks', '2 × teleport')
    """
    return count(n, *TITLES[kind][1:]) if kind in TITLES else f"{n:,} {TIMES} {title(kind)}"


def told(done: Sequence[Action], most: int = 3) -> str:
    """Returns what was done in a few words, ends and rollbacks before what was done most often; empty for nothing."""
    ranked = sorted(totals(done).items(), key=lambda pair: (pair[0] not in ("stop", "rollback"), -pair[1]))
    some = [counted(kind, n) for kind, n in ranked[:most]]
    rest = sum(n for _, n in ranked[most:])
    return listing(some + ([count(rest, "other", "others")] if rest else []))


def kind_of(action: Action) -> str:
    """Returns the name of what was done, also where only a later version knows it."""
    return action.name or action.kind if isinstance(action, Unknown) else action.kind


def title(kind: str) -> str:
    """Returns what an action is called in a table."""
    return TITLES[kind][0] if kind in TITLES else kind.replace("_", " ")


def how(actions: Sequence[Action]) -> str:
    """Returns how it was done: the settings of like actions in a few words.

    >>> how([Scale(factor=0.5), Scale(factor=0.1)]), how([CutLr(factor=0.1, steps=50)])
    ('× 0.1–0.5', '× 0.1 for 50 steps')
    """
    one = actions[0]
    if isinstance(one, Skip):
        fates = dict.fromkeys(BATCHES.get(each.data, each.data) for each in actions if isinstance(each, Skip))
        return "; ".join(fates)
    if isinstance(one, Scale):
        return f"{TIMES} {_range([each.factor for each in actions if isinstance(each, Scale)])}"
    if isinstance(one, ClipUpdate):
        return f"RMS {AT_MOST} {_range([each.limit for each in actions if isinstance(each, ClipUpdate)])} lr"
    if isinstance(one, Floor | Refill):
        return f"chi {AT_MOST} {_range([each.kappa for each in actions if isinstance(each, Floor | Refill)])}"
    if isinstance(one, CutLr):
        cuts = [each for each in actions if isinstance(each, CutLr)]
        spans = [each.steps for each in cuts]
        lasting = "" if max(spans) == 1 else f" for {_range(spans)} steps"
        return f"{TIMES} {_range([each.factor for each in cuts])}{lasting}"
    if isinstance(one, RepairMoments):
        return "from a snapshot" if one.how == "restore" else "begun anew"
    if isinstance(one, Rollback):
        back = [each for each in actions if isinstance(each, Rollback)]
        undone = count(sum(max(0, each.step - each.before) for each in back), "step")
        refused = f", the next {_range([each.skip for each in back])} refused" if one.skip else ""
        return f"to step {_range([each.before for each in back])}, {undone} undone{refused}"
    if isinstance(one, Unknown):
        return ", ".join(f"{key} {value}" for key, value in one.fields.items() if key != "cause" and value is not None)
    return ""


def cause_of(group: Group) -> str:
    """Returns what kind of event it answered to, e.g. "spike in loss"; empty where it names none."""
    cause = group.actions[0].cause
    return "" if cause is None else f"{cause[0]} in {cause[1]}"


def why(group: Group) -> str:
    """Returns the reason that was given; that of the first where they differ."""
    reasons = dict.fromkeys(each.reason for each in group.actions)
    first = next(iter(reasons))
    return f"first: {first}" if first and len(reasons) > 1 else first


def lines(run: Run, most: int = 8) -> list[str]:
    """Returns what a guard did as a text table, a line for each group, at most so many of them."""
    groups = interventions(run)
    rows = [_row(group) for group in groups[:most]]
    left = sum(len(group.actions) for group in groups[most:])
    return rows + ([f"... and {left:,} more"] if left else [])


def _row(group: Group) -> str:
    steps = f"{group.first:,}" + (f"{DASH}{group.last:,}" if group.last > group.first else "")
    times = f"{len(group.actions):,} {TIMES}" if len(group.actions) > 1 else ""
    detail = how(group.actions)
    what = title(group.kind) + (f" ({detail})" if detail else "")
    reason = why(group) or cause_of(group)
    known = np.isfinite([group.before, group.after]).all()
    level = f"; loss {number(group.before)}, then {number(group.after)}" if known else ""
    return f"{steps:<15} {times:>7} {what}{': ' if reason else ''}{reason}{level}"


def _together(done: Sequence[Action], near: int) -> list[list[Action]]:
    parts: list[list[Action]] = []
    open_: dict[tuple[object, ...], list[Action]] = {}
    for action in done:
        likeness = _likeness(action)
        part = open_.get(likeness)
        alone = isinstance(action, Rollback) and near <= NEAR << 20
        if part is None or alone or action.step - part[-1].step > near:
            parts.append([])
            open_[likeness] = part = parts[-1]
        part.append(action)
    return parts


def _likeness(action: Action) -> tuple[object, ...]:
    cause = None if action.cause is None else action.cause[:2]
    return (kind_of(action), cause, action.data if isinstance(action, Skip) else None, isinstance(action, Proceed))


def _seen(part: Sequence[Action], steps: np.ndarray, taken: np.ndarray, loss: np.ndarray) -> Group:
    bare = Group(tuple(part), np.nan, np.nan, None)
    first, after = np.searchsorted(steps, [bare.begin, bare.end + 1])
    on = None
    if not part[-1].takes_step and after < len(steps):
        place = after + int(np.argmax(taken[after:]))
        on = int(steps[place]) if taken[place] else None
    before, following = loss[max(0, first - 8 * LEVEL) : first], loss[after : after + 8 * LEVEL]
    return Group(tuple(part), _level(before[::-1]), _level(following), on)


def _level(loss: np.ndarray) -> float:
    """Returns the median of the first values that were taken and are finite."""
    some = loss[np.isfinite(loss)][:LEVEL]
    return float(np.median(some)) if len(some) else float("nan")


def _range(values: Sequence[float]) -> str:
    low, high = (f"{end:,}" if isinstance(end, int) else number(end) for end in (min(values), max(values)))
    return low if low == high else f"{low}{DASH}{high}"
