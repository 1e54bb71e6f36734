"""Faults to test a guard with: what goes wrong in trainings, at a step of your choice, the same at every try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from foreshock.errors import UsageError
from foreshock.testing.injector import Injector

__all__ = [
    "Fault", "Injector", "bit_flip", "constant_batch", "nan_gradient", "raised_lr", "random_batch", "scaled_gradient",
    "standard", "state_reset", "wrong_mixture",
]

Source = Iterable[Any] | Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, as the functions of this file describe it; an `Injector` makes it happen.

    Attributes:
        kind: name of the function that described it.
        at: first step, from 0, that it strikes.
        steps: for how many steps.
        factor: of gradients or of the learning rate.
        count: gradient elements or weights that are struck.
        value: what a gradient element becomes.
        parameter: name of the tensor that is struck; None draws from all elements of all tensors.
        bit: which one is flipped.
        how: what becomes of the optimizer's state.
        vocabulary: ids that random tokens are drawn from.
        source: where batches of another kind come from.
    """

    kind: str
    at: int
    steps: int = 1
    factor: float = 1.0
    count: int = 1
    value: float = math.nan
    parameter: str | None = None
    bit: int | str = "top"
    how: str = "clear"
    vocabulary: int | None = None
    source: Source | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("at", 0), ("steps", 1), ("count", 1)):
            _whole(name, getattr(self, name), least)
        if self.vocabulary is not None:
            _whole("vocabulary", self.vocabulary, 1)
        if not math.isfinite(self.factor):
            raise UsageError(f"factor: must be finite, got {self.factor}")
        if self.bit not in ("top", "exponent", "any"):
            _whole("bit", self.bit, 0)
        if self.how not in ("clear", "zero"):
            raise UsageError(f'how: must be "clear" or "zero", got {self.how!r}')

    def active(self, step: int) -> bool:
        """Returns whether the fault strikes this step.

        >>> [step for step in range(10) if raised_lr(5, steps=2).active(step)]
        [5, 6]
        """
        return self.at <= step < self.at + self.steps


def random_batch(at: int, *, steps: int = 1, vocabulary: int | None = None) -> Fault:
    """Returns the fault of batches that hold noise: a corrupted shard, a tokenizer of another model.

    Integers, labels included, are uniform over the ids seen in their tensor, or over 0..vocabulary-1 for tokens; floats
    are normal with the mean and standard deviation of theirs.
    """
    return Fault("random_batch", at, steps, vocabulary=vocabulary)


def constant_batch(at: int, *, steps: int = 1) -> Fault:
    """Returns the fault of batches that repeat one value taken from them: padding, a stuck reader, a blank scan."""
    return Fault("constant_batch", at, steps)


def scaled_gradient(at: int, *, factor: float = 1000.0, steps: int = 1) -> Fault:
    """Returns the fault of gradients `factor` times too large: a loss scale not taken out, a sum in place of a mean."""
    return Fault("scaled_gradient", at, steps, factor=factor)


def nan_gradient(
    at: int, *, count: int = 1, steps: int = 1, parameter: str | None = None, value: float = math.nan
) -> Fault:
    """Returns the fault of `count` gradient elements that are NaN, or another `value`: an overflow in one kernel."""
    return Fault("nan_gradient", at, steps, count=count, parameter=parameter, value=value)


def raised_lr(at: int, *, factor: float = 60.0, steps: int = 4) -> Fault:
    """Returns the fault of a learning rate `factor` times too high for some steps: a scheduler resumed wrongly."""
    if not factor > 0.0:
        raise UsageError(f"factor: must be positive, got {factor}")
    return Fault("raised_lr", at, steps, factor=factor)


def bit_flip(at: int, *, parameter: str | None = None, bit: int | str = "top", count: int = 1) -> Fault:
    """Returns the fault of memory: one bit of `count` weights is flipped before the forward pass of step `at`.

    Args:
        at: the step. The weights stay as they are then until somebody repairs them.
        parameter: name of the tensor; by default any weight of the model may be struck, each as likely as the other.
        bit: its number, 0 the lowest of the mantissa; "top", the highest of the exponent, which multiplies what is
            below 2 by 2**128 in float32; "exponent", any of the exponent's; "any", any of all.
        count: weights, each with a bit of its own.
    """
    return Fault("bit_flip", at, parameter=parameter, bit=bit, count=count)


def state_reset(at: int, *, how: str = "clear") -> Fault:
    """Returns the fault of an optimizer that has lost its state before the update of step `at`.

    Args:
        at: the step.
        how: "clear" empties the state, as after a resume that forgot it: Adam's bias correction starts again as well.
            "zero" zeroes the moments and keeps the step count, so that nothing corrects for it: the next updates of
            Adam are (1-beta1)/sqrt(1-beta2) times lr. An optimizer that makes its state when it is constructed
            (`torch.optim.Adagrad`) can only be zeroed.
    """
    return Fault("state_reset", at, how=how)


def wrong_mixture(at: int, source: Source, *, steps: int = 20) -> Fault:
    """Returns the fault of data of another kind for some steps: a mixture's weights swapped, a wrong language.

    Args:
        at: the first step.
        source: `source(step)` gives the batch; or batches to go round, a sequence by `step - at`, so that a step that
            is done again gets the same, any other iterable in its own order.
        steps: for how many.
    """
    if not callable(source) and not isinstance(source, Iterable):
        raise UsageError(f"source: must be batches or a function of the step, got {type(source).__name__}")
    return Fault("wrong_mixture", at, steps, source=source)


def standard(at: int, *, source: Source | None = None, vocabulary: int | None = None) -> dict[str, Fault]:
    """Returns every fault by its name, with its defaults; the wrong mixture only if there is a `source` for it.

    >>> list(standard(300))
    ['random_batch', 'constant_batch', 'scaled_gradient', 'nan_gradient', 'raised_lr', 'bit_flip', 'state_reset']
    """
    found = [
        random_batch(at, vocabulary=vocabulary), constant_batch(at), scaled_gradient(at), nan_gradient(at),
        raised_lr(at), bit_flip(at), state_reset(at),
    ]
    if source is not None:
        found.append(wrong_mixture(at, source))
    return {fault.kind: fault for fault in found}


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}: must be a whole number of at least {least}, got {value!r}")
