"""A whole data set as one loss: the batches in a fixed order, each counted by its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError


class Batches:
    """Data that can be gone through again and again, each batch with the weight of its mean loss.

    The mean over the data is sum_b w_b L_b / sum_b w_b, exact also when the last batch is smaller.

    Args:
        data: anything that can be iterated over repeatedly: a `DataLoader`, a list of batches.
        weight: `weight(batch)` is what the batch's mean loss counts; by default the number of its samples, which is the
            first dimension of its first tensor. Losses that are means over tokens, of batches with padding, need one.
        progress: shows a bar on standard error during each pass.

    Raises:
        UsageError: the data can be gone through only once.
    """

    def __init__(
        self, data: Iterable[Any], *, weight: Callable[[Any], float] | None = None, progress: bool = False
    ) -> None:
        if not isinstance(data, Iterable):
            raise UsageError(f"data: must be an iterable of batches, got {type(data).__name__}")
        if isinstance(data, Iterator):
            raise UsageError(
                f"data: a {type(data).__name__} can be gone through only once, but every product needs a pass; "
                "give a list of the batches or a DataLoader"
            )
        self.data = data
        self.weight = weight
        self.progress = progress

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        """Yields each batch with its weight."""
        empty = True
        for batch in self._shown():
            empty = False
            yield batch, self._weigh(batch)
        if empty:
            raise UsageError("data: there is no batch in it")

    def __len__(self) -> int:
        """Returns the number of batches.

        Raises:
            TypeError: the data does not know.
        """
        return len(self.data)  # type: ignore[arg-type]

    def _weigh(self, batch: Any) -> float:
        if self.weight is None:
            return float(samples(batch))
        weight = float(self.weight(batch))
        if not weight >= 0.0 or weight == float("inf"):
            raise UsageError(f"weight: must be finite and not negative, got {weight} for a batch")
        return weight

    def _shown(self) -> Iterable[Any]:
        if not self.progress:
            return self.data
        from rich.console import Console
        from rich.progress import track

        try:
            total: int | None = len(self)
        except TypeError:
            total = None
        return track(self.data, "batches", total=total, console=Console(stderr=True), transient=True)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Puts back, at the end of the block, the generators that the loader and its samplers own."""
        with ExitStack() as stack:
            for generator in self.generators():
                stack.callback(generator.set_state, generator.get_state())
            yield

    def generators(self) -> list[torch.Generator]:
        """Returns the generators that the loader and its samplers own."""
        found: dict[int, torch.Generator] = {}
        owners = [self.data, *(getattr(self.data, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
        owners += [getattr(owner, "sampler", None) for owner in owners]
        for owner in owners:
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
        return list(found.values())


def samples(batch: Any) -> int:
    """Returns the number of samples of a batch: the first dimension of the first tensor in it.

    Raises:
        UsageError: there is no tensor with a dimension in it.

    >>> import torch
    >>> samples((torch.zeros(3, 5), torch.zeros(3)))
    3
    """
    first = _first_tensor(batch)
    if first is None:
        raise UsageError(
            f"data: the number of samples of a batch of type {type(batch).__name__} cannot be told; "
            "give data=Batches(data, weight=...), a function of the batch"
        )
    return int(first.shape[0])


def _first_tensor(batch: Any) -> Tensor | None:
    if hasattr(batch, "shape") and hasattr(batch, "dtype"):
        return batch if len(batch.shape) else None
    if isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        batch = [batch[key] for key in batch.keys()]  # noqa: SIM118
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for part in batch:
            found = _first_tensor(part)
            if found is not None:
                return found
    elif hasattr(batch, "__dict__"):
        return _first_tensor([part for part in vars(batch).values() if isinstance(part, Tensor)])
    return None
