"""Any data, with a way back for the batches that were refused."""

from __future__ import annotations

import random
import warnings
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.requeue.plain import copied, outlined, read, written
from foreshock.requeue.stream import END, Stream

OUTCOMES = ("accepted", "scaled", "requeue", "retry", "quarantine", "drop")
STATE_VERSION = 1
# Batches that are remembered before anybody settles: more micro-batches to an attempt are rare, and a loop that never
# settles must not keep its data.
REMEMBERED = 128
# Tries of batches that were let through with a smaller update are kept for so many of them.
KEPT_TRIES = 1000


@dataclass(slots=True)
class Held:
    """A batch that has been handed out.

    Attributes:
        number: its id, the count of first deliveries before its own.
        batch: what is in it.
        changes: how often its tensors had been changed in place then; None for a copy that nobody else has.
        due: it comes again after so many first deliveries.
    """

    number: int
    batch: Any
    changes: tuple[int, ...] | None
    due: int = 0


class Requeue:
    """Wraps data so that batches come back when they were refused; otherwise they pass through untouched.

    Ling rule 1 (Ling team 2025, arXiv 2503.05139): data whose update was skipped go back at random positions of later
    batches. A guard says what became of the batches of an attempt::

        data = Requeue(DataLoader(...))
        for batch in data:
            ...
            guard.step()          # which calls data.settle("accepted"), or "requeue", ...

    * A batch's id is the count of first deliveries before its own, over all epochs. A batch that comes back keeps it,
      so whoever removes duplicates must do so before this wrapper, or by id.
    * "requeue": it comes back after 1 to `horizon` new batches, in this epoch as far as the length of the data is
      known. At the end of an epoch those still waiting come one after the other, each once; one that is refused there
      comes in the next epoch. Nothing is lost, and no epoch is endless: `waiting` says what is left after the last.
    * "retry": it comes next. "quarantine", "drop": never again. "scaled": used, and counted as a try.
    * The positions depend on the seed and the number of refusals, so ranks that wrap loaders of equal length with the
      same seed and settle alike stay in step.
    * A loop that never settles sees the plain data. Breaking off an epoch drops what was not settled.
    * Whatever hands out batches ahead of time, such as a prefetcher to an accelerator, belongs inside.

    Saved and loaded, it goes on as if never stopped, bit for bit: order, waiting batches, positions, random state of
    worker processes. For that the epoch is gone through again up to its place, without training. Data with a
    `state_dict` of their own, such as torchdata's `StatefulDataLoader`, know a faster way, and restore what they
    restore: that one the order, but of its workers' random state only what the data set keeps in its own state. The
    state saved is that between two attempts: batches handed out and not settled come again, first of all.

    Args:
        data: a `DataLoader`, or anything that can be iterated over; endless ones too.
        seed: of the positions; nothing is drawn from the global streams.
        horizon: new batches within which a batch comes back. The paper gives no number; 1,000 is ours.

    Attributes:
        epoch: number of the pass under way, or of the next, from 0.
        quarantined: ids that never come back.

    >>> data, seen = Requeue([10, 11, 12, 13], horizon=2), []
    >>> for value in data:
    ...     seen.append((*data.current, value))
    ...     data.settle("requeue" if value == 11 and data.tries(data.current) == 0 else "accepted")
    >>> seen
    [(0, 10), (1, 11), (2, 12), (1, 11), (3, 13)]
    """

    def __init__(self, data: Iterable[Any], *, seed: int = 0, horizon: int = 1000) -> None:
        if not isinstance(data, Iterable):
            raise UsageError(f"data: must be an iterable of batches, got {type(data).__name__}")
        if not isinstance(horizon, int) or horizon < 1:
            raise UsageError(f"horizon: must be a whole number of at least 1, got {horizon!r}")
        self.data = data
        self.seed = seed
        self.horizon = horizon
        self.epoch = 0
        self.quarantined: list[int] = []
        self._stream = Stream(data)
        self._passing = False  # an epoch is under way
        self._goes_on = False  # and the next `for` goes on with it, because it was loaded
        self._settles = False
        self._iteration = 0
        self._fresh = 0  # first deliveries so far; positions are counted in them, so that there always are some between
        self._returns = 0  # batches that were given back so far
        self._tries: dict[int, int] = {}
        self._out: deque[Held] = deque(maxlen=REMEMBERED)  # not settled
        self._again: deque[Held] = deque()  # to be retried
        self._waiting: list[Held] = []  # sorted by when they are due
        self._last: deque[Held] = deque()  # for the end of this epoch

    @property
    def current(self) -> tuple[int, ...]:
        """Ids of the batches handed out since the last `settle`."""
        return tuple([held.number for held in self._out])

    @property
    def waiting(self) -> tuple[int, ...]:
        """Ids of the batches that are to come back."""
        return tuple(held.number for held in (*self._again, *self._last, *self._waiting))

    def tries(self, ids: Iterable[int]) -> int:
        """Returns how often the batches were refused before, or let through with a smaller update; the most of them."""
        if not self._tries:
            return 0
        return max((self._tries.get(number, 0) for number in ids), default=0)

    def settle(self, outcome: str) -> None:
        """Says what became of the batches handed out since the last call; see the class for what follows.

        Raises:
            UsageError: the outcome is none of `OUTCOMES`.
        """
        if outcome not in OUTCOMES:
            raise UsageError(f"outcome: must be one of {', '.join(OUTCOMES)}, got {outcome!r}")
        if not self._settles:
            self._settles = True
            self._out = deque(self._out)
        if outcome == "accepted" and not self._tries:  # nearly always
            self._out.clear()
            return
        out, self._out = self._out, deque()
        if outcome in ("requeue", "retry"):
            for held in out:
                self._tries[held.number] = self._tries.get(held.number, 0) + 1
                self._keep(held)
            if outcome == "retry":
                self._again.extendleft(reversed(out))
            else:
                for held in out:
                    held.due = self._fresh + self._offset()
                    insort(self._waiting, held, key=attrgetter("due"))
            return
        if outcome == "scaled":
            for held in out:
                self._tries[held.number] = self._tries.pop(held.number, 0) + 1
            for number in list(self._tries)[: -KEPT_TRIES]:
                if number not in self.waiting:
                    del self._tries[number]
            return
        if outcome == "quarantine":
            self.quarantined += [held.number for held in out]
        if self._tries:
            for held in out:
                self._tries.pop(held.number, None)

    def __iter__(self) -> Iterator[Any]:
        self._iteration += 1
        if self._goes_on:
            self._goes_on = False
        else:
            if self._passing:  # the epoch before was broken off
                self._out.clear()
                self.epoch += 1
            self._waiting = [*self._last, *self._waiting]
            self._last.clear()
            self._stream.begin()
            self._passing = True
        return self._deliveries(self._iteration)

    def __len__(self) -> int:
        """Returns the number of batches of an epoch in which none is refused."""
        return len(self.data)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "data" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.data, name)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs to go on as if it had not stopped: tensors and plain values only.

        Waiting batches are in it with their content. One that holds objects which only pickle could write is left out,
        with a warning.
        """
        out = list(self._out) if self._settles else []
        return {
            "version": STATE_VERSION,
            "stream": self._stream.state_dict(),
            "epoch": self.epoch,
            "passing": self._passing,
            "settles": self._settles,
            "fresh": self._fresh,
            "returns": self._returns,
            "tries": [list(pair) for pair in self._tries.items()],
            "quarantined": list(self.quarantined),
            "again": _written([*out, *self._again]),
            "waiting": _written(self._waiting),
            "last": _written(self._last),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned: the next `for` finishes that epoch, as does a loop under way.

        Raises:
            UsageError: the state is not a Requeue's, or the data are an iterator that has been used and cannot be gone
                through again.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION or "stream" not in state:
            found = state.get("version") if isinstance(state, dict) else type(state).__name__
            raise UsageError(f"not the state of a Requeue of version {STATE_VERSION}: found {found!r}")
        again, waiting, last = (_read(state[name]) for name in ("again", "waiting", "last"))
        self._stream.load_state_dict(state["stream"])
        self.epoch, self._passing, self._goes_on = state["epoch"], state["passing"], state["passing"]
        self._settles = state["settles"]
        self._fresh, self._returns = state["fresh"], state["returns"]
        self._tries = dict(state["tries"])
        self.quarantined = list(state["quarantined"])
        self._out = deque(maxlen=None if self._settles else REMEMBERED)
        self._again, self._waiting, self._last = deque(again), waiting, deque(last)

    def _deliveries(self, iteration: int) -> Iterator[Any]:
        while True:
            if iteration != self._iteration:
                raise UsageError("data: another loop over this Requeue has begun; one at a time, or wrap twice")
            self._goes_on = False
            if not self._passing:
                return
            batch = self._next()
            if batch is END:
                self._passing = False
                self.epoch += 1
                return
            yield batch

    def _next(self) -> Any:
        if self._again:
            return self._returned(self._again.popleft())
        if self._last:
            return self._returned(self._last.popleft())
        if self._stream.running:
            if self._waiting and self._waiting[0].due <= self._fresh:
                return self._returned(self._waiting.pop(0))
            batch = self._stream.take()
            if batch is not END:
                self._out.append(Held(self._fresh, *outlined(batch)))
                self._fresh += 1
                return batch
            self._last, self._waiting = deque(self._waiting), []
            return self._next()
        return END

    def _returned(self, held: Held) -> Any:
        self._out.append(held)
        return copied(held.batch)

    def _keep(self, held: Held) -> None:
        """Makes the batch one that nobody else can change."""
        if held.changes is None:
            return
        if outlined(held.batch)[1] != held.changes:
            warnings.warn(
                f"batch {held.number} was changed in place by the training loop, and comes back as it is now",
                ForeshockWarning,
                stacklevel=3,
            )
        held.batch, held.changes = copied(held.batch), None

    def _offset(self) -> int:
        """Returns after how many first deliveries the next batch that is given back is due."""
        left = self._stream.left() if self._stream.running else None
        most = self.horizon if not left else min(self.horizon, left)
        self._returns += 1
        return random.Random(f"{self.seed} {self._returns}").randint(1, most)


def _written(batches: Iterable[Held]) -> list[dict[str, Any]]:
    found = []
    for held in batches:
        try:
            found.append({"id": held.number, "due": held.due, "batch": written(held.batch)})
        except UsageError as error:
            warnings.warn(
                f"batch {held.number}, which waits to come back, is not saved: {error}", ForeshockWarning, stacklevel=3
            )
    return found


def _read(saved: Sequence[dict[str, Any]]) -> list[Held]:
    return [Held(each["id"], read(each["batch"]), None, each["due"]) for each in saved]
