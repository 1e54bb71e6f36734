"""The rules that ship with foreshock: from an optimizer's name to how its groups are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import unwrap
from typing import cast

from torch.optim import Optimizer

from foreshock.stability.group import Group
from foreshock.stability.registry import Reading
from foreshock.stability.rules import averaged, bounded, gradients, moments, rotated, scaled, variants
from foreshock.stability.rules.averaged import schedule
from foreshock.stability.rules.variants import mixture

__all__ = ["Shipped", "find", "mixture", "schedule"]


@dataclass(frozen=True, slots=True)
class Shipped:
    """A rule that reads all parameters of a group at once.

    Attributes:
        name: of its row in the table of thresholds.
        read: from a group to a reading for each of its parameters.
        stateless: whether it can read an optimizer that has not taken a step.
        checked: whether it has to agree with a Nyquist probe of the optimizer at hand, because others use its name or
            because the class overrides the step that the rule describes.
        linear: whether the step is linear in the gradient at frozen moments, so that a probe can tell.
    """

    name: str
    read: Callable[[Group], list[Reading]]
    stateless: bool = False
    checked: bool = False
    linear: bool = True


TORCH = {
    "SGD": Shipped("SGD", gradients.sgd, stateless=True),
    "ASGD": Shipped("ASGD", gradients.asgd, stateless=True),
    "RMSprop": Shipped("RMSprop", moments.rmsprop),
    "Adagrad": Shipped("Adagrad", moments.adagrad),
    "Adadelta": Shipped("Adadelta", moments.adadelta),
    "Adam": Shipped("Adam", moments.adam),
    "AdamW": Shipped("AdamW", moments.adam),
    "SparseAdam": Shipped("Adam", moments.sparse_adam),
    "NAdam": Shipped("NAdam", moments.nadam),
    "RAdam": Shipped("RAdam", moments.radam),
    "Adamax": Shipped("Adamax", moments.adamax),
    "Adafactor": Shipped("Adafactor", scaled.adafactor, linear=False),
    "Rprop": Shipped("Rprop", gradients.rprop, linear=False),
    "Muon": Shipped("Muon", bounded.muon, linear=False),
}
OTHERS = {
    "AdaBelief": Shipped("AdaBelief", variants.adabelief, checked=True),
    "AdamMini": Shipped("AdamMini", scaled.adam_mini, linear=False),
    "Adam_mini": Shipped("AdamMini", scaled.adam_mini, linear=False),
    "AdEMAMix": Shipped("AdEMAMix", variants.ademamix, checked=True),
    "FusedLAMB": Shipped("LAMB", scaled.lamb, linear=False),
    "LAMB": Shipped("LAMB", scaled.lamb, linear=False),
    "Lamb": Shipped("LAMB", scaled.lamb, linear=False),
    "Lion": Shipped("Lion", bounded.lion, linear=False),
    "Padam": Shipped("Padam", variants.padam, checked=True),
    "QHAdam": Shipped("QHAdam", variants.qhadam, checked=True),
    "QHM": Shipped("QHM", gradients.qhm, stateless=True, checked=True),
    "S3": Shipped("S3", bounded.s3, linear=False),
    "Shampoo": Shipped("Shampoo", rotated.shampoo, linear=False),
    "SOAP": Shipped("SOAP", rotated.soap, linear=False),
    "SGDScheduleFree": Shipped("ScheduleFree", averaged.schedule_free, stateless=True, linear=False),
    "AdamWScheduleFree": Shipped("ScheduleFree", averaged.schedule_free, linear=False),
    "RAdamScheduleFree": Shipped("ScheduleFree", averaged.schedule_free, linear=False),
    "Yogi": Shipped("Yogi", variants.yogi, checked=True),
}

_REGISTER = "; register a rule for its class with foreshock.stability.register"
REFUSED = {
    "LBFGS": "LBFGS chooses its step by a line search: it has no fixed step size, and no edge of stability",
    "SAM": "SAM takes its gradient at a point that moves with it: use stability_threshold('sam', lr=..., rho=...)",
    "ZeroRedundancyOptimizer": "ZeroRedundancyOptimizer steps a part of the parameters: pass its .optim",
}
_QUANTIZED = ("8bit", "4bit", "8Bit", "4Bit", "Fp8")


def find(kind: type[Optimizer]) -> Shipped | str | None:
    """Returns the rule that ships for a class, a sentence that says why there is none, or None for an unknown class.

    Names count for torch's own classes and for known names elsewhere; a subclass is read like its ancestor, but has
    to pass the check when it brings a step of its own.
    """
    for ancestor in kind.__mro__:
        name, native = ancestor.__name__, ancestor.__module__.startswith("torch.optim")
        if name in REFUSED:
            return REFUSED[name]
        if any(mark in name for mark in _QUANTIZED):
            return f"{name} keeps its moments in quantized blocks, whose values only its own code can read{_REGISTER}"
        found = TORCH.get(name) if native else OTHERS.get(name)
        if found is None:
            continue
        changed = unwrap(kind.step) is not unwrap(
            cast(type[Optimizer], ancestor).step
        )  # torch wraps each class's step in its hooks
        return replace(found, checked=found.checked or changed)
    return None
