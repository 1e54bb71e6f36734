"""In which order the signals left their range around an event: at which step each, and by how much.

What a step records has an order of its own: the loss is that of theta_t on batch t, before the update; then come the
gradient, the second moment that has taken it in, the update, and the norm of theta_{t+1}. A loss that stands out while
all updates before it were usual was made by its batch; an update that stands out at a usual loss made what follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from foreshock.detect.series import Floats, Ints, near
from foreshock.diagnose.usual import FEWEST, OUT, Reading, Track, tracked
from foreshock.run.event import Event
from foreshock.run.run import Run

SIGNALS = (
    "lr", "loss_scale", "micro_batches", "batch_size", "loss", "grad_norm", "grad_sq_over_v_max", "grad_sq_over_v_mean",
    "v_ratio", "effective_step", "update_norm", "update_rms", "update_in_lr", "param_norm", "grad_cosine",
)  # fmt: skip
"""What is read, in the order in which it happens within a step; "update_in_lr" is `update_rms` over the learning rate,
its largest where groups have different ones."""

BEFORE: Mapping[str, int] = {
    "divergence": 32,
    "drift": 64,
    "nonfinite": 64,
}  # records before the onset that are looked at as well,
USUALLY = 16  # because detectors wait until they are sure, those of a level longest, and numbers end last of all
BASE = 128  # accepted records before those, which tell what is usual, at most
AFTER = 32  # records after the peak, which tell how it went on
RAISED, PART, WAVER = 3.0, 0.1, 3  # a stretch: the median of so many records is so far up, in deviations and of the top
LEAPT, BEYOND = 0.5, 1e9  # part of the height; deviations beyond which heights are not told apart
GROWN = 2 * OUT  # deviations that are no noise


@dataclass(frozen=True, slots=True)
class Onset:
    """The order in which signals left their range around one event.

    Attributes:
        event: the event.
        looked: first and last step at which departures were looked for.
        base: first and last step that tell what is usual.
        known: accepted records among them.
        rise: where the loss rose: the record in which it leapt to half of its height (values that are not finite count
            as high), else the first of the stretch up to the peak that stood above its range; None where none did.
        departures: the first reading out of range of each signal, by step, and within a step in the order of `SIGNALS`.
        steps: steps of the records from the base on.
        tracks: signal -> all its readings from the base on, of those that were recorded often enough.
    """

    event: Event
    looked: tuple[int, int]
    base: tuple[int, int]
    known: int
    rise: int | None
    departures: tuple[Reading, ...]
    steps: Ints = field(repr=False)
    tracks: Mapping[str, Track] = field(repr=False)

    @property
    def first(self) -> Reading | None:
        """What left its range first; None where nothing did."""
        return self.departures[0] if self.departures else None

    def left(self, signal: str) -> Reading | None:
        """Returns the first reading of a signal that was out of its range; None where none was."""
        return next((each for each in self.departures if each.signal == signal), None)

    def at(self, signal: str, step: int) -> Reading | None:
        """Returns the reading of a signal at a step, out of range or not; None where it was not measured there."""
        track = self.tracks.get(signal)
        return None if track is None else track.at(step)

    def previous(self, step: int, records: int = 1) -> int | None:
        """Returns the step of the record that comes so many records before this step's; None before the base."""
        return self._shifted(int(np.searchsorted(self.steps, step)) - records)

    def following(self, step: int, records: int = 1) -> int | None:
        """Returns the step of the record that comes so many records after this step's; None past the end."""
        return self._shifted(int(np.searchsorted(self.steps, step, side="right")) - 1 + records)

    def _shifted(self, place: int) -> int | None:
        return int(self.steps[place]) if 0 <= place < len(self.steps) else None


_FOUND: WeakKeyDictionary[Run, tuple[Event, Onset | None]] = WeakKeyDictionary()  # every cause asks for the last one


def onset(run: Run, event: Event) -> Onset | None:
    """Returns the order in which signals left their range; None where fewer than 8 steps tell what was usual.

    What is usual is learnt from up to 128 accepted steps that end 16 records before the event's onset (32 for a
    divergence, 64 for a drift or values that are not finite): level and trend of the last 48 by Tukey's resistant line,
    noise as the median absolute deviation from line and running median. Signals that were positive are read on the
    scale of their logarithm.

    Args:
        run: the run, complete or so far; imported ones with whatever they have.
        event: of any kind.

    >>> import numpy as np
    >>> noise = 1 + 0.02 * np.sin(np.arange(100.0) ** 2)
    >>> loss, norm = 2 * noise, 3 * noise[::-1]
    >>> norm[70] = 300.0
    >>> loss[71:80] = 8.0
    >>> run = Run.from_arrays({"loss": loss, "grad_norm": norm})
    >>> found = onset(run, Event("spike", 71, 71, 71, 79, 6.0, 100.0, "loss"))
    >>> [(each.signal, each.step) for each in found.departures], found.rise
    ([('grad_norm', 70), ('loss', 71)], 71)
    >>> round(found.left("grad_norm").ratio, -1), found.at("loss", 70).out
    (100.0, False)
    """
    run = near(run, event)
    known = _FOUND.get(run)
    if known is None or known[0] != event:
        known = _FOUND[run] = (event, _onset(run, event))
    return known[1]


