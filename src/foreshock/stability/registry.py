"""What a rule says about one parameter's step, and which rule speaks for which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability.blocks import Block
from foreshock.stability.filters import Filter, critical_step
from foreshock.stability.parts import Parts

__all__ = ["Reading", "Rule", "factor", "own_rule", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an optimizer does to one parameter: theta <- (1 - decay) theta - lr P^-1 Q(z) (g + l2 theta).

    Attributes:
        denominator: P > 0, bias corrections included: a tensor of the parameter's shape, a `Block`, or a number.
        lr: the step size that multiplies the filtered gradient over P, after every adjustment.
        gain: Q(-1) of the momentum filter, or the filter, whose first loss of stability is then looked for.
        l2: coupled decay; it enters the gradient before moments are updated.
        decay: 1 - a, what the parameter loses by itself in the step, such as lr * weight_decay for AdamW.
        floor: the least value P can have (eps, in units of P), 0 when unknown.
        formal: the step is bounded whatever the gradient, so that a linear threshold is no alarm.
        approximate: P follows the gradient so fast that a frozen P is only an approximation.
        notes: sentences for the user.
        correction: the factor of P that corrects the momentum for its bias, such as 1 - beta1^t.
        parts: how eps enters P and how P decays without gradients, where that is of the known form.
    """

    denominator: Tensor | Block | float
    lr: float
    gain: float | Filter = 1.0
    l2: float = 0.0
    decay: float = 0.0
    floor: float = 0.0
    formal: bool = False
    approximate: bool = False
    notes: tuple[str, ...] = ()
    correction: float = 1.0
    parts: Parts | None = None


# (optimizer, param group, parameter, its state, its gradient) -> Reading
Rule = Callable[[Optimizer, Mapping[str, Any], Tensor, Mapping[str, Any], Tensor | None], Reading]

_BY_CLASS: dict[type[Optimizer], Rule] = {}
_BY_NAME: dict[str, Rule] = {}


def register(optimizer: type[Optimizer] | str, rule: Rule) -> None:
    """Makes `rule` speak for an optimizer class and its subclasses; a later rule takes the place of an earlier one.

    Args:
        optimizer: the class, or its name where importing it is not wanted.
        rule: function of (optimizer, group, param, state, grad) that returns a `Reading`, and writes to none of them.
            With a gradient the reading is that of the step about to be taken: moments as they will be once they have
            seen it, one step further than the state counts. Without (None) it is that of the last step taken.

    Errors: UsageError for anything else.

    >>> import torch
    >>> class Halved(torch.optim.SGD): ...
    >>> register(Halved, lambda optimizer, group, param, state, grad: Reading(denominator=2.0, lr=group["lr"]))
    """
    if not callable(rule):
        raise UsageError("rule must be a function of (optimizer, group, param, state, grad) that returns a Reading")
    if isinstance(optimizer, str):
        _BY_NAME[optimizer] = rule
    elif isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        _BY_CLASS[optimizer] = rule
    else:
        raise UsageError(f"optimizer must be a subclass of torch.optim.Optimizer or a name, not {optimizer!r}")


def own_rule(kind: type[Optimizer]) -> Rule | None:
    """Returns the rule somebody registered for a class or the nearest of its ancestors, None where nobody did."""
    for ancestor in kind.__mro__:
        found = _BY_CLASS.get(ancestor) or _BY_NAME.get(ancestor.__name__)
        if found is not None:
            return found
    return None


def factor(reading: Reading) -> float:
    """Returns lr q/(1 + a), by which P^-1 has to be multiplied to give the edge weight.

    Where the filter leaves stability off period 2 (cascades), q is that of the first loss: (1 + a)/k for the critical
    k = lr lambda. A loop that shrinks by more than 2 in a step is unstable by itself: infinite.

    >>> factor(Reading(denominator=1.0, lr=0.5))
    0.25
    """
    if isinstance(reading.gain, Filter):
        critical = critical_step(reading.gain, reading.decay).k
        return reading.lr / critical if critical else float("inf")
    room = 2.0 - reading.decay
    return reading.lr * reading.gain / room if room > 0 else float("inf")
