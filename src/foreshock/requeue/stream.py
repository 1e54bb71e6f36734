"""Data that is gone through pass by pass, and can be taken up again where it was left."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.requeue.randomness import Randomness, owned, process_untouched, set_owned, states_read, states_written

END = object()
"""What `take` returns at the end of a pass."""


class Stream:
    """The batches of some data, one by one, with the place where one is.

    A pass that is taken up again is begun anew with the random state that it began with, so its order and the seeds of
    its workers are the same, and the batches before the place are fetched and thrown away: only so is the random state
    of a worker process what it was. Data with `state_dict` and `load_state_dict` of their own keep their place
    themselves. The random state of the process is not touched by any of it.

    Attributes:
        data: what is gone through.
        passes: how many passes have begun before the one under way.
        taken: batches taken in this pass; of an iterator, which has but one pass, all of them.
        running: whether a pass is under way.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.passes = 0
        self.taken = 0
        self.running = False
        self._iterator: Iterator[Any] | None = None
        self._start: Randomness | None = None
        self._owned: list[Any] = []  # generators of the data, at the place

    @property
    def once(self) -> bool:
        """Whether the data can be gone through only once, as a generator can."""
        return isinstance(self.data, Iterator) and not self.keeps_place

    @property
    def keeps_place(self) -> bool:
        """Whether the data have a state of their own that says where they are."""
        return hasattr(self.data, "state_dict") and hasattr(self.data, "load_state_dict")

    def left(self) -> int | None:
        """Returns how many batches the pass still has, as far as the data say; None where they do not."""
        if isinstance(self.data, DataLoader) and isinstance(self.data.dataset, IterableDataset):
            return None  # an estimate, and asking for it makes the loader warn when it was too low
        try:
            return max(0, len(self.data) - self.taken)  # type: ignore[arg-type]
        except TypeError:
            return None

    def begin(self) -> None:
        """Begins a pass."""
        self._start = None if self.keeps_place or self.once else Randomness.now(self.data)
        self._iterator = iter(self.data)
        self.running = True
        if not self.once:
            self.taken = 0

    def take(self) -> Any:
        """Returns the next batch, or END, which ends the pass."""
        if not self.running:
            return END
        if self._iterator is None:
            self._iterator = self._taken_up()
        batch = next(self._iterator, END)
        if batch is END:
            self.running, self._iterator = False, None
            self.passes += 1
        else:
            self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the place, and what is needed to find it again."""
        return {
            "passes": self.passes,
            "taken": self.taken,
            "running": self.running,
            "start": self._start.state_dict() if self._start is not None else None,
            "owned": [] if self.keeps_place else states_written(owned(self.data)),
            "data": self.data.state_dict() if self.keeps_place else None,  # type: ignore[attr-defined]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place; the batches before it are gone through when the next one is asked for.

        Raises:
            UsageError: the data are an iterator that is elsewhere.
        """
        if self.once:
            if state["taken"] != self.taken:
                raise UsageError(
                    f"data: {state['taken']} batches had been taken when the state was saved, {self.taken} now, and a "
                    f"{type(self.data).__name__} cannot be gone through again; wrap what makes it: a DataLoader, a "
                    "list, an object whose __iter__ begins anew, or one with state_dict and load_state_dict"
                )
            self.passes, self.running = state["passes"], state["running"]
            self._iterator = iter(self.data)
            return
        self._iterator = None
        self.passes, self.taken, self.running = state["passes"], state["taken"], state["running"]
        self._start = None if state["start"] is None else Randomness.from_state(state["start"])
        if self.keeps_place:
            if state["data"] is not None:
                self.data.load_state_dict(state["data"])  # type: ignore[attr-defined]
            return
        self._owned = states_read(state["owned"])
        if not self.running:
            set_owned(self.data, self._owned)

    def _taken_up(self) -> Iterator[Any]:
        if self.keeps_place:
            with process_untouched():
                return iter(self.data)
        if self._start is None:
            raise UsageError(
                "data: the state was saved with data that kept their place themselves; these do not: give the same kind"
            )
        if getattr(self.data, "persistent_workers", False) and self.passes:
            warnings.warn(
                "workers that live on from epoch to epoch (persistent_workers=True) cannot be given the random state "
                "they had: the order of the data is the same, but not what workers draw at random",
                ForeshockWarning,
                stacklevel=4,
            )
        with self._start.restored(self.data):
            iterator = iter(self.data)
            for number in range(self.taken):
                if next(iterator, END) is END:
                    raise UsageError(
                        f"data: {self.taken} batches of this epoch had been taken when the state was saved, but there "
                        f"are only {number}; give the same data"
                    )
        set_owned(self.data, self._owned)
        return iterator