def tensors(run: Run, event: Event, signal: str, step: int) -> tuple[Reading, ...]:
    """Returns the reading of each tensor's signal at a step, the furthest above its range first.

    Args:
        run: the run.
        event: the event whose baseline is used.
        signal: a per-tensor signal, e.g. "grad_norm".
        step: where to read it; tensors without a value there are left out.
    """
    found = onset(run, event)
    run = near(run, event)
    if found is None or not (names := run.tensors(signal)):
        return ()
    steps, _, values = run.window(found.base[0], step + 1).matrix(signal)
    if not len(steps) or steps[-1] != step:
        return ()
    kept = np.isin(steps, run.steps[run.taken]) & (steps <= found.base[1])
    kept[-1] = True
    columns = np.asarray(values, np.float64)[kept]
    readings = []
    for name, column in zip(names, columns.T, strict=True):
        track = tracked(f"{signal}/{name}", steps[kept], column, int(kept.sum()) - 1)
        reading = None if track is None else track.at(step)
        if reading is not None and not math.isnan(reading.z):
            readings.append(reading)
    return tuple(sorted(readings, key=lambda each: -each.z))


def _onset(run: Run, event: Event) -> Onset | None:
    steps = run.steps
    at = int(np.searchsorted(steps, event.onset))
    early = min(BEFORE.get(event.kind, USUALLY), (at - FEWEST) // 2)
    if early < 1 or not len(steps):
        return None
    peak = max(event.peak, event.onset)
    stop = min(len(steps), int(np.searchsorted(steps, peak, side="right")) + AFTER)
    taken = np.flatnonzero(run.taken[: at - early])[-BASE:]
    if len(taken) < FEWEST:
        return None
    read = np.concatenate((taken, np.arange(at - early, stop)))
    steps = steps[read]
    tracks = {}
    for name in SIGNALS:
        values = _values(run, name)
        if values is not None:
            track = tracked(name, steps, values[read], len(taken))
            if track is not None:
                tracks[name] = track
    first, last = int(steps[len(taken)]), peak
    found = [track.first_out(first, last) for track in tracks.values()]
    departures = sorted((each for each in found if each), key=lambda each: (each.step, SIGNALS.index(each.signal)))
    rise = _rise(tracks.get("loss"), first, peak)
    base = int(steps[0]), int(steps[len(taken) - 1])
    return Onset(event, (first, last), base, len(taken), rise, tuple(departures), steps, tracks)


def _values(run: Run, name: str) -> Floats | None:
    """Returns a signal by record, NaN where it was not measured, infinite where it was NaN; None without it."""
    if name == "update_in_lr":
        updates, rates = _values(run, "update_rms"), _values(run, "lr")
        if updates is None or rates is None:
            return None
        with np.errstate(all="ignore"):
            result: Floats = np.where(rates > 0, updates / rates, np.nan)
        return result
    if name == "lr" and "lr" not in run and (groups := run.tensors("lr")):
        with np.errstate(all="ignore"):
            return np.fmax.reduce([run[f"lr/{group}"] for group in groups])  # type: ignore[no-any-return]
    if name not in run:
        return None
    steps, values = run.measured(name)
    result = np.full(len(run), np.nan)
    result[np.searchsorted(run.steps, steps)] = np.where(np.isfinite(values), values, np.inf)
    return result


def _rise(track: Track | None, first: int, peak: int) -> int | None:
    """Returns where the loss leapt to the half of its height in one record; else where the stretch of high ones begins.

    That stretch may waver, as small batches do.
    """
    if track is None:
        return None
    places = np.flatnonzero((track.steps >= first) & (track.steps <= peak))
    z = np.clip(track.z[places], -BEYOND, BEYOND)
    ended = np.flatnonzero(z == BEYOND)
    if len(ended) and (z[: ended[0]] >= GROWN).any():
        z = z[: ended[0]]  # what ends in infinity rose before
    if not (z >= OUT).any():
        return None
    before = [max([0.0, *z[max(0, place - WAVER) : place]]) for place in range(len(z))]
    leapt = int(np.argmax(z - before))
    if z[leapt] >= OUT and z[leapt] - before[leapt] >= LEAPT * z[leapt:].max():
        return int(track.steps[places[leapt]])
    raised = max(RAISED, PART * float(z.max()))
    begin = int(np.flatnonzero(z >= OUT)[-1])
    for place in range(begin - 1, -1, -1):
        late = z[max(0, place - WAVER + 1) : place + 1]
        if float(np.median(late)) < raised and (late < max(OUT, raised)).all():
            break
        begin = place if z[place] >= raised else begin
    return int(track.steps[places[begin]])
