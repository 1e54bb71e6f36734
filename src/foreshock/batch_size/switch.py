"""Changes the batch size, or the strategy, of a training under way: learning rate, moments, and a mark in the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.batch_size.followers import scale_rates
from foreshock.batch_size.gain import RULES, lr_factor
from foreshock.batch_size.goodput import Candidate, size_of
from foreshock.batch_size.moments import HANDLING, Undo, change, ratio
from foreshock.errors import UsageError

__all__ = ["Switch", "switch"]

MARK = "batch_switched"
PROPORTIONAL = ("SGD", "ASGD")  # whose step is in proportion to the gradient

NoiseGiven: TypeAlias = "float | tuple[float, float] | Moments | Mapping[Any, tuple[float, float] | Moments] | None"
"""Noise scale; (tr Sigma, |G|^2); an estimate of them; or those by parameter, or by its name."""


class Moments(Protocol):
    """What is read of an estimate: `NoiseEstimate`, or anything like it."""

    @property
    def tr_sigma(self) -> float: ...
    @property
    def g_sq(self) -> float: ...


class Marked(Protocol):
    """What is used of a monitor."""

    attempt: Any

    @property
    def step(self) -> int: ...
    def note(self, kind: str, **fields: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Switch:
    """What was changed.

    Attributes:
        old, new: batch sizes, or (strategy, batch size).
        lr_rule, lr_factor: how the learning rates followed, and by what they were multiplied.
        moments: "keep", "rescale" or "reset".
        moment_factor: by which second moments were multiplied, the mean over the parameters; 1 where they were kept.
        tensors: of the optimizer's memory that were changed.
        remarks: what there is to say about it.
    """

    old: Candidate
    new: Candidate
    lr_rule: str
    lr_factor: float
    moments: str
    moment_factor: float
    tensors: int
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "old": size_of(self.old), "new": size_of(self.new), "lr_rule": self.lr_rule, "lr_factor": self.lr_factor,
            "moments": self.moments, "moment_factor": self.moment_factor, "tensors": self.tensors,
            "remarks": list(self.remarks),
            "strategy": [str(each[0]) if isinstance(each, tuple) else "" for each in (self.old, self.new)],
        }  # fmt: skip


def switch(
    optimizer: Optimizer,
    *,
    old: Candidate,
    new: Candidate,
    lr_rule: str | float = "auto",
    moments: str = "keep",
    noise: NoiseGiven = None,
    monitor: Marked | None = None,
    scheduler: Any = (),
) -> Switch:
    """Makes an optimizer ready for another batch size, between two steps; either all is done or nothing.

    Call it when the next step will be of the new size. Learning rates of all groups, and what schedulers come back to,
    are multiplied by the rule's factor. The moments:

    * "keep": as they are; a second moment of the old batch fades at beta2. Measured best or as good; see the docs.
    * "rescale": second moments times (|G|^2 + tr Sigma/B_new)/(|G|^2 + tr Sigma/B_old), what they are expected to come
      to, of each tensor where the noise of each is given; roots (S3, Adamax) by the root of it. Needs `noise`.
    * "reset": moments and step counts to zero, as AdaptDL does. The first step after it is one of lr in each
      coordinate, at a chi far above 1.

    Args:
        optimizer: of any kind; SGD's momentum, Adam and its family, RMSprop, Adafactor and S3 are known by name.
        old, new: batch sizes, or (strategy, batch size); equal sizes leave the learning rate alone.
        lr_rule: one of `gain.RULES`, a factor, or "auto": with the root of the batch, and for SGD by AdaScale's gain
            where the noise is known and in proportion where it is not.
        moments: "keep", "rescale" or "reset".
        noise: as above; raw gradients' noise, not divided by denominators.
        monitor: marks the switch in the run, a note and the signal `batch_switched`, so that it is not taken for a
            spike.
        scheduler: one or several that set the learning rate.

    Raises:
        UsageError: an argument that cannot work; nothing has been changed then.

    Source: Qiao et al. 2021 (Pollux), arXiv 2008.12260, and its AdaptDL (reset; lr rules); the ratio is derived here.

    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = torch.optim.Adam([weight], lr=0.01)
    >>> found = switch(optimizer, old=64, new=256)
    >>> found.lr_factor, optimizer.param_groups[0]["lr"]
    (2.0, 0.02)
    """
    before, after = size_of(old), size_of(new)
    if moments not in HANDLING:
        raise UsageError(f"switch(moments=...): one of {', '.join(HANDLING)}, got {moments!r}")
    shares = _Shares(noise, optimizer, before, after)
    if moments == "rescale" and not shares.known:
        raise UsageError("switch(moments='rescale') needs the noise: an estimate, or (tr Sigma, |G|^2)")
    rule, factor = _factor(optimizer, lr_rule, before, after, shares.noise_scale)
    undo: list[Undo] = []
    schedulers = list(scheduler) if isinstance(scheduler, (list, tuple)) else [scheduler]
    try:
        with torch.no_grad():
            remarks = scale_rates(optimizer, schedulers, factor, undo) if factor != 1.0 else []
            touched, said = change(optimizer, moments, shares, after / before, undo)
        done = Switch(old, new, rule, factor, moments, shares.mean, touched, (*remarks, *said))
        if monitor is not None:
            _mark(monitor, done, after / before, undo)
    except BaseException:
        with torch.no_grad():
            for put_back in reversed(undo):
                put_back()
        raise
    return done


class _Shares:
    """By how much the second moment of each parameter changes, from what is known of its noise."""

    def __init__(self, noise: NoiseGiven, optimizer: Optimizer, old: int, new: int) -> None:
        self._sizes, self._used = (old, new), list[float]()
        self._each: dict[int, float] = {}
        self._all: float | None = None
        self.noise_scale: float | None = None
        if isinstance(noise, Mapping):
            self._per_tensor(noise, optimizer)
        elif noise is not None:
            trace, square = _pair(noise)
            self._all = ratio(trace, square, old, new)
            self.noise_scale = trace / square if square > 0 else math.inf
        self.known = noise is not None

    def _per_tensor(self, noise: Mapping[Any, Any], optimizer: Optimizer) -> None:
        names: dict[Any, int] = {}
        for group in optimizer.param_groups:
            pairs = zip(group.get("param_names", ()), group["params"], strict=False)
            names |= {name: id(param) for name, param in pairs}
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        traces = squares = 0.0
        for key, value in noise.items():
            place = id(key) if isinstance(key, Tensor) else names.get(key)
            if place is None or place not in held:
                raise UsageError(
                    f"switch(noise=...): {key if isinstance(key, str) else 'a tensor'!r} is no parameter of this "
                    "optimizer; give parameters, or names where the optimizer was made of named_parameters()"
                )
            trace, square = _pair(value)
            self._each[place] = ratio(trace, square, *self._sizes)
            traces, squares = traces + trace, squares + max(0.0, square)
        if traces + squares > 0.0:
            self._all = ratio(traces, squares, *self._sizes)  # of those that were not given
            self.noise_scale = traces / squares if squares > 0 else math.inf

    def __call__(self, param: Tensor) -> float:
        factor = self._each.get(id(param), self._all)
        assert factor is not None
        self._used.append(factor)
        return factor

    @property
    def mean(self) -> float:
        """Mean of the factors that were asked for; 1 where none was."""
        return sum(self._used) / len(self._used) if self._used else 1.0


def _pair(noise: Any) -> tuple[float, float]:
    if isinstance(noise, Real):
        return float(noise), 1.0
    if isinstance(noise, Sequence):
        trace, square = noise
        return float(trace), float(square)
    if getattr(noise, "status", "ok") == "gated":
        raise UsageError("switch(noise=...): the noise scale is gated; keep the moments, or wait")
    return float(noise.tr_sigma), float(noise.g_sq)


def _factor(
    optimizer: Optimizer, rule: str | float, old: int, new: int, noise_scale: float | None
) -> tuple[str, float]:
    if isinstance(rule, Real) and not isinstance(rule, bool):
        if not (rule > 0 and math.isfinite(rule)):
            raise UsageError(f"switch(lr_rule=...): a factor is positive, got {rule!r}")
        return "given", float(rule)
    if rule == "auto":
        plain = any(kind.__name__ in PROPORTIONAL for kind in type(optimizer).__mro__)
        rule = ("linear" if noise_scale is None else "adascale") if plain else "sqrt"
    if rule not in RULES:
        raise UsageError(f"switch(lr_rule=...): 'auto', a factor or one of {', '.join(RULES)}, got {rule!r}")
    return rule, lr_factor(old, new, rule, noise_scale=noise_scale)


def _mark(monitor: Marked, done: Switch, scale: float, undo: list[Undo]) -> None:
    """Writes the note, and the signal of the attempt that is about to be made."""
    attempt = monitor.attempt
    before = dict(attempt.marks)
    undo.append(lambda: setattr(attempt, "marks", before))
    attempt.marks[MARK] = scale * before.get(MARK, 1.0)
    monitor.note(MARK, **({"step": monitor.step} | done.to_dict()))


class _CallableModule(ModuleType):
    """A module that can be called, so that the function is not hidden by the file that is named like it."""

    __call__ = staticmethod(switch)


sys.modules[__name__].__class__ = _CallableModule
