"""A loss at many points of a plane: all in one pass where the closure allows it, else one after the other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foreshock.curvature.anatomy import LOW
from foreshock.curvature.harmless import harmless, random_state, restore_random_state
from foreshock.curvature.loader import Batches
from foreshock.curvature.surroundings import surroundings
from foreshock.errors import UsageError
from foreshock.landscape.called import modules_called
from foreshock.landscape.plane import Plane
from foreshock.landscape.standing import Stand, standing_at

Closure = Callable[..., Tensor]

# Memory that the points evaluated at once may take: copies of the parameters, and of the largest tensors in between.
_BYTES = {"cpu": 1 << 26}
_BYTES_ELSEWHERE = 1 << 30
_LIVING = 4  # of a pass's largest tensors that are alive at a time
# How far a batched loss may be from a direct one, in machine epsilons of the parameters: sums in another order.
_EPSILONS = 4096
_ASIDE = 1e-3  # how far from the origin the first pass is checked where nothing but the origin is asked for


class Evaluator:
    """The loss that a closure computes, at points of a plane, without a trace in the training.

    The points are evaluated in one batched pass (`torch.func.vmap` over the parameters), in chunks as memory allows,
    and the first such pass is held against direct evaluations. Closures that cannot be batched, such as those with
    batch normalisation in train mode, recurrent layers, or Python branches on values, are evaluated point by point.
    Random numbers are replayed: a surface belongs to one draw of them.

    Args:
        closure: `closure()`, or with `data` `closure(batch)`, gives a scalar loss, with `data` the mean over the batch.
        plane: whose points are meant.
        data: the batches of a whole data set; each is loaded once for all points.

    Attributes:
        batched: whether points are evaluated in one pass; None before the first.
        reason: why they are not.
        passes: forward passes so far, a batched one of p points counted as p.
    """

    def __init__(self, closure: Closure, plane: Plane, *, data: Iterable[Any] | None = None) -> None:
        if not callable(closure):
            raise UsageError(f"closure: a function that computes the loss is needed, got {type(closure).__name__}")
        self._closure, self._plane = closure, plane
        self._data = data if isinstance(data, Batches) or data is None else Batches(data)
        self._roots: list[nn.Module] = []
        self._chunk = self._most = 0
        self._differentiates = False
        self.batched: bool | None = None
        self.reason = ""
        self.passes = 0

    @property
    def notes(self) -> tuple[str, ...]:
        if self.batched is None:
            return ()
        how = "one batched pass" if self._most <= self._chunk else f"batched, {self._chunk} points at a time"
        notes = [how if self.batched else f"point by point: {self.reason}"]
        low = {param.dtype for param in self._plane.params if param.dtype in LOW}
        notes += [f"points are rounded to {str(kind).removeprefix('torch.')}, as the parameters are" for kind in low]
        return tuple(notes)

    def __call__(self, coordinates: np.ndarray) -> np.ndarray:
        """Returns the losses at points, shape (p,), float64.

        Args:
            coordinates: shape (p, 2).

        Raises:
            UsageError: the closure does not return one number, or another one each time.
        """
        points = np.asarray(coordinates, dtype=float).reshape(-1, 2)
        where = torch.from_numpy(points)
        self._most = max(self._most, len(points))
        if not len(points):
            return np.empty(0)
        start = random_state()
        total: Tensor | None = None
        weights = 0.0
        with ExitStack() as stack:
            if self._data is not None:
                stack.enter_context(harmless(self._plane.params))  # a loader draws its order from the global stream
                stack.enter_context(self._data.unmoved())
            for batch, weight in ((None, 1.0),) if self._data is None else self._data:
                loss = self._closure if self._data is None else _on(self._closure, batch)
                found = self._losses(loss, where, start)
                total = found.mul_(weight) if total is None else total.add_(found, alpha=weight)
                weights += weight
        assert total is not None
        self.passes += len(points)
        return (total / weights).double().cpu().numpy() if total.device.type != "mps" else (
            (total / weights).cpu().double().numpy()
        )

    def _losses(self, loss: Closure, where: Tensor, start: Any) -> Tensor:
        """Returns the losses of one batch at points, shape (p,), on the device."""
        if self.batched is None:
            self._begin(loss, where, start)
        if self.batched:
            found = self._in_one_pass(loss, where, start)
            if found is not None:
                return found
        return torch.stack([self._direct(loss, point, start) for point in where])

    def _begin(self, loss: Closure, where: Tensor, start: Any) -> None:
        """Finds out whether the closure can be batched, by points that are far apart, and how many fit at once."""
        far = where[(where**2).sum(1).argmax()]
        if not bool(far.any()):
            far = far + _ASIDE  # the origin alone would not show parameters that a batched pass does not see
        probes = torch.stack([far, 0.5 * far + 0.25 * far.flip(0)])
        self._roots = modules_called(loss, self._plane.params, self._closure)
        largest = _Largest()
        with largest:
            direct = [self._direct(loss, probes[0], start)]
        direct += [self._direct(loss, probes[1], start)]
        if not _alike(direct[0], self._direct(loss, probes[0], start), self._rounding()):
            raise UsageError(
                f"the closure is not deterministic: it gave a loss of {float(direct[0]):.9g}, then another one at the "
                "same parameters and random numbers; compute the loss of one fixed batch"
            )
        if self._differentiates:
            self.batched, self.reason = False, "the closure differentiates in itself"
            return
        each = sum(param.numel() * max(param.element_size(), 4) for param in self._plane.params)
        each += _LIVING * largest.bytes
        kind = self._plane.params[0].device.type
        self._chunk = max(1, _BYTES.get(kind, _BYTES_ELSEWHERE) // max(each, 1))
        if self._chunk == 1 < len(where):
            self.batched, self.reason = False, "one point takes the memory that is meant for several"
            return
        self.batched = True
        batched = self._in_one_pass(loss, probes, start)
        if batched is None:
            return
        if not all(_alike(a, b, self._rounding()) for a, b in zip(direct, batched, strict=True)):
            self.batched, self.reason = False, "its batched loss differs from the direct one"
        self._chunk = min(self._chunk, 1 << 16)
        self._direct(loss, probes[0], start)  # so that what modules remember of a pass is no batched tensor

    def _in_one_pass(self, loss: Closure, where: Tensor, start: Any) -> Tensor | None:
        """Returns the losses at points in chunks; None, and no further tries, where the closure cannot be batched."""
        params = self._plane.params

        def at(*values: Tensor) -> Tensor:
            with Stand(params, values):
                return _number(loss())

        found, place = [], 0
        while place < len(where):
            try:
                with self._passing(start), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    some = self._plane.points(where[place : place + self._chunk])
                    batch = torch.func.vmap(at, randomness="same")(*some)
                found.append(_widened(batch))
                place += self._chunk
            except torch.OutOfMemoryError:
                if self._chunk == 1:
                    raise
                self._chunk //= 2
            except Exception as error:  # whatever vmap cannot do; the direct pass says what is the closure's own fault
                self.batched, self.reason = False, f"it cannot be batched ({_first_line(error)})"
                return None
        return torch.cat(found)

    def _direct(self, loss: Closure, point: Tensor, start: Any) -> Tensor:
        """Returns the loss at one point, a 0-D tensor on the device."""
        values = [stacked[0] for stacked in self._plane.points(point.view(1, 2))]
        if not self._differentiates:
            try:
                with self._passing(start), standing_at(self._plane.params, values):
                    return _widened(_number(loss()))
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                self._differentiates = True
        with self._passing(start, gradients=True), standing_at(self._plane.params, values):
            return _widened(_number(loss()).detach())

    @contextmanager
    def _passing(self, start: Any, *, gradients: bool = False) -> Iterator[None]:
        modules = [module for root in self._roots for module in root.modules()]
        device = self._plane.params[0].device
        with harmless(self._plane.params, self._roots), surroundings(modules, device):
            restore_random_state(start)
            with torch.set_grad_enabled(gradients):
                yield

    def _rounding(self) -> float:
        return min(_EPSILONS * max(torch.finfo(param.dtype).eps for param in self._plane.params), 0.05)


class _Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that any torch function returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if type(result) is Tensor:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def _on(closure: Closure, batch: Any) -> Closure:
    return lambda: closure(batch)


def _number(loss: object) -> Tensor:
    """Returns what a closure returned as a 0-D tensor.

    Raises:
        UsageError: it is not one real number.
    """
    if isinstance(loss, (int, float)):
        return torch.tensor(float(loss), dtype=torch.float64)
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return loss.reshape(())
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise UsageError(f"the closure must return one real number, got {found}; take its mean, or its sum")


def _widened(loss: Tensor) -> Tensor:
    return loss.double() if loss.device.type != "mps" else loss.float()


def _alike(a: Tensor, b: Tensor, rounding: float) -> bool:
    first, second = float(a), float(b)
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return abs(first - second) <= rounding * max(abs(first), abs(second), 1e-30)


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {line}" if len(line) <= 120 else f"{type(error).__name__}: {line[:117]}..."
