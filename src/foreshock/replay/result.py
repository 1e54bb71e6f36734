"""What a replay found: the peak of each arm against the original's, and which single changes remove the event."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreshock.run.event import Event

Verdict = Literal["removed", "weakened", "stays", "worse", "not applicable", "failed"]

REMOVED, REMOVED_LOG = 0.25, 0.35  # share of the rise, and of ln(peak / level), up to which an event is gone
WEAKENED, WEAKENED_LOG = 0.6, 0.75
WORSE = 1.5
HIGH = 1e6  # times the level: as good as infinite, where the original was not finite


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One course of the steps around the event.

    Attributes:
        name: of the arm.
        what: what was changed.
        peak: largest loss from the onset on; inf where one was not finite, NaN where there is none.
        share: of the original's rise above its level that is left; NaN where it was not run.
        verdict: whether the event is gone.
        why: why it makes no sense here, or failed; empty otherwise.
        losses: step -> loss.
    """

    name: str
    what: str
    peak: float
    share: float
    verdict: Verdict
    why: str
    losses: Mapping[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        plain = {name: getattr(self, name) for name in ("name", "what", "peak", "share", "verdict", "why")}
        return plain | {"steps": list(self.losses), "losses": list(self.losses.values())}


@dataclass(frozen=True, slots=True)
class Replay:
    """The steps around an event, run again as they were and with one thing changed at a time.

    Attributes:
        event: what happened in them.
        start: the first step that was run, from its snapshot.
        original: step -> loss, of the run without a change.
        base: level of the loss before the event.
        peak: largest loss from the onset on, without a change.
        reproducible: whether that run was bit for bit the recorded one.
        differs_at: first step at which it was not; None where it was.
        repeats: whether it gave the same once more; None where that was not tried.
        returns: whether the event came again; else there are no arms.
        drawn: whether it may differ for want of the random numbers that the loop drew between steps.
        rows: the arms, in the order in which they were tried.
        edge: what chi did in the steps, where the arms speak for curvature; see `foreshock.replay.edge.measured`.
        beside: where it was not: what `step_fn` changes and the history does not hold, by name.
    """

    event: Event
    start: int
    original: Mapping[int, float]
    base: float
    peak: float
    reproducible: bool
    differs_at: int | None
    repeats: bool | None
    returns: bool
    drawn: bool
    rows: tuple[ArmResult, ...]
    beside: tuple[str, ...] = ()
    edge: Mapping[str, Any] | None = None

    @property
    def arms(self) -> dict[str, float]:
        """name -> peak, of the arms that were run."""
        return {row.name: row.peak for row in self.rows if row.verdict not in ("not applicable", "failed")}

    @property
    def cures(self) -> list[str]:
        """The single changes with which the event is gone."""
        return [row.name for row in self.rows if row.verdict == "removed"]

    def __getitem__(self, name: str) -> ArmResult:
        """Returns the course of an arm.

        Errors: KeyError where there is none of that name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no arm {name!r} in this replay; there are: {', '.join(row.name for row in self.rows)}")

    @property
    def summary(self) -> str:
        """What was found, in two or three sentences."""
        span = f"steps {self.start:,} to {max(self.original, default=self.start):,}"
        said = [f"Unchanged, {span} repeat bit for bit."]
        if not self.reproducible:
            again = {True: "the same again", False: "something else again", None: "not what was recorded"}[self.repeats]
            drawn = " Random numbers were drawn between its steps, which cannot be drawn again." if self.drawn else ""
            said = [
                f"Run again from its snapshot, unchanged, the training differs from what was recorded at step "
                f"{self.differs_at:,}, and a second try gives {again}.{drawn}"
            ]
            if self.beside:
                said.append(f"`step_fn` changes {_listed(list(self.beside))}, which the history does not hold: give it "
                            "as `scheduler=`, `scaler=` or `ema=`, or make it part of the model.")  # fmt: skip
            if not self.returns:
                return f"{' '.join(said)} The {self.event.kind} does not come again."
            said.append(f"The {self.event.kind} comes again all the same.")
        removed, weakened = (self._named(verdict) for verdict in ("removed", "weakened"))
        stays = self._named("stays") + self._named("worse")
        what = f"The {self.event.kind} (peak {self.peak:.3g} over a level of {self.base:.3g})"
        said.append(f"{what} is gone with {_listed(removed)}." if removed else f"{what} is gone with none of the arms.")
        said += [f"It is weaker with {_listed(weakened)}."] if weakened else []
        said += [f"It stays with {_listed(stays)}."] if stays else []
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Returns the replay as a finding: plain values, which `Run.add_finding` keeps with the run."""
        return {
            "kind": "replay", "version": 1, "event": list(self.event.key), "start": self.start,
            "steps": list(self.original), "original": list(self.original.values()), "base": self.base,
            "peak": self.peak, "reproducible": self.reproducible, "differs_at": self.differs_at,
            "repeats": self.repeats, "returns": self.returns,
            "drawn": self.drawn, "beside": list(self.beside), "edge": self.edge, "summary": self.summary,
            "cures": self.cures, "arms": [row.to_dict() for row in self.rows],
        }  # fmt: skip

    def _named(self, verdict: Verdict) -> list[str]:
        return [f"`{row.name}`" for row in self.rows if row.verdict == verdict]


def largest(losses: Mapping[int, float], onset: int) -> float:
    """Returns the largest loss from the onset on; inf where one is not finite, NaN where there is none."""
    high = [loss if math.isfinite(loss) else math.inf for step, loss in losses.items() if step >= onset]
    return max(high, default=math.nan)


def lowest(losses: Mapping[int, float], onset: int) -> float:
    """Returns the lowest loss before the largest from the onset on; -inf where there is none.

    A loss that is still on its way down, because the change has slowed it, is no rise though it is above the level.
    """
    peak, low, found = -math.inf, math.inf, -math.inf
    for step, loss in losses.items():
        if step >= onset and loss > peak:
            peak, found = loss, low
        if math.isfinite(loss):
            low = min(low, loss)
    return found if math.isfinite(found) else -math.inf


def judged(
    peak: float, base: float, original: float, *, level: float = -math.inf, usual: float = -math.inf
) -> tuple[float, Verdict]:
    """Returns the share of the original's rise that is left, and what to call it.

    Args:
        peak: the arm's largest loss.
        base: level of the loss before the event.
        original: largest loss without a change.
        level: the lowest that the arm's own loss had been before its peak; counts where it is above the base.
        usual: largest loss that noise makes: an arm that stays below it has no event left.

    An event is gone where at most a quarter of its rise is left, and, where losses are positive, at most .35 of the
    rise of its logarithm: a spike of 600 times the level is not gone at 100 times.

    >>> judged(1.1, 1.0, 2.0)[1], judged(1.5, 1.0, 2.0)[1], judged(2.0, 1.0, 2.0)[1], judged(100.0, 1.0, 600.0)[1]
    ('removed', 'weakened', 'stays', 'weakened')
    >>> judged(1.5, 1.0, 2.0, level=1.45)[1]
    'removed'
    >>> judged(1.0, 1.0, math.inf)
    (0.0, 'removed')
    """
    if math.isnan(peak):
        return math.nan, "failed"
    if math.isinf(original):
        low = math.isfinite(peak) and peak < HIGH * max(abs(base), 1e-300)
        return (0.0, "removed") if low else (1.0, "stays")
    if math.isinf(peak):
        return math.inf, "worse"
    level = max(base, level)
    share = max(0.0, peak - level) / max(original - base, 1e-300)
    logs = share
    if base > 0 and peak > 0 and original > base:
        logs = max(0.0, math.log(peak / level)) / math.log(original / base)
    noise = peak <= usual <= base + WEAKENED * (original - base)
    if noise or (share <= REMOVED and logs <= REMOVED_LOG):
        return share, "removed"
    if share <= WEAKENED and logs <= WEAKENED_LOG:
        return share, "weakened"
    return share, "worse" if share > WORSE else "stays"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
